"""INT8 weights and activations for a Llama: SmoothQuant, then round to nearest, as a compressed-tensors checkpoint.

Activations of a few channels are many times larger than the rest, and one scale a token must hold them all. SmoothQuant
divides those channels by s in the norm before a layer and multiplies the layer's weights by s: the same function, with
the trouble where a scale per output channel can bear it. s is a power of two here, so the folding rounds nothing.
The scale of a token's activations is taken at run time from that token alone: no answer depends on its batch.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline.errors import JobError
from redline.verdict import Verdict

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("LlamaForCausalLM",)  # whose layers have these names and this order
_BEHIND = {  # norm → the layers that read it, and nothing else does
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_LINEARS = (*_BEHIND["input_layernorm"], "self_attn.o_proj", *_BEHIND["post_attention_layernorm"], "mlp.down_proj")
_KEPT_FILES = (".json", ".jinja", ".model", ".txt")  # config and tokenizer; never code, never a pickle


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuantW8A8:
    alpha: float = 0.8  # share of an activation's range that moves into the weights, in [0, 1]
    keep: tuple[str, ...] = ("down_proj",)  # layers left as they are; the input of down_proj has no norm before it

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise JobError(f"SmoothQuantW8A8: wanted alpha in [0, 1], got {self.alpha}")
        if unknown := [k for k in self.keep if not any(name.endswith(k) for name in _LINEARS)]:
            raise JobError(f"SmoothQuantW8A8: no layers end in {unknown}; there are {list(_LINEARS)}")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder that vLLM can serve: weights in safetensors, a fast tokenizer.

    Raises:
        JobError: what it lacks.
    """
    lacks = [name for name in ("config.json", "tokenizer.json", "model.safetensors") if not (folder / name).is_file()]
    if lacks:
        raise JobError(
            f"{folder} is not a model folder: no {', '.join(lacks)}; wanted a Hugging Face folder, weights in one file"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config["architectures"][0]
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise JobError(f"{folder}/config.json does not say the model's architecture: {e!r}") from e
    return config


def copy_model(folder: Path, out: Path) -> None:
    """All of a model folder that serving needs, and nothing that runs."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in _KEPT_FILES or path.name == "model.safetensors"):
            shutil.copyfile(path, out / path.name)


def quantize(
    config: SmoothQuantW8A8,
    folder: Path,
    windows: Sequence[Sequence[int]],
    out: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Write to `out` the model in `folder`, quantized; windows: calibration text as tokens."""
    from safetensors.torch import load_file, save_file

    table = read_config(folder)
    if table["architectures"][0] not in ARCHITECTURES or "quantization_config" in table:
        what = "quantized already" if "quantization_config" in table else table["architectures"][0]
        raise JobError(f"{folder}: {what}; SmoothQuantW8A8 takes an unquantized {', '.join(ARCHITECTURES)}")
    layers = int(table["num_hidden_layers"])
    say("activations …")
    largest = activations(folder, layers, windows)
    tensors = load_file(folder / "model.safetensors")
    smooth(tensors, largest, layers, config.alpha)
    names = [f"model.layers.{i}.{name}" for i in range(layers) for name in _LINEARS if not name.endswith(config.keep)]
    for name in names:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = round_to_nearest(weight)
    copy_model(folder, out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(table | {"quantization_config": _scheme(config)}, indent=2) + "\n")
    kept = f", {', '.join(config.keep)} as before" if config.keep else ""
    return Verdict(True, f"{len(names)} layers in INT8{kept}")


def activations(folder: Path, layers: int, windows: Sequence[Sequence[int]]) -> dict[str, "torch.Tensor"]:
    """norm → the largest |output| of each channel over the calibration tokens."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, **options)  # in evaluation mode
    largest: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: "torch.nn.Module", inputs: Any, output: "torch.Tensor") -> None:
            seen = output.abs().amax(dim=(0, 1))
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return hook

    for i in range(layers):
        for norm in _BEHIND:
            name = f"model.layers.{i}.{norm}"
            model.get_submodule(name).register_forward_hook(watch(name))
    with torch.inference_mode():
        for window in windows:
            model.get_submodule("model")(torch.tensor([list(window)]), use_cache=False)
    return {name: seen.clone() for name, seen in largest.items()}


def smooth(tensors: dict[str, "torch.Tensor"], largest: dict[str, "torch.Tensor"], layers: int, alpha: float) -> None:
    """Move the channels' ranges from activations into weights, in place."""
    import torch

    for i in range(layers):
        for norm, readers in _BEHIND.items():
            at = f"model.layers.{i}."
            weights = [tensors[f"{at}{reader}.weight"] for reader in readers]
            reach = torch.stack([w.abs().float().amax(dim=0) for w in weights]).amax(dim=0).clamp(min=1e-5)
            scale = largest[at + norm].clamp(min=1e-5) ** alpha / reach ** (1 - alpha)
            scale = torch.exp2(torch.round(torch.log2(scale)))  # [in]
            tensors[f"{at}{norm}.weight"] = (tensors[f"{at}{norm}.weight"].float() / scale).to(weights[0].dtype)
            for reader, weight in zip(readers, weights, strict=True):
                tensors[f"{at}{reader}.weight"] = (weight.float() * scale).to(weight.dtype)


def round_to_nearest(weight: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """weight: [out, in] → INT8 [out, in] and its step [out, 1]; symmetric, so 0 stays 0."""
    import torch

    step = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weight.float() / step).clamp(-127, 127).to(torch.int8), step


def _scheme(config: SmoothQuantW8A8) -> dict[str, Any]:
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": integers | {"strategy": "channel", "dynamic": False},
        "input_activations": integers | {"strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *(f"re:.*{name}" for name in config.keep)],
    }
