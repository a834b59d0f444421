"""Pairs that are a user's turn: rendered by a chat template, spans found inside of it, and run as every other pair."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import families
import reference
import vocabularies
from debug import models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_tracing import run_causal_tracing_experiment
from debug.errors import InputError
from debug.kinds import Json, Tokenizer
from debug.plan import Plan
from debug.programs import TextPair, pair_from_record
from debug.prompts.chat import turn
from debug.rerun import rerun
from debug.token_analyzer import PairError, analyze, analyze_pair
from debug.tracking import Store, load_run
from debug.tracking.export import export_run, import_run
from present import present
from test_causal_tracing import assert_map_is

MARKS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>\n{% endif %}"
)
TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
INST = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"  # ends in no white space
PAIR: dict[str, Json] = {
    "original": "a = 1\nb = 2\nc = a\nd = c\n#d: ",
    "counterfactual": "b = 3\na = 4\nc = a\nd = c\n#d: ",
    "expected_original": 1,
    "expected_counterfactual": 4,
    "spans": {"reference": [16, 17], "query": [25, 26]},
}


def chatting(template: str | None, base: str = "tiny", bos: str | None = None) -> Tokenizer:
    loaded = families.family("qwen3").tokenizer if base == "tiny" else vocabularies.tokenizer(base)
    backend = loaded.backend_tokenizer
    tokenizer = type(loaded)(tokenizer_object=type(backend).from_str(backend.to_str()))
    tokenizer.eos_token = tokenizer.pad_token = loaded.eos_token or "<|im_end|>"
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    if bos is not None:
        vocabularies._with_bos(tokenizer, bos)
    tokenizer.chat_template = template
    return tokenizer


def chatty(template: str | None) -> models.LoadedModel:
    """A random-weight model whose tokenizer has a chat template."""
    hf, tokenizer = copy.deepcopy(families.family("qwen3").hf), chatting(template)
    torch.manual_seed(0)
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return models.wrap(hf, tokenizer, model_id="chatty")


def text_pair(**fields: Json) -> TextPair:
    pair = pair_from_record(PAIR | fields)
    assert isinstance(pair, TextPair)
    return pair


@pytest.mark.parametrize(
    ("template", "base"),
    [(CHATML, "tiny"), (INST, "tiny"), (CHATML, "characters"), (TRIMMED, "characters"), (INST, "characters")],
)
def test_spans_are_found_in_the_turn(template: str, base: str) -> None:
    tokenizer = chatting(template, base)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": PAIR["original"]}], tokenize=False, add_generation_prompt=True
    )
    found = analyze(tokenizer, text_pair().original, chat=True)
    assert found.prompt == asked == "".join(found.tokens)
    assert found.token_ids == tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert [found.tokens[at] for at in found.roles["reference"]] == ["a"]
    assert [found.tokens[at] for at in found.roles["query"]] == ["d"]
    place = found.prompt.index("c = a") + 4
    assert len("".join(found.tokens[: found.roles["reference"][0]])) == place
    assert found.roles["final"] == [len(found.tokens) - 1]
    assert found.tokens[0] == MARKS[0]


def test_no_token_is_put_before_what_the_template_wrote() -> None:
    tokenizer = chatting(CHATML, "characters", bos=MARKS[1])
    assert analyze(tokenizer, text_pair().original).tokens[0] == MARKS[1]
    assert analyze(tokenizer, text_pair().original, chat=True).tokens[0] == MARKS[0]
    both = analyze_pair(tokenizer, text_pair(), chat=True)
    behind = tokenizer(f"{both.original.prompt}4", add_special_tokens=False)["input_ids"]
    assert both.answer_tokens[0] == behind[-1]


def test_a_turn_that_occurs_in_the_template_as_well_is_found_where_it_is_the_turn() -> None:
    template = "Answer a question: {{ messages[0]['content'] | trim }}<|im_end|>"
    tokenizer = chatting(template, "characters")
    found = turn(tokenizer, "  question ")
    assert found.text[slice(*found.held)] == "question"
    assert (found.held[0], found.stripped) == (19, 2)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "does not hold the prompt's text exactly once"),
        ("{{ messages[0]['content'] | upper }}", "does not hold the prompt's text exactly once"),
        ("<|im_start|>", "does not hold the prompt's text exactly once"),
        ("{{ raise_exception('no') }}", "refuses the prompt: no"),
        ("{{ messages[1]['content']['text'] }}", "refuses the prompt"),
    ],
)
def test_a_template_in_which_the_turn_cannot_be_found_is_a_sentence(template: str | None, message: str) -> None:
    tokenizer = chatting(template, "characters")
    with pytest.raises(PairError, match=message) as caught:
        analyze(tokenizer, text_pair().original, chat=True)
    assert "\n" not in str(caught.value)


def test_white_space_that_the_template_strips_is_no_role() -> None:
    tokenizer = chatting(TRIMMED, "characters")
    record = {"original": "\n a = 1 ", "counterfactual": "\n a = 2 ", "expected_counterfactual": 2}
    found = analyze(tokenizer, text_pair(**record, spans={"value": [6, 8]}).original, chat=True)
    assert [found.tokens[at] for at in found.roles["value"]] == ["1"]
    with pytest.raises(PairError, match="no token covers space"):
        analyze(tokenizer, text_pair(**record, spans={"space": [0, 2]}).original, chat=True)


@pytest.mark.parametrize("component", ["residual_stream", "attention_heads"])
def test_every_square_is_what_a_patch_by_hand_gives(component: str) -> None:
    model = chatty(CHATML)
    [result] = run_causal_tracing_experiment(model, [PAIR], component, require_correct=False, chat=True).results
    causal_map = present(result.causal_map)
    ids = [model.encode(str(PAIR[name]), chat=True) for name in ("original", "counterfactual")]
    assert result.prompt == model.rendered(str(PAIR["original"]), chat=True)
    source = {component: reference.run(model, torch.tensor(ids[1]), component)[1]}
    assert_map_is(causal_map, 20, lambda sites: reference.patch(model, torch.tensor(ids[0]), sites, source))
    assert [causal_map.tokens[at] for at in causal_map.targets["reference"]] == ["a"]


def test_a_study_of_turns_is_logged_repeated_and_exported(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: chatty(INST))
    monkeypatch.setattr(models, "locate", lambda *_: None)
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n{json.dumps(PAIR | {'spans': {'all_of_it': [0, 28]}})}\n")
    config = CausalConfig(models=["chatty"], pairs=str(path), chat=True, positions="targets", require_correct=False)
    study = CausalExperimentRunner(uri).run(config)
    run = load_run(study.cells[0].run_id, uri)
    assert run.params["chat"] == "true"
    assert Plan(**run.config["plan"]).chat
    assert len(run.maps) == 2, run.samples["error"].to_list()
    (repeated,) = rerun(run.run_id, tracking_uri=uri)
    assert present(repeated.verdict).outcome == "identical", repeated
    export_run(run, tmp_path / "out")
    other_uri = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    run_id, _ = import_run(tmp_path / "out", Store(other_uri))
    again = load_run(run_id, other_uri)
    assert again.samples["prompt"].to_list() == run.samples["prompt"].to_list()
    assert all(prompt.endswith(MARKS[1]) for prompt in run.samples["prompt"])
    for one, other in zip(run.maps, again.maps, strict=True):
        np.testing.assert_array_equal(one.z_patched, other.z_patched)


def test_a_turn_that_the_model_has_no_token_for_when_it_is_stripped_is_skipped() -> None:
    """The bundled vocabulary has no colon without its space."""
    with pytest.raises(InputError, match="has no token for part of this prompt"):
        run_causal_tracing_experiment(chatty(TRIMMED), [PAIR], chat=True)
    with pytest.raises(InputError, match="has no token for part of this prompt"):
        chatty(TRIMMED).encode(str(PAIR["original"]), chat=True)


def test_a_model_without_a_chat_template_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="model 'tiny' has no chat template; only instruction-tuned models do"):
        run_causal_tracing_experiment("tiny", [PAIR], chat=True)
    with pytest.raises(InputError, match="chat is 'yes'; expected true or false"):
        Plan(chat="yes")  # type: ignore[arg-type]  (what is refused)


def test_smollm2s_own_template() -> None:
    """It writes a system turn before the user's."""
    tokenizer = vocabularies.tokenizer("smollm2")
    found = analyze(tokenizer, text_pair().original, chat=True)
    assert found.prompt.startswith("<|im_start|>system\n")
    assert found.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "".join(found.tokens[at] for at in found.roles["reference"]) == " a"
    assert found.roles["reference"][0] > 20
