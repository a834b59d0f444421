"""Validation at load: what a module does that causal runs cannot work with is a reason that names the module."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from debug import models
from debug.causal_tracing import run_causal_tracing_experiment
from debug.kinds import Argument, Module
from debug.models import LoadedModel, loading
from debug.models.validation import why_unpatchable

PROGRAM = "b = 1\na = b\n#a: "


@pytest.mark.parametrize("name", families.CONFIGS)
def test_every_family_is_found_to_be_patchable(name: str) -> None:
    assert why_unpatchable(families.family(name)) is None


class Wrapped(nn.Module):
    """A module whose output is changed."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *given: Argument, **named: Argument) -> object:
        return self.change(self.inner(*given, **named))


def attention_of_another_shape(hf: Module) -> None:
    """[token, row, width], as some models have it: the layer turns it back."""
    layer = hf.model.layers[1]
    attend = layer.self_attn

    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.o_proj = attend, attend.o_proj

        def forward(self, *given: Argument, **named: Argument) -> object:
            output, *rest = self.attend(*given, **named)
            return (output.transpose(0, 1), *rest)

    class Layer(type(layer)):
        def forward(self, hidden_states: Tensor, **named: Argument) -> Tensor:
            output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
            hidden_states = hidden_states + output.transpose(0, 1)
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    layer.self_attn, layer.__class__ = TokensFirst(), Layer


def mlp_that_is_not_used(hf: Module) -> None:
    class Layer(type(hf.model.layers[3])):
        def forward(self, hidden_states: Tensor, **named: Argument) -> Tensor:
            output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
            hidden_states = hidden_states + output
            self.mlp(self.post_attention_layernorm(hidden_states))
            return hidden_states

    hf.model.layers[3].__class__ = Layer


def mlp_that_does_not_run(hf: Module) -> None:
    class Layer(type(hf.model.layers[3])):
        def forward(self, hidden_states: Tensor, **named: Argument) -> Tensor:
            output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
            return hidden_states + output

    hf.model.layers[2].__class__ = Layer


def mlp_that_gives_a_dictionary(hf: Module) -> None:
    class Layer(type(hf.model.layers[0])):
        def forward(self, hidden_states: Tensor, **named: Argument) -> Tensor:
            output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
            hidden_states = hidden_states + output
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))["hidden"]

    hf.model.layers[0].__class__ = Layer
    hf.model.layers[0].mlp = Wrapped(hf.model.layers[0].mlp, lambda output: {"hidden": output})


def heads_that_do_not_fit(hf: Module) -> None:
    hf.config.num_attention_heads = 5  # of which its attention knows nothing


def heads_of_another_width(hf: Module) -> None:
    """Their outputs are padded before they are projected."""
    projection = hf.model.layers[2].self_attn.o_proj
    wider = nn.Linear(56, 48, bias=False)
    wider.weight.data[:, :48] = projection.weight.data
    wrapped: Any = Wrapped(wider, lambda output: output)  # a Module takes any attribute
    wrapped.in_features = 56
    hf.model.layers[2].self_attn.o_proj = wrapped
    wider.register_forward_pre_hook(lambda _, given: (nn.functional.pad(given[0], (0, 8)),))


BROKEN: dict[Callable[[Module], None], str] = {
    attention_of_another_shape: r"module model.layers.1.self_attn gave \[4, 12, 48\]; expected was \[12, 4, 48\]",
    mlp_that_is_not_used: r"module model.layers.3.mlp had its output changed, and the logits stayed as they were",
    mlp_that_does_not_run: r"the output of module model.layers.2.mlp cannot be read: ",
    mlp_that_gives_a_dictionary: r"module model.layers.0.mlp gave an object of type dict; expected was \[12, 4, 48\]",
    heads_that_do_not_fit: r"layers.0.self_attn.o_proj was given \[12, 4, 48\], which 5 heads do not divide evenly",
    heads_of_another_width: r"module model.layers.2.self_attn.o_proj was given \[12, 4, 48\], and reads 56",
}


def broken(change: Callable[[Module], None]) -> LoadedModel:
    model = families.of(copy.deepcopy(families.CONFIGS["llama"]), "llama")
    hf = type(model.hf)(model.config).eval()  # nnsight keeps the forward that a module has when it is wrapped
    hf.load_state_dict(model.hf.state_dict())
    change(hf)
    return models.wrap(hf, model.tokenizer, model_id="broken")


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_reason_names_the_module_and_what_it_did(change: Callable[[Module], None]) -> None:
    reason = why_unpatchable(broken(change))
    assert reason is not None
    assert re.search(BROKEN[change], reason), reason
    assert reason.startswith("model 'broken' of type 'llama' is unsupported in causal runs: ")
    assert reason.endswith("It can be asked in accuracy runs")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    model = families.family("llama")
    model.hf.save_pretrained(tmp_path / "llama")
    model.tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


@pytest.fixture(autouse=True)
def _unload() -> Iterator[None]:
    yield
    models.unload_all()


def test_a_model_is_validated_when_it_is_loaded_and_asked_all_the_same(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.from_files

    def with_a_fault(*given: Argument, **options: Argument) -> Module:
        hf = read(*given, **options)
        mlp_that_is_not_used(hf)
        return hf

    monkeypatch.setattr(loading, "from_files", with_a_fault)
    model = models.load(folder)
    with pytest.raises(models.UnsupportedArchitecture, match=r"layers\.3\.mlp had its output changed"):
        run_causal_tracing_experiment(model, [PROGRAM])
    assert [answer.error for _, answer in model.generate([PROGRAM], max_new_tokens=2)] == [None]


def test_a_model_that_is_handed_over_is_not_validated() -> None:
    """A training step's, again and again."""
    assert broken(mlp_that_is_not_used).unpatchable is None


def test_a_sound_model_is_patchable_when_it_is_loaded(folder: str) -> None:
    model = models.load(folder)
    model.require_patchable()
    assert model.unpatchable is None


def test_validation_is_three_passes_of_a_few_tokens() -> None:
    model, tokens = families.family("qwen3"), []
    hook = model.hf.register_forward_pre_hook(lambda _, __, k: tokens.append(k["input_ids"].numel()), with_kwargs=True)
    try:
        assert why_unpatchable(model) is None
    finally:
        hook.remove()
    assert len(tokens) == 3
    assert max(tokens) <= 48


def test_logits_that_are_not_finite_are_no_fault_of_the_architecture() -> None:
    """Runs say so themselves, with what may help."""
    model = families.family("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[3] = torch.nan
    assert why_unpatchable(model) is None
