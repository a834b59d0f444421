"""Products with packed weights, against PyTorch's own."""

import re
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import families
from debug import models
from debug.models.cpu import packed_linear
from debug.models.cpu.packed_linear import PackedLinear

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="nothing is packed without MKL")
PROGRAMS = [f"a = {n}\nb = a\n#b: " for n in range(5)] + [f"c = 1\na = {n}\nd = c\nb = a\n#d: " for n in range(5)]
DIGITS = [str(digit) for digit in range(10)]


def answers(model: models.LoadedModel) -> tuple[dict, torch.Tensor]:
    texts = dict(model.generate(PROGRAMS, max_new_tokens=6, batch_size=4))
    scores = dict(model.score(PROGRAMS, DIGITS, batch_size=4))
    return texts, torch.tensor([scores[n].log_probabilities for n in range(len(scores))])


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7, 1), (64,), (3, 5), (2, 33, 9), (300,), (0,)])
def test_products_are_those_of_float64(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias)
    given = torch.randn(*shape, 48)
    with torch.no_grad(), PackedLinear(layer) as packed:
        product = layer(given)
        assert nn.functional.linear(given, weight=layer.weight, bias=layer.bias).equal(product)
    assert len(packed.packed) == 1
    expected = layer.double()(given.double()).detach()
    torch.testing.assert_close(product, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", families.CONFIGS)
def test_models_answer_as_without_it(name, monkeypatch):
    made = []

    def watched(hf: nn.Module) -> PackedLinear:
        made.append(PackedLinear(hf))
        return made[-1]

    model = families.family(name)
    monkeypatch.setattr("debug.models.transformers_model.PackedLinear", watched)
    texts, scores = answers(model)
    text_only = ((name, module) for name, module in model.hf.named_modules() if not re.search("vision|modal", name))
    linear = {id(module.weight) for _, module in text_only if type(module) is nn.Linear}
    if torch.backends.mkl.is_available():
        assert [set(packed.packed) for packed in made] == [linear, linear]  # every layer, in both calls
    monkeypatch.setattr("debug.models.transformers_model.PackedLinear", lambda _: nullcontext())
    expected_texts, expected_scores = answers(model)
    assert texts == expected_texts
    torch.testing.assert_close(scores, expected_scores, atol=2e-4, rtol=1e-4)


def test_weights_that_changed_between_two_calls_count():
    model = families.family("llama")
    _, before = answers(model)
    weight = model.hf.model.layers[0].mlp.down_proj.weight
    try:
        weight.data.neg_()  # behind the back of PyTorch's version counter
        _, after = answers(model)
    finally:
        weight.data.neg_()
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(answers(model)[1], before)


def test_what_it_leaves_alone(monkeypatch):
    given = torch.randn(4, 8)
    for layer in (nn.Linear(8, 3).to(torch.bfloat16), nn.Linear(8, 3).to("meta")):
        assert not PackedLinear(layer).weights
    layer = nn.Linear(8, 3)
    with PackedLinear(layer) as packed:
        layer(given).sum().backward()
        assert layer.weight.grad is not None
        assert not packed.packed
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(packed_linear.psutil, "virtual_memory", lambda: memory(2 * layer.weight.nbytes - 2))
    assert not PackedLinear(layer).weights
