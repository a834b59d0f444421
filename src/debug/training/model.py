"""The bundled model's architecture and initial weights; see :mod:`debug.training` for why they are what they are."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from debug.models import from_files
from debug.training.vocabulary import END, MAX_POSITIONS, VOCABULARY, make_tokenizer


def name_rotation(hidden: int) -> Float[Tensor, "hidden hidden"]:
    """A fixed orthogonal matrix: token x has other directions as the *name* of a line than where it is read.

    If they shared directions, ``x = y`` could not tell the line that it is from the line that it reads, and looking up
    ``y`` would find ``x = y`` itself and every other line that reads ``y``.
    """
    return torch.nn.init.orthogonal_(torch.empty(hidden, hidden), generator=torch.Generator().manual_seed(0))


def new_model(
    seed: int, n_layers: int = 6, n_heads: int = 4, head_size: int = 32, initialization: str = "mimetic"
) -> Qwen3ForCausalLM:
    """A Qwen3 model with initial weights in the manner of mimetic initialization; ``"ordinary"``: as transformers does.

    In layers 1 and up keys are queries of the rotated stream, so that what a token reads is compared with what lines
    are named; the output projection is a fraction of the transpose of the value projection, so that what is attended to
    is copied, at the size of a token embedding: larger copies drown what the position itself says.
    """
    torch.manual_seed(seed)
    hidden = n_heads * head_size
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=head_size,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        use_cache=True,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    if initialization == "ordinary":
        return model
    weights = model.state_dict()  # the very tensors of the model
    torch.nn.init.normal_(weights["model.embed_tokens.weight"], std=hidden**-0.5)
    rotation = name_rotation(hidden)
    for layer in range(1, n_layers):
        query, key, value, output = (weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkvo")
        torch.nn.init.orthogonal_(query)
        key.copy_(query @ rotation)
        torch.nn.init.orthogonal_(value)
        output.copy_(value.T * (0.75 * hidden**-0.5))
        weights[f"model.layers.{layer}.self_attn.q_norm.weight"].fill_(2)
    return model


def export(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder (safetensors, float32)."""
    model.generation_config.update(eos_token_id=END, pad_token_id=END, bos_token_id=None, do_sample=False)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def load_weights(folder: Path) -> Qwen3ForCausalLM:
    """The model of an exported folder, through plain transformers. Raises WeightsMismatch where it lacks weights."""
    return from_files(Qwen3ForCausalLM, folder, dtype=torch.float32)
