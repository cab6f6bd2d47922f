"""SmoothQuant and W8A8 on a tiny random Llama: the function stays, the checkpoint says what vLLM must know."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs `pip install 'redline[llm]'`")
from safetensors.torch import load_file, save_file  # noqa: E402

from redline.errors import JobError  # noqa: E402
from redline.optimize.llm_job import WINDOW, LanguageJob, TokenSLA  # noqa: E402
from redline.optimize.passes.llm_quantize import (  # noqa: E402
    SmoothQuantW8A8,
    activations,
    copy_model,
    quantize,
    read_config,
    round_to_nearest,
    smooth,
)

WIDE, INNER, LAYERS, WORDS = 32, 48, 2, 100
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDE,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": WORDS,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (INNER, WIDE),
    "mlp.up_proj": (INNER, WIDE),
    "mlp.down_proj": (WIDE, INNER),
}
TEXT = [[(7 * i + j) % WORDS for j in range(16)] for i in range(4)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    folder.mkdir()
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * scale

    tensors = {"model.embed_tokens.weight": draw(WORDS, WIDE, scale=1.0), "model.norm.weight": torch.ones(WIDE)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = torch.ones(WIDE)
            tensors[f"{at}{norm}.weight"][5] = 40.0  # the outlier that SmoothQuant is for
        for name, shape in SHAPES.items():
            tensors[f"{at}{name}.weight"] = draw(*shape, scale=0.1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_llama.py").write_text("raise SystemExit('code of a model folder must never run')")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TEXT)).logits
    return found


def changed(llama: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    copy_model(llama, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_smoothing_is_the_same_function_to_the_last_bit(llama: Path, tmp_path: Path) -> None:
    largest = activations(llama, LAYERS, TEXT)
    before = load_file(llama / "model.safetensors")
    after = changed(llama, tmp_path / "smooth", lambda tensors: smooth(tensors, largest, LAYERS, 0.8))
    torch.testing.assert_close(logits(after), logits(llama), rtol=1e-5, atol=1e-5)
    moved = load_file(after / "model.safetensors")
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        norm, q = f"{at}input_layernorm.weight", f"{at}self_attn.q_proj.weight"
        scale = before[norm] / moved[norm]
        assert (torch.log2(scale) == torch.log2(scale).round()).all() and scale[5] > 1  # powers of two: nothing rounds
        assert (moved[q] == before[q] * scale).all()
        assert (moved[f"{at}mlp.down_proj.weight"] == before[f"{at}mlp.down_proj.weight"]).all()


def test_activations_are_the_largest_of_all_windows(llama: Path) -> None:
    apart = [activations(llama, LAYERS, [window]) for window in TEXT]
    for name, largest in activations(llama, LAYERS, TEXT).items():
        assert (largest == torch.stack([a[name] for a in apart]).amax(dim=0)).all()
        assert largest.argmax() == 5


def test_the_checkpoint_that_is_written(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "w8a8"
    verdict = quantize(SmoothQuantW8A8(), llama, TEXT, out)
    assert verdict and verdict.why == "12 layers in INT8, down_proj as before"
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    tensors, source = load_file(out / "model.safetensors"), load_file(llama / "model.safetensors")
    smooth(source, activations(llama, LAYERS, TEXT), LAYERS, 0.8)
    quantized = [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in SHAPES if "down" not in name]
    assert tensors.keys() - source.keys() == {f"{name}.weight_scale" for name in quantized}
    for name, tensor in source.items():
        layer = name.removesuffix(".weight")
        if layer not in quantized:
            assert tensors[name].dtype == tensor.dtype and (tensors[name] == tensor).all(), name
            continue
        step = tensors[f"{layer}.weight_scale"]
        assert tensors[name].dtype == torch.int8 and tuple(step.shape) == (len(tensor), 1)
        assert ((tensors[name].float() * step - tensor).abs() <= step / 2 * (1 + 1e-5)).all(), name
        assert (tensors[name].abs().amax(dim=1) == 127).all()
    scheme = read_config(out)["quantization_config"]
    assert scheme["quant_method"] == "compressed-tensors" and scheme["ignore"] == ["lm_head", "re:.*down_proj"]
    group = scheme["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel" and group["input_activations"]["strategy"] == "token"
    assert group["input_activations"]["dynamic"] is True


def test_w8a8_is_close_and_smoothing_brings_it_closer(llama: Path, tmp_path: Path) -> None:
    """Weights and activations as vLLM computes them: rounded per output channel and per token."""

    def rounded(folder: Path) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                levels, step = round_to_nearest(module.weight.detach())
                module.weight.data = levels * step
                module.register_forward_pre_hook(_round_inputs)
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor(TEXT)).logits
        return found

    largest = activations(llama, LAYERS, TEXT)
    after = changed(llama, tmp_path / "smooth", lambda tensors: smooth(tensors, largest, LAYERS, 0.5))
    exact = logits(llama)
    naive, smoothed = ((rounded(folder) - exact).pow(2).mean().sqrt().item() for folder in (llama, after))
    assert smoothed < 0.8 * naive and smoothed < 0.1 * exact.std().item()


def _round_inputs(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    levels, step = round_to_nearest(inputs[0].reshape(-1, inputs[0].shape[-1]))
    return (levels * step).reshape(inputs[0].shape)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: shutil.rmtree(f), r"not a model folder: no config\.json, tokenizer\.json, model\.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), r"not a model folder: no model\.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "does not say the model's architecture"),
        (lambda f: (f / "config.json").write_text("[]"), "does not say the model's architecture"),
        (
            lambda f: (f / "config.json").write_text('{"architectures": ["BertModel"]}'),
            "BertModel; SmoothQuantW8A8 takes",
        ),
        (
            lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {}})),
            "quantized already",
        ),
    ],
)
def test_folders_that_can_not_be_taken(llama: Path, tmp_path: Path, change: Callable[[Path], Any], text: str) -> None:
    shutil.copytree(llama, tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(JobError, match=text):
        quantize(SmoothQuantW8A8(), tmp_path / "model", TEXT, tmp_path / "out")


def test_options_that_mean_nothing() -> None:
    with pytest.raises(JobError, match=r"wanted alpha in \[0, 1\], got 1.5"):
        SmoothQuantW8A8(alpha=1.5)
    with pytest.raises(JobError, match=r"no layers end in \['downproj'\]"):
        SmoothQuantW8A8(keep=("downproj",))


class Words:
    """A tokenizer of words."""

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return type("Encoding", (), {"ids": [len(word) for word in text.split()]})


def make_job(**changes: Any) -> LanguageJob:
    table: dict[str, Any] = {"name": "tiny", "model": lambda: Path("none"), "text": lambda split: "a bb " * WINDOW}
    return LanguageJob(**table | {"sla": TokenSLA()} | changes)


def test_windows_are_whole() -> None:
    assert [len(w) for w in make_job().windows("calibration", Words())] == [WINDOW, WINDOW]


def _fails(*_: str) -> Any:
    raise OSError("no such file")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "ti/ny"}, "letters, digits"),
        ({"model": "folder"}, "model must be a function, got str"),
        ({"max_rise": float("nan")}, "max_rise must be a number"),
        ({"streams": 0}, "streams and kv_cache_gib at least 1"),
        ({"context": 512}, "wanted a context of more than 512 tokens, got 512"),
        ({"sla": TokenSLA(prompt_tokens=2040)}, "do not fit a context of 2048"),
        ({"text": lambda split: "short"}, r"text\('test'\) has 1 tokens, wanted 512"),
        ({"text": lambda split: None}, "gave NoneType, wanted a string"),
        ({"text": _fails}, "text failed: OSError: no such file"),
        ({"model": lambda: "here"}, r"model\(\) gave str, wanted the Path"),
        ({}, "none is not a model folder"),
    ],
)
def test_jobs_that_can_not_be_done(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(JobError, match=text):
        job = make_job(**changes)
        job.windows("test", Words())
        job.folder()


def test_a_context_longer_than_the_models(llama: Path) -> None:
    assert make_job(model=lambda: llama, context=1024).folder() == llama
    with pytest.raises(JobError, match="a context of 1025 tokens, the model's is 1024"):
        make_job(model=lambda: llama, context=1025).folder()
