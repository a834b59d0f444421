"""Where families of models keep what the method intervenes on. A new family is one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps what the method intervenes on: dotted paths, from the model or from a layer."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"
    attention: str = "self_attn"
    output_projection: str = "self_attn.o_proj"
    mlp: str = "mlp"


LLAMA_LIKE = Architecture()
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"], LLAMA_LIKE),
    "gpt2": Architecture("transformer.h", "transformer.ln_f", attention="attn", output_projection="attn.c_proj"),
    "gpt_neox": Architecture(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention", output_projection="attention.dense"
    ),
    "opt": Architecture(
        "model.decoder.layers", "model.decoder.final_layer_norm", output_projection="self_attn.out_proj", mlp="fc2"
    ),
}
"""By ``config.model_type``. A new family is one line here; tests/families.py and the engine's tests then check it."""


def follow(start: Any, path: str) -> Any:
    for name in path.split("."):
        start = getattr(start, name)
    return start
