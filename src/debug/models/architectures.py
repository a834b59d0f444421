"""Where families of models keep what the method intervenes on. A new family is one line here."""

from __future__ import annotations

from dataclasses import dataclass

from debug.kinds import Module


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps what the method intervenes on: dotted paths, from the model or from a layer."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"
    attention: str = "self_attn"
    output_projection: str = "self_attn.o_proj"
    mlp: str = "mlp"
    unflattened: str = ""
    """A module of a layer that is given [row, token, width], where others are given the tokens of all rows behind one
    another."""

    def path(self, part: str) -> str:
        """From a layer to one of its parts; to ``layer`` itself the empty path."""
        return "" if part == "layer" else getattr(self, part)

    def within(self, inner: str, outer: str) -> bool:
        """Whether a part of a layer is another part, or lies inside of it."""
        return f"{self.path(inner)}.".startswith(f"{self.path(outer)}.")


LLAMA_LIKE = Architecture()
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(
        ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2", "gemma3_text"], LLAMA_LIKE
    ),
    "gemma3": Architecture("model.language_model.layers", "model.language_model.norm"),
    "gpt2": Architecture("transformer.h", "transformer.ln_f", attention="attn", output_projection="attn.c_proj"),
    "gpt_neox": Architecture(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention", output_projection="attention.dense"
    ),
    "opt": Architecture(
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        output_projection="self_attn.out_proj",
        mlp="fc2",
        unflattened="self_attn_layer_norm",
    ),
}
"""By ``config.model_type``. A new family is one line here; tests/families.py and the engine's tests then check it.
Of a mixture of experts the MLP is the block as a whole; of a model that also sees pictures its text model is read."""


def follow(start: Module, path: str) -> Module:
    for name in path.split(".") if path else ():
        start = getattr(start, name)
    return start
