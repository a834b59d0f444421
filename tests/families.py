"""Random-weight models of every family that ``debug.models`` lists, with the bundled tokenizer, small enough to test.

Weights are scaled up: with ordinary initialization the two programs of a pair differ by hundredths of a logit, and a
patch that does nothing would pass for one that is right. The tests check that the whole effect is at least 1.
"""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

from debug import models

Settings = dict[str, Any]  # keywords of a configuration of transformers, each of a type of its own

_ENDS: Settings = {"eos_token_id": 0, "pad_token_id": 0}
_SIZES: Settings = {
    "vocab_size": 41,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    **_ENDS,
}
_GATED: Settings = _SIZES | {"num_key_value_heads": 2, "intermediate_size": 96}
_EXPERTS: Settings = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SLIDING = ["sliding_attention", "full_attention"] * 2

CONFIGS = {
    "qwen2": Qwen2Config(**_GATED),  # biases
    "qwen3": Qwen3Config(
        **_GATED, head_dim=16, tie_word_embeddings=True
    ),  # QK-norm, heads wider than the residual stream
    "qwen3_sliding": Qwen3Config(
        **_GATED, head_dim=12, use_sliding_window=True, sliding_window=7, layer_types=_SLIDING, max_window_layers=0
    ),
    "llama": LlamaConfig(**_GATED, tie_word_embeddings=True),
    "mistral": MistralConfig(**_GATED, sliding_window=9),
    "gemma2": Gemma2Config(
        **_GATED, head_dim=16, query_pre_attn_scalar=16, sliding_window=9, layer_types=_SLIDING
    ),  # soft caps, post-norms
    "gemma3_text": Gemma3TextConfig(
        **_GATED, head_dim=16, sliding_window=9, layer_types=_SLIDING, tie_word_embeddings=False
    ),
    "gemma3": Gemma3Config(  # the text model within one that sees pictures
        text_config=Gemma3TextConfig(**_GATED, head_dim=16, sliding_window=9, layer_types=_SLIDING),
        vision_config=SiglipVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
        ),
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        **_ENDS,
    ),
    "qwen3_moe": Qwen3MoeConfig(**_GATED, **_EXPERTS),
    "mixtral": MixtralConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": GPT2Config(
        vocab_size=41, n_embd=48, n_layer=4, n_head=4, n_positions=256, bos_token_id=None, eos_token_id=0
    ),
    "gpt_neox": GPTNeoXConfig(**_SIZES, intermediate_size=96),  # attention and MLP in parallel
    "opt": OPTConfig(**_SIZES, ffn_dim=96, word_embed_proj_dim=48),
    "phi3": Phi3Config(**_GATED),  # queries, keys and values in one projection
}


def family(name: str) -> models.LoadedModel:
    """A model of this family with random weights."""
    return of(CONFIGS[name], name)


def of(config: PreTrainedConfig, name: str, tokenizer: PreTrainedTokenizerFast | None = None) -> models.LoadedModel:
    """A model with random weights (seeded): matrices of gain / sqrt(fan in), norms and biases too.

    The tokenizer is the bundled model's, if it is not given.
    """
    torch.manual_seed(0)
    gain = 2.5
    text = config.get_text_config()
    attention = "eager" if getattr(text, "attn_logit_softcapping", None) else None
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim >= 2:  # those of all experts are one
                parameter.copy_(torch.randn_like(parameter) * gain / text.hidden_size**0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if not config.tie_word_embeddings:
            hf.get_output_embeddings().weight.mul_(2)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    return models.wrap(hf, tokenizer, model_id=name)
