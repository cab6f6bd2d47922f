"""Pruning: exported shapes are smaller, what is tied stays together, what can't be known is left with its reason."""

import pickle
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from retraining import TUNABLE, source_of, tunable
from tiny_job import write_job
from torch import nn

from redline.cli import main
from redline.errors import GraphError, JobError
from redline.optimize.build import Cache, Source, build
from redline.optimize.passes import ExportOnnx, MergeEmbeddings, Prune, apply
from redline.optimize.passes.prune import Pruned, prune
from redline.optimize.passes.retrained import load, save
from redline.optimize.recipe import RETRAINED, Recipe

PRUNED = Recipe(name="pruned", passes=(Prune(), ExportOnnx(), MergeEmbeddings()), engine="onnxruntime")


@pytest.fixture
def tunable_source(clean_process: Path) -> Source:
    return tunable(clean_process)


def shapes(graph: Path) -> dict[str, list[int]]:
    return {i.name: list(i.dims) for i in onnx.load(graph).graph.initializer}


def test_exported_shapes_are_smaller_and_as_the_verdict_says(tunable_source: Source, steps: Path) -> None:
    candidate = build(PRUNED, tunable_source, Cache(steps / "steps"))
    said = candidate.notes[0]
    assert said.startswith("Prune: body.0 32 → 16; left: body.2 (1 wide, none to spare in steps of 8); parameters ")
    count, now = (int(n.replace(",", "")) for n in re.findall(r"parameters ([\d,]+) → ([\d,]+), fine-tuned", said)[0])
    assert count == sum(p.numel() for p in tunable_source.module.parameters())
    found = shapes(candidate.model)
    assert {n: s for n, s in found.items() if n.startswith("body")} == {
        "body.0.weight": [16, 28], "body.0.bias": [16], "body.2.weight": [1, 16], "body.2.bias": [1],
    }  # fmt: skip
    assert now == count - 16 * (28 + 1 + 1)
    assert tunable_source.module.get_submodule("body.0").weight.shape == (32, 28)  # the source model is as it was


class Tied(nn.Module):
    """Two branches added, so both must drop the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        return self.out(a + self.b(a).relu())  # type: ignore[no-any-return]


def kept(before: torch.Tensor, after: torch.Tensor, columns: list[int]) -> list[int]:
    """Which rows of a weight [out, in] are still there."""
    whole = before[:, columns]
    return [next(i for i, old in enumerate(whole) if torch.equal(old, row)) for row in after]


def test_what_is_added_drops_the_same_channels() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(64, 8)
    pruned = prune(model, (x,), ratio=0.75)
    small: Any = pruned.module
    assert pruned.widths == {"a": (32, 8), "b": (32, 8)}
    stays = kept(model.a.weight, small.a.weight, list(range(8)))
    assert kept(model.b.weight, small.b.weight, stays) == stays
    torch.testing.assert_close(small.out.weight, model.out.weight[:, stays])
    norms = model.a.weight.square().sum(1) + model.b.weight.square().sum((1,)) + model.b.weight.square().sum(0)
    norms += model.out.weight.square().sum(0)
    assert set(stays) == set(norms.topk(8).indices.tolist())


class Unknown(nn.Module):
    """Places where a graph of operators guesses, each with what must be said of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 32)
        self.beside_table, self.normed, self.softmaxed, self.viewed = (nn.Linear(8, 32) for _ in range(4))
        self.norm, self.plain = nn.LayerNorm(32), nn.Linear(8, 24)
        self.scaled, self.scale = nn.Linear(8, 32), nn.Parameter(torch.randn(32))
        self.read = nn.ModuleList(nn.Linear(32, 1) for _ in range(4))
        self.read_plain, self.unused = nn.Linear(24, 1), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = [
            self.beside_table(x) + self.table(torch.zeros(len(x), dtype=torch.int64)),
            self.norm(self.normed(x)),
            self.softmaxed(x).mul(4).softmax(1),
            self.viewed(x).view(-1, 2, 16).flip(1).reshape(-1, 32),
        ]
        parts = [read(w) for read, w in zip(self.read, wide, strict=True)]
        return torch.cat([*parts, self.read_plain(self.plain(x).relu()), self.scaled(x) * self.scale], dim=1)


def test_what_is_not_known_is_left_and_why() -> None:
    torch.manual_seed(0)
    pruned = prune(Unknown(), (torch.randn(64, 8),))
    assert pruned.widths == {"plain": (24, 16)}  # 12 stay, rounded to 8
    assert pruned.left["beside_table"] == "tied to table"
    assert pruned.left["normed"] == "tied to norm"
    assert pruned.left["softmaxed"].startswith("dropping them is not what zeroing them is: answers differ by 0.")
    assert pruned.left["viewed"].startswith("the model fails without them: ")
    assert pruned.left["scaled"] == "tied to a bare parameter"
    assert pruned.left["unused"] == "not on a traced path from inputs to answers"


def test_the_answer_keeps_its_width() -> None:
    assert prune(nn.Linear(8, 32), (torch.randn(64, 8),)).left == {"": "they are the model's answer"}


def test_a_mode_and_frozen_weights_stay_as_they_were() -> None:
    model = Tied()
    model.b.requires_grad_(requires_grad=False)
    small = prune(model.train(), (torch.randn(64, 8),)).module
    assert small.training
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == {"b.weight", "b.bias"}
    assert not any(p.grad_fn for p in small.parameters())


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(),
        nn.Conv2d(32, 16, 1, bias=False), nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


def test_convolutions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = convolutions(), torch.randn(64, 3, 8, 8)
    pruned = prune(model, (x,))
    assert pruned.widths == {"0": (32, 16), "3": (32, 16), "5": (16, 8), "7": (32, 16)}
    save(pruned.module, tmp_path / "model.safetensors")
    back = load(convolutions(), tmp_path / "model.safetensors")
    assert str(back) == str(pruned.module)  # what layers say of their widths
    with torch.no_grad():
        torch.testing.assert_close(back(x), pruned.module(x), rtol=0, atol=0)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("protocol", ["pickle", "torch"])
def test_weights_are_never_unpickled(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap())) if protocol == "pickle" else torch.save(Trap(), path)
    with pytest.raises(GraphError, match=r"model\.safetensors holds no tensors that can be read"):
        load(Tied(), path)
    assert not Path("sprung").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save(convolutions(), tmp_path / "model.safetensors")
    with pytest.raises(GraphError, match=r"model\.safetensors is of another model: .*Missing key"):
        load(Tied(), tmp_path / "model.safetensors")


def test_the_same_weights_every_time(tunable_source: Source, tmp_path: Path) -> None:
    assert tunable_source.module  # loaded, which seeds
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        apply(Prune(), None, tunable_source, file)
        assert torch.equal(torch.get_rng_state(), state)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", [r.name for r in RETRAINED])
def test_without_finetune_the_row_says_so(name: str, clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(clean_process)
    assert main(["optimize", job.name, "--no-prove", "--recipes", name]) == 1
    said = " ".join(capsys.readouterr().out.split())
    what = "Prune" if "pruned" in name else "Qat"
    assert f"{what} needs a job with `finetune`: a function that trains the model on" in said


def test_all_tries_retraining_where_the_job_can(clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(clean_process, *TUNABLE)
    assert main(["optimize", job.name, "--no-prove", "--recipes", "all", "--out", "made"]) == 0
    said = capsys.readouterr()
    assert all(f"{r.name} " in said.out for r in RETRAINED)
    assert "retrained: the gate decides" in (clean_process / "made/evidence/leaderboard.json").read_text()


def test_its_artifact_replays_on_requests_unlike_the_calibration_rows(
    clean_process: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retrained answers are another function's: there they may lie farther from the source model's than parity saw."""
    far = ("return [draw(rows, 100 + i)", "return [{k: a * 9 if k == 'dense' else a for k, a in draw(rows, i).items()}")
    job = write_job(clean_process, *TUNABLE, far)
    options = ["--no-prove", "--recipes", "onnxruntime-fp32-pruned", "--max-drop", "0.5", "--out", "made"]
    assert main(["optimize", job.name, *options]) == 0
    assert main(["inspect", "made", "--replay"]) == 0, capsys.readouterr().err


def test_nothing_to_prune(tmp_path: Path) -> None:
    source = source_of(nn.Linear(8, 1), (8,), tmp_path, lambda module: None)
    with pytest.raises(GraphError, match=r"nothing to prune: no layer narrowed; left:  \(1 wide, none to spare"):
        apply(Prune(), None, source, tmp_path / "x.safetensors")


def test_a_finetune_that_breaks_the_weights(tmp_path: Path) -> None:
    def spoil(module: nn.Module) -> None:
        for p in module.parameters():
            p.data.mul_(float("nan"))

    source = source_of(Tied(), (8,), tmp_path, spoil)
    with pytest.raises(JobError, match=r"finetune left weights that are not finite: \['a.weight', "):
        apply(Prune(), None, source, tmp_path / "x.safetensors")


def test_pruning_comes_before_the_graph(tunable_source: Source, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="Prune takes the model, not a graph: put it before"):
        apply(Prune(), tmp_path / "model.onnx", tunable_source, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ratio": 0.0}, "between 0 and 1, got 0"), ({"ratio": 1.0}, "got 1"), ({"ratio": float("nan")}, "got nan"),
     ({"round_to": 0}, "round_to must be above 0")],
)  # fmt: skip
def test_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)
    with pytest.raises(ValueError, match=message):
        prune(Tied(), (torch.randn(64, 8),), **options)


def test_a_verdict_names_a_shared_reason_once() -> None:
    said = Pruned(nn.Identity(), {"a": (32, 16)}, {"b": "tied to t", "c": "wide", "d": "tied to t"})
    assert str(said) == "a 32 → 16; left: b, d (tied to t); c (wide)"
