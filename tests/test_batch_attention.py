"""Attention of batches on the CPU, against that of transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import families
from debug import models, prompts
from debug.models.cpu import batch_attention
from debug.models.cpu.packed_linear import PackedLinear

TAKEN = {
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "llama",
    "gpt2",
    "gpt_neox",
    "opt",
    "phi3",
}  # no sliding windows, no soft caps
DIGITS = [str(digit) for digit in range(10)]
EXAMPLES = prompts.few_shot("variable_binding", 5, 2)


def asked(template: str) -> list[str]:
    programs = [f"a = {n}\nb = a\n#b: " for n in range(3)] + [f"c = 1\na = {n}\nd = c\nb = a\n#d: " for n in range(3)]
    return [prompts.fill(template, program) for program in programs]


def answers(model: models.LoadedModel, template: str) -> tuple[dict, torch.Tensor]:
    texts = dict(model.generate(asked(template), max_new_tokens=6, batch_size=4))
    scores = dict(model.score(asked(template), DIGITS, batch_size=4))
    return texts, torch.tensor([scores[n].log_probabilities for n in range(len(scores))])


@pytest.mark.parametrize("name", families.CONFIGS)
@pytest.mark.parametrize("template", [prompts.VARIABLE_BINDING, EXAMPLES], ids=["alone", "shared"])
def test_it_answers_as_transformers_does(name, template, monkeypatch):
    model = families.family(name)
    attended = 0
    attend = batch_attention._attend

    def counted(*given, **named):
        nonlocal attended
        attended += 1
        return attend(*given, **named)

    batch_attention.AttentionInterface.register(batch_attention.NAME, counted)
    try:
        texts, scores = answers(model, template)
    finally:
        batch_attention.AttentionInterface.register(batch_attention.NAME, attend)
    assert bool(attended) == (name in TAKEN)
    monkeypatch.setattr(batch_attention, "suits", lambda _: False)
    expected_texts, expected_scores = answers(model, template)
    assert texts == expected_texts
    torch.testing.assert_close(scores, expected_scores, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_batch_answers_as_each_prompt_alone_does(name):
    """In the plain model, without padding: the shorter prompts of the batch must not see what stands before them."""
    model = families.family(name)
    batch = [*asked(prompts.VARIABLE_BINDING), "a = 1\n#a: "]
    assert len({len(model.encode(prompt)) for prompt in batch}) == 3
    texts, scores = dict(model.generate(batch, max_new_tokens=6)), dict(model.score(batch, DIGITS))
    digits = model.tokenizer.convert_tokens_to_ids(DIGITS)
    for index, prompt in enumerate(batch):
        ids = torch.tensor([model.encode(prompt)])
        with torch.no_grad():
            alone = model.hf(ids, use_cache=False).logits[0, -1, digits].log_softmax(-1)
            for _ in range(6):
                ids = torch.cat([ids, model.hf(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
                if int(ids[0, -1]) in model.end_tokens:
                    break
        torch.testing.assert_close(torch.tensor(scores[index].log_probabilities), alone, atol=2e-4, rtol=1e-4)
        assert texts[index].text == model.tokenizer.decode(
            ids[0, len(model.encode(prompt)) :], skip_special_tokens=True
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_alone_becomes_no_nan_in_half_precision(dtype):
    hf = AutoModelForCausalLM.from_config(families.CONFIGS["llama"]).to(dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    _, scores = answers(models.wrap(hf, tokenizer, model_id="llama"), EXAMPLES)
    assert scores.isfinite().all()


def test_the_models_own_attention_is_put_back():
    model = families.family("llama")
    with batch_attention.batch_cache(model.hf, None, 1):
        assert model.config._attn_implementation == batch_attention.NAME
    assert model.config._attn_implementation == "sdpa"


def test_it_can_be_switched_off(monkeypatch):
    model = families.family("llama")
    assert batch_attention.suits(model.hf)
    assert PackedLinear(model.hf).weights or not torch.backends.mkl.is_available()
    monkeypatch.setenv("DEBUG_PLAIN_CPU", "1")
    assert not batch_attention.suits(model.hf)
    assert not PackedLinear(model.hf).weights
