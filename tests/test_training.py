"""The training programs, the packing of queries, and a run that goes on where it stopped."""

import json
import runpy
import signal
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from debug import models, training
from debug.commands import train
from debug.errors import InputError
from debug.generators import generate, make_variable_binding_program
from debug.programs import Program
from debug.tracking import Store, find_runs, load_run
from debug.training import Settings, State

SCRIPT = Path(__file__).parents[1] / "runs" / "train_bundled_model.py"

SMALL = Settings(
    steps=6,
    naming_steps=3,
    tokens_per_step=256,
    n_layers=2,
    log_every=1,
    evaluate_every=3,
    save_every=1,
    warmup_steps=2,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def held_out() -> dict:
    return training.first_pairs({(None, 2): 50, (None, 5): 20, (3, 5): 20})


def texts_of(programs: training.Programs) -> list[str]:
    """The assignment lines as text."""
    tokenizer = training.make_tokenizer()
    return [str(tokenizer.decode(row)) for row in programs.tokens]


# ---------------------------------------------------------------------------------------------------------- tokenizer


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_tokens_give_the_text_back_and_know_where_they_stand(seq_len: int, seed: int) -> None:
    text = generate(make_variable_binding_program, seq_len, seed).program
    encoded = training.make_tokenizer()(text, return_offsets_mapping=True)
    assert training.make_tokenizer().decode(encoded["input_ids"]) == text
    words = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "".join(words) == text
    assert words == [training.VOCABULARY[token] for token in encoded["input_ids"]]
    assert len(words) == 4 * seq_len + 3


@pytest.mark.parametrize("text", ["A = 1\n#A: ", "a = 1 \n#a: ", "a += 1\n#a: ", "é"])
def test_characters_outside_the_vocabulary_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        training.make_tokenizer()(text)


# --------------------------------------------------------------------------------------------------- training programs


@pytest.mark.parametrize("seq_len", [1, 2, 5, 17, 26])
@pytest.mark.parametrize("depth_power", [0.0, 3.0])
def test_sampled_programs_are_programs_and_know_their_answers(seq_len: int, depth_power: float) -> None:
    programs = training.sample_programs(np.random.default_rng(1), 50, seq_len, 0.3, depth_power)
    for row, text in enumerate(texts_of(programs)):
        for line in range(seq_len):
            program = Program.parse(f"{text}#{string.ascii_lowercase[programs.lhs[row, line]]}: ")
            assert program.chain.root.line == programs.root[row, line]
            assert (program.answer, program.hops) == (programs.value[row, line], programs.depth[row, line])


def test_sampler_draws_the_generators_distribution() -> None:
    """Which line reads which, letters and digits: sampler and generator do not differ more than two samples do."""

    def traits(texts: list[str]) -> list[Counter]:
        programs = [Program.parse(text) for text in texts]
        return [
            Counter(tuple(line.source for line in program.assignments) for program in programs),
            Counter(line.lhs for program in programs for line in program.assignments),
            Counter(line.rhs for program in programs for line in program.assignments if line.source is None),
            Counter(program.assignments[-1].ref_depth for program in programs),
        ]

    sampled = texts_of(training.sample_programs(np.random.default_rng(3), 6000, 4))
    ours = traits([text + f"#{text[0]}: " for text in sampled])
    published = traits([generate(make_variable_binding_program, 4, seed).program for seed in range(6000)])
    for trait, (left, right) in enumerate(zip(ours, published, strict=True)):
        common = [key for key in left | right if left[key] + right[key] >= 20]
        table = [[counter[key] for key in common] for counter in (left, right)]
        assert np.asarray(stats.chi2_contingency(table)[1]) > 0.001, trait


def test_every_depth_and_every_root_is_queried_equally_often() -> None:
    programs = training.sample_programs(np.random.default_rng(0), 400, 17)
    queries = training.sample_queries(np.random.default_rng(1), programs, 200)
    depths = np.take_along_axis(programs.depth, queries, axis=1)
    roots = np.take_along_axis(programs.root, queries, axis=1)
    for row in range(len(queries)):
        if {1, 2, 3, 4} <= set(programs.depth[row]):
            assert np.allclose(np.bincount(depths[row], minlength=5)[1:5] / 200, 0.25, atol=0.15)
    assert depths.max() == 4
    row = int(np.argmax((programs.depth == 1).sum(axis=1)))
    asked = Counter(roots[row][depths[row] == 1])
    assert set(asked) == set(np.flatnonzero(programs.depth[row] == 1))


def test_held_out_programs_and_their_counterfactuals_are_never_trained_on(held_out: dict) -> None:
    reserved = training.reserved_texts(pair for pairs in held_out.values() for pair in pairs)
    forbidden = {
        program.text.rpartition("\n")[0] + "\n"
        for pairs in held_out.values()
        for pair in pairs
        for program in (pair.original, pair.counterfactual)
    }
    assert len(reserved) == len(forbidden)
    dropped, lengths = 0, Counter()
    tokenizer = training.make_tokenizer()
    for step in range(60):
        batch, seq_len, n = training.draw_batch(Settings(), State(step=step, stage=1), reserved)
        dropped += n
        lengths[seq_len] += 1
        texts = {str(tokenizer.decode(row[: 4 * seq_len])) for row in batch.input_ids}
        assert not texts & forbidden
    assert dropped > 0
    assert set(lengths) == set(range(2, 9))


def test_published_programs_are_held_out() -> None:
    for (hops, seq_len), (pair,) in training.published_pairs().items():
        assert (pair.original.hops, pair.original.seq_len) == (hops, seq_len)
        assert pair.seed is not None
        assert pair.seed < training.HELD_OUT[None, seq_len]


# ------------------------------------------------------------------------------------------------------------- packing


def test_a_query_in_a_pack_is_computed_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(0)
    programs = training.sample_programs(rng, 3, 6)
    queries = training.sample_queries(rng, programs, 4)
    batch = training.pack(programs, queries)
    model = training.new_model(0, n_layers=3)
    tokenizer = training.make_tokenizer()
    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.mask, use_cache=False
        ).logits
        program = answer = ""
        for row, text in enumerate(texts_of(programs)):
            for query in range(4):
                program = f"{text}#{string.ascii_lowercase[programs.lhs[row, queries[row, query]]]}: "
                alone = model(torch.tensor([tokenizer(program)["input_ids"]])).logits[0, -1]
                torch.testing.assert_close(packed[row, batch.colon_positions][query], alone, atol=1e-5, rtol=1e-5)
                answer = training.VOCABULARY[batch.answers[row, query]]
                assert answer == str(Program.parse(program).answer)
            alone = model(torch.tensor([tokenizer(program + answer)["input_ids"]])).logits[0, -1]
            torch.testing.assert_close(packed[row, -1], alone, atol=1e-5, rtol=1e-5)


def test_the_naming_loss_names_variables_and_never_values() -> None:
    programs = training.sample_programs(np.random.default_rng(0), 5, 4)
    batch = training.pack(programs, np.array([[0, 3]] * 5))
    for row, text in enumerate(texts_of(programs)):
        names = [training.VOCABULARY[token] for token in batch.names[row]]
        lhs = [line[0] for line in text.splitlines()]
        assert names == [*lhs, lhs[0], lhs[3]]
        read = [training.VOCABULARY[token] for token in batch.input_ids[row, batch.name_positions]]
        assert read == [*(line[-1] for line in text.splitlines()), ": ", ": "]


def test_the_naming_loss_reads_newlines_where_asked_for() -> None:
    programs = training.sample_programs(np.random.default_rng(0), 5, 4)
    rhs, newline = (training.pack(programs, np.array([[0, 3]] * 5), site) for site in ("rhs", "newline"))
    assert newline.names.equal(rhs.names)
    for row in range(5):
        read = [training.VOCABULARY[token] for token in newline.input_ids[row, newline.name_positions]]
        assert read == [*"\n\n\n\n", ": ", ": "]


def test_without_a_naming_site_training_begins_with_answers_and_never_names(tmp_path: Path) -> None:
    settings = replace(SMALL, steps=4, naming_site="none")
    steps = [metrics for _, metrics in training.train(settings, tmp_path, {}) if "stage" in metrics]
    assert all(metrics["stage"] >= 1 and "loss/naming" not in metrics for metrics in steps)
    assert steps
    with pytest.raises(ValueError, match="naming_site is 'lhs'; expected one of rhs, newline, none"):
        replace(SMALL, naming_site="lhs")


def test_ordinary_weights_are_those_of_transformers() -> None:
    ordinary = training.new_model(0, 2, initialization="ordinary")
    torch.manual_seed(0)
    again = type(ordinary)(ordinary.config)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in ordinary.state_dict().items())
    query, key = (ordinary.state_dict()[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qk")
    mimetic = training.new_model(0, 2).state_dict()
    rotated = mimetic["model.layers.1.self_attn.q_proj.weight"] @ training.name_rotation(128)
    assert torch.equal(mimetic["model.layers.1.self_attn.k_proj.weight"], rotated)
    assert not torch.allclose(key, query @ training.name_rotation(128), atol=1e-2)


def test_naming_is_off_in_the_last_stage() -> None:
    assert training.CURRICULUM[0].naming
    assert not training.CURRICULUM[-1].naming
    assert training.CURRICULUM[-1].max_lines == training.LENGTHS[-1]


# ------------------------------------------------------------------------------------------------------------ the loop


def weights(folder: Path) -> bytes:
    return (folder / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, held_out: dict) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    assert [step for step, _ in training.train(SMALL, folder, held_out)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    return folder


@pytest.mark.parametrize("save_every", [1, 2])
def test_a_killed_run_that_goes_on_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, held_out: dict, uninterrupted: Path, save_every: int
) -> None:
    settings = replace(SMALL, save_every=save_every)
    run = training.train(settings, tmp_path, held_out)
    assert isinstance(run, Generator)
    while next(run)[0] < 4:
        pass
    run.close()  # as after a kill: nothing is saved on the way out
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss/ans')
    list(training.train(settings, tmp_path, held_out))
    assert weights(tmp_path) == weights(uninterrupted)
    assert list(training.history(tmp_path)) == list(training.history(uninterrupted))


def test_what_a_kill_or_a_full_disk_cuts_off_leaves_the_file_that_was_there(
    tmp_path: Path, held_out: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(training.train(replace(SMALL, steps=3), tmp_path, held_out))
    before = {name: (tmp_path / name).read_bytes() for name in ("settings.json", "metrics.jsonl")}

    def cut(self: Path, text: str, *_: str) -> int:
        with self.open("w") as file:
            file.write(text[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space"):
        list(training.train(SMALL, tmp_path, held_out))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, held_out: dict) -> None:
    first = training.train(SMALL, tmp_path, held_out)
    next(first)
    with pytest.raises(InputError, match="another process trains in"):
        next(training.train(SMALL, tmp_path, held_out))
    assert len(list(first)) == 8


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, held_out: dict, uninterrupted: Path) -> None:
    settings = replace(SMALL, save_every=100)

    def interrupt() -> None:
        for step, _ in training.train(settings, tmp_path, held_out):
            if step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="step 2"):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    list(training.train(settings, tmp_path, held_out))
    assert weights(tmp_path) == weights(uninterrupted)


def test_training_lowers_the_loss(tmp_path: Path, held_out: dict) -> None:
    settings = replace(SMALL, steps=40, naming_steps=1, tokens_per_step=512, evaluate_every=40)
    curve = [
        metrics["loss/answer"]
        for _, metrics in training.train(settings, tmp_path, held_out)
        if "loss/answer" in metrics
    ]
    assert np.mean(curve[-5:]) < 0.8 * np.mean(curve[:5])


def test_checkpoints_are_folders_that_transformers_loads(uninterrupted: Path) -> None:
    first, last = (training.checkpoint_folder(uninterrupted, step) for step in (0, 6))
    program = generate(make_variable_binding_program, 5, 0)
    assert training.answered(training.load_weights(last), [program.program], [int(program.answer)]).shape == (1,)
    initial = training.load_weights(first).state_dict()
    assert all(torch.equal(initial[name], value) for name, value in training.new_model(0, 2).state_dict().items())


def test_learning_rate_warms_up_stays_and_ends_at_zero() -> None:
    settings = Settings(steps=1000, warmup_steps=100, naming_steps=50)
    rates = [training.learning_rate(settings, step) for step in range(1000)]
    assert rates[0] == rates[50] == pytest.approx(1e-5)
    assert rates[150:700] == [1e-3] * 550
    assert rates[-1] == pytest.approx(1e-3 / 300)
    assert rates[700:] == sorted(rates[700:], reverse=True)


def test_the_script_logs_the_whole_trajectory_also_of_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "HELD_OUT", {(None, 5): 20, (2, 5): 20})
    monkeypatch.setattr(training, "Settings", lambda **given: replace(SMALL, **given))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ["--out", str(tmp_path / "run"), "--tracking-uri", store]
    train.main(train.parser().parse_args([*options, "--steps", "4"]))
    train.main(train.parser().parse_args([*options, "--steps", "6", "--resume"]))
    runs = find_runs(kind="training", tracking_uri=store)
    assert runs.height == 2
    run = max((load_run(run_id, store) for run_id in runs["run_id"]), key=lambda run: int(run.params["steps"]))
    assert run.status == "FINISHED"
    assert run.curves("loss/answer")["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert {"accuracy/lines_5", "accuracy/lines_5_hops_2", "held_out_accuracy/lines_5_ci_low"} <= run.metrics.keys()
    assert {"accuracy/lines_5_ci_low", "num_samples/lines_5_hops_2"} <= run.metrics.keys()
    assert "checkpoints/step_000000/model.safetensors" in run.artifacts()
    assert "checkpoints/step_000006/model.safetensors" in run.artifacts()


def test_the_ablation_logs_a_training_and_a_causal_run_of_each_and_says_which_model_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: dict
) -> None:
    one = runpy.run_path(str(SCRIPT.with_name("ablate_training.py")))["one"]
    monkeypatch.setitem(one.__globals__, "PAIRS", 20)
    store, settings = Store(f"sqlite:///{tmp_path / 'mlflow.db'}"), replace(SMALL, naming_site="none")
    row = one(store, settings, tmp_path / "weak", held_out)
    assert row.startswith("| none | mimetic | 0 |")
    assert "not asked: below 80%" in row
    monkeypatch.setattr(training, "checkpoint_folder", lambda *_: models.CHECKPOINTS / "tiny")
    row = one(store, settings, tmp_path / "weak", held_out)  # its training is finished, and not repeated
    assert "| ref_depth_2_rhs at layer 2: 100.0%" in row
    assert "ref_depth_1_rhs → ref_depth_2_rhs at 2" in row
    found = find_runs(experiment="training_ablation", tracking_uri=store.uri)
    assert found["kind"].value_counts().sort("kind").rows() == [("causal_tracing", 2), ("training", 2)]


def test_a_run_that_ended_before_its_first_state_is_logged_once(tmp_path: Path, held_out: dict) -> None:
    settings = replace(SMALL, steps=3, save_every=100)
    ended = training.train(settings, tmp_path, held_out)
    next(ended)
    del ended  # killed: no state was saved
    steps = [step for step, _ in training.train(settings, tmp_path, held_out)]
    assert steps.count(0) == 1
    assert [step for step, _ in training.history(tmp_path)] == steps


def test_the_script_refuses_to_write_over_a_run(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 0}))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--tracking-uri", store], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
