"""The weights in the package: loaded as anybody would, they answer programs that they were not trained on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from debug import training
from debug.models import CHECKPOINTS

TINY = CHECKPOINTS / "tiny"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY)


def test_it_is_a_small_float32_qwen3_in_safetensors(model) -> None:
    assert model.config.model_type == "qwen3"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (TINY / "model.safetensors").stat().st_size <= 16 * 2**20
    assert {path.suffix for path in TINY.iterdir()} == {".json", ".safetensors", ".md"}


def test_plain_auto_tokenizer_is_the_trained_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer.get_vocab() == training.make_tokenizer().get_vocab()
    assert len(tokenizer) == 41
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("left", 0, 0)
    assert tokenizer("a = 4\n#a: ")["input_ids"] == training.make_tokenizer()("a = 4\n#a: ")["input_ids"]


@pytest.mark.parametrize(("cell", "bar"), [((None, 5), 0.99), ((None, 17), 0.99)])
def test_it_answers_held_out_programs(model, cell: training.Cell, bar: float) -> None:
    """A small sample; the model card has the measurement, with intervals."""
    programs, _ = training.evaluate(model, training.first_pairs({cell: 150}))[cell]
    assert programs.estimate >= bar


def test_it_answers_the_published_programs_and_their_counterfactuals(model) -> None:
    for cell, (_, pairs) in training.evaluate(model, training.published_pairs()).items():
        assert pairs.estimate == 1, cell


def test_greedy_generation_stops_after_the_answer_in_a_left_padded_batch(model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    pairs = [pair for members in training.first_pairs({(1, 2): 3, (2, 5): 3, (3, 9): 3}).values() for pair in members]
    prompts = tokenizer([pair.original.text for pair in pairs], padding=True, return_tensors="pt")
    generated = model.generate(**prompts, max_new_tokens=5)[:, prompts["input_ids"].shape[1] :]
    assert generated.shape[1] == 2
    assert tokenizer.batch_decode(generated, skip_special_tokens=True) == [
        str(pair.expected_original) for pair in pairs
    ]
