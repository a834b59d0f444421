"""Accuracy runs: what is measured, what the store then holds, and how a run ends that cannot go on."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import vocabularies
from debug import ExperimentRunner, generators, models, prompts, quick_experiment
from debug.core import ExperimentConfig
from debug.kinds import Argument, Json
from debug.models import Completion
from debug.programs import Program
from debug.runner import NothingScored, TooFewPrograms
from debug.tracking import LoggedRun, Store

SCRIPT = Path(__file__).parents[1] / "runs" / "accuracy.py"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A new database: MLflow takes seconds to make one, so it is made once."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    assert Store(f"sqlite:///{path}").client
    return path


@pytest.fixture
def uri(empty_store, tmp_path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


def depth(**fields: Argument) -> ExperimentConfig:
    """A small experiment on the published task; ``fields`` replace what it has."""
    defaults: dict[str, Argument] = {
        "name": "depth",
        "prompt_template": prompts.VARIABLE_BINDING,
        "program_generator": generators.make_variable_binding_program,
        "models": ["tiny"],
        "num_seqs": 6,
        "seq_lens": [5],
        "max_new_tokens": 2,
    }
    return quick_experiment(**defaults | fields)


def study(uri: str, name: str = "depth") -> LoggedRun:
    """The one study of an experiment."""
    found = Store(uri).find_runs(experiment=name, role="study")
    assert len(found) == 1
    return Store(uri).load_run(found["run_id"][0])


@dataclass(frozen=True)
class Scripted:
    """In the place of a model: completions as a function of the prompt."""

    answer: Callable[[str], str]
    id: str = "scripted"
    path: str = "nowhere"
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "transformers"
    quantization: None = None
    tokenizer = vocabularies.tokenizer("tiny")
    suited = models.AnswersPrompts.suited

    def rendered(self, prompt: str, *, chat: bool = False) -> str:
        return prompt

    def provenance(self) -> dict[str, str]:
        return {"debug.model_path": self.path}

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        chat: bool = False,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Completion]]:
        for index, prompt in enumerate(prompts):
            answer = self.answer(prompt)
            yield index, answer if isinstance(answer, Completion) else Completion(answer)


@pytest.fixture
def scripted(monkeypatch) -> Callable[[Callable[[str], str]], None]:
    """Answer with a function where a model would be loaded."""

    def use(answer: Callable[[str], str]) -> None:
        monkeypatch.setattr(models, "locate", lambda model_id: (model_id, {}))
        monkeypatch.setattr(models, "load", lambda model_id, **_: Scripted(answer, model_id))

    return use


# What is measured


def test_completions_are_those_of_the_model_asked_one_prompt_at_a_time(uri):
    def make_binding_of_any_length(seq_len, rng):
        return generators.make_variable_binding_program(rng.randint(1, seq_len + 1), rng)

    config = depth(program_generator=make_binding_of_any_length, num_seqs=12, seq_lens=[12])
    samples = ExperimentRunner(uri, batch_size=5).run(config).samples
    assert samples["prompt"].str.len_chars().n_unique() > 3  # so that batches are padded
    model = models.load("tiny")
    for sample in samples.iter_rows(named=True):
        [(_, alone)] = model.generate([sample["prompt"]], max_new_tokens=2)
        assert alone == Completion(sample["raw_output"], alone.ended)


def test_each_sample_records_its_own_seed_and_passed_over_seeds_are_counted(uri):
    result = ExperimentRunner(uri).run(depth(hops=[3], seed=100))
    seeds = sorted(result.samples["seed"])
    for sample in result.samples.iter_rows(named=True):
        program = generators.generate(generators.make_variable_binding_program, 5, sample["seed"])
        assert (sample["program"], sample["expected"], sample["hops"]) == (program.program, program.answer, 3)
        assert sample["chain"] == list(Program.parse(sample["program"]).chain.names)
    assert result.summary["cells"][0]["seeds_passed_over"] == seeds[-1] - 100 + 1 - 6 > 0


def test_no_answer_is_counted_apart_from_a_wrong_answer(uri, scripted):
    answers = iter(["right", "right", "right", "7000", "x = 3", ""])

    def answer(prompt: str) -> str:
        planned = next(answers)
        return f" {Program.parse(prompt).answer}\n#b: 9" if planned == "right" else planned

    scripted(answer)
    result = ExperimentRunner(uri).run(depth(models=["scripted"]))
    cell = result.summary["cells"][0]
    counts = [cell[name] for name in ("correct", "wrong", "no_answer", "errors", "accuracy")]
    assert counts == [3, 1, 2, 0, 0.5]
    assert [error for error in result.samples["error"] if error] == ["the model wrote nothing"]
    assert result.samples["parsed"].null_count() == 2
    assert "50.0% [18.8, 81.2] (n=6)" in str(result)


def test_an_answer_of_another_type_is_wrong_though_python_calls_it_equal(uri, scripted):
    scripted(lambda prompt: "1")
    config = depth(models=["scripted"], program_generator=lambda seq_len, rng: ("print(1 < 2)", True))
    assert ExperimentRunner(uri).run(config).summary["cells"][0]["wrong"] == 6


def test_programs_that_repeat_are_counted_and_warned_of(uri, scripted, caplog):
    scripted(lambda prompt: "6")
    config = depth(models=["scripted"], program_generator="range", num_seqs=40, seq_lens=[2])
    cell = ExperimentRunner(uri).run(config).summary["cells"][0]
    assert cell["distinct_programs"] == 9
    assert "9 different programs among 40 samples" in caplog.text


def test_a_program_that_the_prompt_solves_is_never_tested(uri, scripted):
    scripted(lambda prompt: "1")
    template = prompts.few_shot("variable_binding", seq_len=2, n=3, seed=0)
    config = depth(models=["scripted"], prompt_template=template, seq_lens=[2])
    result = ExperimentRunner(uri).run(config)
    assert min(result.samples["seed"]) >= 3
    assert result.summary["cells"][0]["seeds_passed_over"] >= 3
    assert not any(program in template for program in result.samples["program"])


# What the store holds


def test_a_run_is_a_study_with_one_nested_run_for_each_cell(uri):
    result = ExperimentRunner(uri).run(depth(hops=[1, None], seq_lens=[3, 5]))
    logged = study(uri)
    assert (logged.run_id, logged.status, logged.kind) == (result.run_id, "FINISHED", "accuracy")
    assert {"config.json", "summary.json", "accuracy.html", "accuracy.png"} <= set(logged.artifacts())
    assert logged.config["prompt_text"] == "{code}"
    assert logged.summary == result.summary
    assert {cell.run_id for cell in logged.children} == set(result.cell_run_ids.values())
    assert len(logged.children) == 4

    cell = Store(uri).load_run(result.cell_run_ids["tiny", None, 3])
    assert cell.name == "tiny · any hops · 3 lines"
    assert cell.params == {
        "model": "tiny",
        "label": "tiny",
        "few_shot": "0",
        "chat": "false",
        "scoring": "generate",
        "max_new_tokens": "2",
        "quantization": "none",
        "hops": "any",
        "seq_len": "3",
        "seed": "0",
        "num_seqs": "6",
        "generator": "variable_binding",
        "prompt_template": "VARIABLE_BINDING",
        "answer_parser": "variable_binding",
        "backend": "transformers",
        "dtype": "float32",
        "device": models.load("tiny").device,
    }
    assert cell.tags["debug.backend_reason"] == ExperimentRunner(uri).backend_reason
    row = next(row for row in result.summary["cells"] if row["run_id"] == cell.run_id)
    expected = ("accuracy", "accuracy_ci_low", "accuracy_ci_high", "num_samples", "samples_per_second")
    expected += ("num_errors", "num_no_answer")
    assert cell.metrics == pytest.approx({name: row[name] for name in expected})
    assert Path(cell.tags["debug.model_path"]).name == "tiny"
    assert sorted(cell.samples["seed"]) == list(range(6))
    assert len(result.samples) == 24


def test_a_model_in_a_folder_is_named_by_the_folder(uri, tmp_path):
    folder = tmp_path / "mine"
    folder.symlink_to(models.locate("tiny")[0])
    result = ExperimentRunner(uri).run(depth(models=[str(folder)], num_seqs=1))
    models.unload(str(folder))
    cell = Store(uri).load_run(result.cell_run_ids[str(folder), None, 5])
    assert cell.params["model"] == "mine"


def test_plot_and_errors_are_those_of_the_latest_run_in_the_store(uri, scripted):
    scripted(lambda prompt: str(Program.parse(prompt).answer))
    ExperimentRunner(uri).run(depth(models=["scripted"]))
    wrong = iter(["11", "22", "22", "", "33", "right"])
    scripted(lambda prompt: next(wrong))
    ExperimentRunner(uri).run(depth(models=["scripted"]))

    fresh = ExperimentRunner(uri)
    chart = fresh.plot("depth").to_dict()
    [rows] = chart["datasets"].values()
    assert [row["accuracy"] for row in rows] == [0.0]
    errors = fresh.analyze_errors("depth")
    assert errors["times_given"].to_list()[:2] == [2, 2]
    assert errors["parsed"].to_list()[:2] == [22, 22]
    assert sorted(errors["outcome"]) == ["no answer"] * 2 + ["wrong"] * 4
    for name in ("plot", "analyze_errors"):
        with pytest.raises(ValueError, match="no accuracy run of experiment 'breadth'"):
            getattr(fresh, name)("breadth")


# How a run ends that cannot go on


def statuses(uri: str) -> dict[str, str]:
    logged = study(uri)
    return {run.name: run.status for run in [logged, *logged.children]}


def outcomes(uri: str) -> dict[str, Json]:
    """The counts of the one cell, and its samples as they are read back."""
    [cell] = study(uri).children
    summary = cell.summary
    counts = {name: summary[name] for name in ("correct", "wrong", "no_answer", "errors", "num_samples")}
    return counts | {"cell": cell, "samples": cell.samples}


def test_a_seed_at_which_the_generator_fails_is_recorded_and_the_run_goes_on(uri, scripted):
    def make_sometimes(seq_len, rng):
        draw = rng.randint(3)
        if draw == 0:
            raise RuntimeError("no idea")
        return ("#a: ", 1.5) if draw == 1 else ("a = 1\n#a: ", 1)

    scripted(lambda prompt: "1")
    result = ExperimentRunner(uri).run(depth(models=["scripted"], program_generator=make_sometimes, num_seqs=20))
    found = outcomes(uri)
    assert found["correct"] == found["num_samples"] == 20 - found["errors"] < 20
    assert (found["wrong"], found["no_answer"], found["cell"].metrics["accuracy"]) == (0, 0, 1.0)
    failed = found["samples"].filter(pl.col("error").is_not_null())
    assert failed.height == found["errors"]
    assert failed["correct"].null_count() == failed.height  # neither right nor wrong
    assert sorted(found["samples"]["seed"]) == list(range(20))
    texts = " ".join(failed["error"])
    assert "RuntimeError: no idea" in texts
    assert "returned ('#a: ', 1.5)" in texts
    assert f"{found['errors']}" in str(result).splitlines()[1]
    assert "errors: generator failed at a seed, seq_len 5: RuntimeError: no idea" in str(result)
    errors = ExperimentRunner(uri).analyze_errors("depth")
    assert set(errors["outcome"]) == {"error"}
    assert errors.height == found["errors"]


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "made",
    [
        *(None, 3, ("a = 1\n#a: ",), ("", 1), (" \n", 1), (b"a = 1", 1), ("a = \ud800", 1), Unspeakable()),
        *(("a = 1", None), ("a = 1", 1.5), ("a = 1", float("nan")), ("a = 1", 10**6000), ("a = 1", "\ud800")),
        *(("a = 1", 1, 3), ("a = 1", 1, {"hops": "many"}), ("a = 1", 1, {"chain": [Unspeakable()]}), ("a", 1, {}, 4)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_whatever_a_generator_returns_is_an_error_of_its_seed_and_the_run_goes_on(uri, scripted, made):
    def make_some(seq_len, rng):
        return made if rng.randint(2) else ("a = 1\n#a: ", 1, {"hops": np.int64(1), "chain": ("a",)})

    scripted(lambda prompt: "1")
    ExperimentRunner(uri).run(depth(models=["scripted"], program_generator=make_some, num_seqs=8))
    found = outcomes(uri)
    assert 0 < found["errors"] < 8
    assert found["correct"] == found["num_samples"] == 8 - found["errors"]
    assert set(found["samples"].filter(pl.col("correct"))["hops"]) == {1}
    assert "expected (program, answer) or" in " ".join(found["samples"]["error"].drop_nulls())


@pytest.mark.parametrize(
    "parsed", [2.5, 10**6000, "\ud800", [1], np.int64(1), Unspeakable()], ids=lambda it: type(it).__name__
)
def test_whatever_a_parser_returns_is_an_error_of_its_sample_and_the_run_goes_on(uri, scripted, parsed):
    answers = iter([1, parsed, None] * 2)
    scripted(lambda prompt: "1")
    ExperimentRunner(uri).run(depth(models=["scripted"], answer_parser=lambda text: next(answers)))
    found = outcomes(uri)
    assert (found["errors"], found["num_samples"], found["no_answer"]) == (2, 4, 2)
    assert "answer parser returned" in " ".join(found["samples"]["error"].drop_nulls())


def test_a_parser_that_fails_on_one_text_is_an_error_of_that_sample(uri, scripted):
    texts = iter(["1", "one", "2", "", "3", "x"])
    scripted(lambda prompt: next(texts))
    ExperimentRunner(uri).run(depth(models=["scripted"], answer_parser=int))
    found = outcomes(uri)
    assert (found["errors"], found["num_samples"]) == (3, 3)
    of_one = found["samples"].filter(pl.col("raw_output") == "one")
    assert "answer parser failed on 'one': ValueError" in of_one["error"][0]
    assert of_one["correct"][0] is None


def test_an_output_that_does_not_end_has_no_last_number(uri, scripted):
    texts = iter(
        [
            Completion("First x is 3, then", ended=False),
            Completion("Answer: 3\n\nHere is another", ended=False),
            Completion("so it is 3", ended=True),
        ]
        * 2
    )
    scripted(lambda prompt: next(texts))
    config = depth(models=["scripted"], prompt_template=prompts.CHAIN_OF_THOUGHT, max_new_tokens=5)
    result = ExperimentRunner(uri).run(config)
    assert result.samples["parsed"].to_list() == [None, 3, 3] * 2
    assert outcomes(uri)["no_answer"] == 2
    assert "no end after 5 tokens" in result.samples["error"][0]
    assert "2 unparseable: no end after 5 tokens" in str(result)


def test_a_prompt_longer_than_the_models_window_is_an_error_of_that_sample(uri):
    def make_of_two_lengths(seq_len, rng):
        return generators.make_variable_binding_program(int(rng.choice([5, 140])), rng)

    ExperimentRunner(uri).run(depth(program_generator=make_of_two_lengths, num_seqs=12))
    found = outcomes(uri)
    assert 0 < found["errors"] < 12
    assert found["correct"] == found["num_samples"] == 12 - found["errors"]
    [text] = {error.split(" has ")[1].partition(" tokens")[2] for error in found["samples"]["error"] if error}
    assert text == ", 2 are to follow, and model 'tiny' reads 512"


@pytest.mark.parametrize("scoring", ["generate", "logits"])
def test_logits_that_are_not_finite_are_errors_and_no_accuracy_and_the_study_goes_on(uri, scoring, monkeypatch, caplog):
    """Once a study that FINISHED with 0.0% ("the model wrote nothing"), and one that an IndexError ended."""
    tiny = models.load("tiny")
    hf = copy.deepcopy(tiny.hf)
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.mul_(3e4)
    half = models.wrap(hf.half(), tiny.tokenizer, model_id="half", dtype="float16")
    monkeypatch.setattr(models, "locate", lambda model_id: (model_id, {}))
    monkeypatch.setattr(models, "load", lambda model_id, **_: {"half": half, "tiny": tiny}[model_id])
    result = ExperimentRunner(uri).run(depth(models=["half", "tiny"], scoring=scoring))
    broken, sound = result.summary["cells"]
    assert (broken["accuracy"], broken["num_samples"], broken["num_errors"]) == (None, 0, 6)
    assert (sound["accuracy"], sound["num_samples"], sound["num_errors"]) == (1.0, 6, 0)
    assert "half" in str(result)
    assert " 0.0%" not in str(result)
    cell = Store(uri).load_run(broken["run_id"])
    assert not {"accuracy", "accuracy_ci_low"} & cell.metrics.keys()
    assert set(cell.samples["error"]) == {half.not_finite}
    assert "logits of model 'half' (float16) are not finite; numbers above 65,504 overflow" in caplog.text
    assert result.summary["comparisons"] == []
    with pytest.raises(NothingScored, match=r"logits of model 'half' \(float16\) are not finite"):
        ExperimentRunner(uri).run(depth(name="alone", models=["half"], scoring=scoring))
    assert study(uri, "alone").status == "FAILED"


def test_a_model_without_a_chat_template_is_not_asked(uri):
    with pytest.raises(NothingScored, match=r"none of 6 samples .* model 'tiny' has no chat template"):
        ExperimentRunner(uri).run(depth(chat=True))


def test_a_generator_that_always_raises_fails_the_run_and_leaves_the_cells_before_it(uri, scripted):
    def make_nothing(seq_len, rng):
        raise RuntimeError("no idea")

    scripted(lambda prompt: "1")
    with pytest.raises(NothingScored, match=r"none of 6 samples .* RuntimeError: no idea"):
        ExperimentRunner(uri).run(depth(models=["scripted"], program_generator=make_nothing))
    assert sorted(statuses(uri).values()) == ["FAILED", "FINISHED"]
    assert "no idea" in study(uri).tags["debug.error"]
    assert "accuracy" not in study(uri).children[0].metrics


def test_a_search_that_finds_too_few_programs_says_how_many(uri, scripted, monkeypatch):
    monkeypatch.setattr("debug.generators.registry.MAX_SEEDS", 10)
    monkeypatch.setattr("debug.runner.programs.MAX_SEEDS", 10)
    scripted(lambda prompt: "1")
    with pytest.raises(TooFewPrograms, match=r"found \d of 6 programs with 5 hops on 5 lines in 10 seeds from 0 on"):
        ExperimentRunner(uri).run(depth(models=["scripted"], hops=[None, 5]))
    assert sorted(statuses(uri).values()) == ["FAILED", "FAILED", "FINISHED"]


def test_a_run_that_is_interrupted_keeps_the_samples_so_far(uri, scripted):
    answers = iter(range(8))

    def answer(prompt: str) -> str:
        try:
            return str(next(answers))
        except StopIteration:
            raise KeyboardInterrupt from None

    scripted(answer)
    with pytest.raises(KeyboardInterrupt):
        ExperimentRunner(uri).run(depth(models=["scripted"], seq_lens=[2, 3]))
    assert sorted(statuses(uri).values()) == ["FINISHED", "KILLED", "KILLED"]
    assert sorted(len(cell.samples) for cell in study(uri).children) == [2, 6]
    assert len(study(uri).summary["cells"]) == 1


def test_a_parser_that_always_raises_fails_the_run(uri, scripted):
    scripted(lambda prompt: "one")
    with pytest.raises(NothingScored, match="answer parser failed on 'one'"):
        ExperimentRunner(uri).run(depth(models=["scripted"], answer_parser=int))
    assert statuses(uri)[study(uri).name] == "FAILED"


def test_a_prompt_that_the_model_has_no_words_for_is_an_error(uri):
    config = depth(program_generator=generators.make_range_program, prompt_template=prompts.RANGE_TRACKING)
    with pytest.raises(NothingScored, match="model 'tiny' has no token for part of this prompt"):
        ExperimentRunner(uri).run(config)
    assert statuses(uri)[study(uri).name] == "FAILED"


def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ValueError, match="batch_size is 0"):
        ExperimentRunner(uri, batch_size=0)
    with pytest.raises(models.ModelNotFound, match="no_such_folder"):
        ExperimentRunner(uri).run(depth(models=["tiny", "./no_such_folder"]))
    assert not (tmp_path / "mlflow.db").exists()


# Public calls and the script


def test_models_stay_until_they_are_unloaded(uri):
    experiments = ExperimentRunner(uri)
    experiments.preload_models(["tiny"])
    assert "tiny" in experiments.list_loaded_models()
    experiments.run(depth(num_seqs=1))
    assert "tiny" in experiments.list_loaded_models()
    experiments.run(depth(num_seqs=1), no_cache=True)
    assert "tiny" not in experiments.list_loaded_models()
    experiments.unload_model("tiny")
    experiments.unload_all_models()


def call(uri: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--tracking-uri", uri, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_prints_intervals_run_ids_and_where_to_look(uri):
    done = call(uri, "--hops", "1", "2", "--num-seqs", "5", "--name", "depth")
    assert done.returncode == 0, done.stderr
    logged = study(uri)
    for text in ("(n=5)", logged.run_id, uri, "make dashboard", *(cell.run_id for cell in logged.children)):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seq-lens", "3", "--hops", "4"], "a program of 3 lines has 1 to 3 hops"),
        (["--generator", "no_such"], "unknown generator 'no_such'"),
        (["--prompt", "no code"], "exactly once"),
    ],
)
def test_the_script_answers_a_mistake_with_one_line(uri, options, message):
    done = call(uri, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_leaves_a_valid_store(uri, tmp_path):
    command = [sys.executable, str(SCRIPT), "--tracking-uri", uri, "--num-seqs", "1000", "--name", "depth"]
    process = subprocess.Popen([*command, "--seq-lens", "8"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    files = "artifacts/*/artifacts/samples.jsonl"
    while not any(file.stat().st_size for file in tmp_path.glob(files)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    assert set(statuses(uri).values()) == {"KILLED"}
    [cell] = study(uri).children
    assert len(cell.samples) > 0
    for line in cell.artifact("samples.jsonl").read_text().splitlines():
        json.loads(line)
