"""The report of the paper's findings: what it says is what its runs hold."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from debug import causal_tracing, models, training
from debug.causal_map import CausalMap, mean_over_pairs
from debug.counterfactual import make_pair
from debug.engine.attention_patterns import attention_pattern, attention_shares
from debug.models import CHECKPOINTS
from debug.paper import Reproduction, climbed, every, moving_heads, plain, reproduce, surely_above, surely_below
from debug.paper.strategies import explanations, wrong_answers
from debug.statistics import Interval
from debug.token_analyzer import analyze
from debug.tracking import LoggedRun, Store
from reference import pairs
from synthetic import make_map
from test_mean_map import GAP, STAIRS, drawn, maps_of, rates
from test_training import SMALL

# Models with random weights answer nothing: their pairs are used all the same.
run_causal_tracing_experiment = partial(causal_tracing.run_causal_tracing_experiment, require_correct=False)


PROGRAM = "l = 1\nc = l\ny = 5\np = 6\nm = 8\nq = p\nf = m\na = c\nj = 9\n#a: "
SHORT = re.compile(r"(?<![\d.-])(-?\d+\.\d+%? (?:\[-?\d+\.\d+, -?\d+\.\d+\]|no CI))")


def test_what_each_strategy_could_answer() -> None:
    assert explanations(PROGRAM) == {
        "a digit": set(range(10)),
        "any number": {1, 5, 6, 8, 9},
        "line 1 or 2": {1},
        "largest chain": {1},
        "dereferencing": {1},
    }


def test_a_heuristic_is_seen_in_the_wrong_answers_when_most_are_right_already() -> None:
    program = "l = 1\nc = l\ny = 5\np = 6\na = c\nj = 9\n#p: "  # right is 6; lines lead to 1 (three of them), 5, 9
    found = wrong_answers([(6, program)] * 97 + [(1, program)] * 3 + [(7, program), (None, program)])
    assert found["line 1 or 2"].n == 3
    assert found["line 1 or 2"].estimate == 1
    assert found["line 1 or 2, number drawn"].estimate == pytest.approx(1 / 3)
    assert found["line 1 or 2, line drawn"].estimate == pytest.approx(3 / 5)
    assert wrong_answers([(6, program), (7, program)]) == {}


def test_attention_is_read_without_changing_the_model() -> None:
    model = models.load("tiny")
    program = analyze(model.tokenizer, make_pair(PROGRAM).original)
    ids = torch.tensor(program.token_ids)
    before, implementation = model.hf(ids[None]).logits, model.config._attn_implementation
    pattern = attention_pattern(model, ids)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model.hf(ids[None]).logits, before)
    assert pattern.shape == (6, 4, len(ids), len(ids))
    assert np.allclose(pattern.sum(-1), 1, atol=1e-5)
    assert not np.triu(pattern, 1).any()
    shares = attention_shares(pattern, program, "final")
    assert np.allclose(sum(shares.values()), 1, atol=1e-5)
    assert {"ref_depth_1_rhs", "ref_depth_3_newline", "query_var", "final", "other lines"} <= shares.keys()
    root = program.roles["ref_depth_1_rhs"]
    assert np.allclose(shares["ref_depth_1_rhs"], pattern[:, :, -1, root].sum(-1))


def test_the_attention_of_several_tokens_is_their_mean() -> None:
    model = models.load("tiny")
    program = analyze(model.tokenizer, make_pair(PROGRAM).original)
    pattern = attention_pattern(model, torch.tensor(program.token_ids))
    line = program.positions("ref_depth_3_line")
    assert len(line) == 4
    shares = attention_shares(pattern, program, "ref_depth_3_line")
    assert np.allclose(sum(shares.values()), 1, atol=1e-5), "the shares of one line's tokens are shares of a whole"
    [root] = program.roles["ref_depth_1_rhs"]
    by_hand = sum(pattern[:, :, token, root] for token in line) / 4
    assert np.allclose(shares["ref_depth_1_rhs"], by_hand)
    assert (by_hand < pattern[:, :, line, root].max(2)).any()


def test_text_from_outside_is_no_markdown() -> None:
    assert plain("<b>\n| *x*") == r"\<b\> \| \*x\*"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    folder = tmp_path_factory.mktemp("paper")
    store = Store(f"sqlite:///{folder}/mlflow.db")
    list(training.train(replace(SMALL, evaluate_every=6), folder / "run", training.first_pairs({(None, 5): 20})))
    with store.start("training", "tiny · training", kind="training") as run:
        run.log_params({"model": "tiny"})
        shutil.copytree(folder / "run" / "checkpoints", run.folder / "checkpoints")
    what = Reproduction(hops=(1, 2), seq_len=7, lengths=(2, 7), num_seqs=80, num_pairs=20)
    return reproduce(what, store.uri)


def texts_of(run: LoggedRun) -> set[str]:
    """Every estimate with its interval that a run's metrics hold, as a rate and as a mean, as a report writes them."""
    points = {(name, step): value for name, step, value in run.curves().iter_rows()}
    texts = set()
    for (name, step), value in points.items():
        ends = points.get((f"{name}_ci_low", step)), points.get((f"{name}_ci_high", step))
        texts |= {str(Interval(value, *ends, 1, is_rate)).rpartition(" (n=")[0] for is_rate in (True, False)}
    return texts


def test_every_number_of_the_report_is_a_metric_of_its_runs(report: LoggedRun) -> None:
    page = report.artifact("report.md").read_text("utf-8")
    runs = [report, *(cell for study in report.children for cell in study.children)]
    assert {run.status for run in [*runs, *report.children]} == {"FINISHED"}
    held = set.union(*map(texts_of, runs))
    written = set(SHORT.findall(page))
    assert len(written) > 60
    assert written <= held


def test_numbers_stand_beside_the_run_that_holds_them(report: LoggedRun) -> None:
    page = report.artifact("report.md").read_text("utf-8")
    accuracies = re.findall(r"([\d.]+% \[[^]]+\]) \(n=(\d+)\), run `(\w{8})`", page)
    assert len(accuracies) == 4 * (2 + 2)
    for text, n, run_id in accuracies:
        metrics = Store(report.store.uri).load_run(run_id).metrics
        ends = metrics["accuracy_ci_low"], metrics["accuracy_ci_high"]
        assert f"{text} (n={n})" == str(Interval(metrics["accuracy"], *ends, int(metrics["num_samples"]), True))
    for hops in (1, 2):
        [run_id] = re.findall(rf"### {hops} hops?\n\nRun `(\w+)`; accuracy on", page)
        curves = Store(report.store.uri).load_run(run_id).curves("patch_success_rate_by_layer/final")
        rates = curves.filter(metric="patch_success_rate_by_layer/final")["value"].to_list()
        row = page.split(f"### {hops} hop")[1].split("Success:")[1].split("| final | 20 | ")[1].split("\n")[0]
        assert [float(cell.split("%")[0]) for cell in row.split("|")[:-1]] == pytest.approx([100 * r for r in rates])
        assert rates[-1] == 1


def test_the_page_has_its_pictures_claims_and_trajectory(report: LoggedRun) -> None:
    page = report.artifact("report.md").read_text("utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert {"accuracy_by_hops.png", "success_2_hops.png", "heads_1_hops.png", "knockout_2_hops.png"} <= {*pictures}
    assert all(report.artifact(name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    verdicts = {claim["name"]: claim["holds"] for claim in report.summary["claims"]}
    assert verdicts["dereferences"] is True
    assert verdicts["heuristic_kept"] is None
    assert "deeper_is_later" not in verdicts, "no claim of the paper"
    assert {claim["verdict"] for claim in report.summary["claims"]} <= {"holds", "does not", "undecided"}
    logged = {name: bool(value) for name, value in report.metrics.items() if name.startswith("claim_holds/")}
    assert logged == {f"claim_holds/{name}": holds for name, holds in verdicts.items() if holds is not None}
    steps = report.curves("explained/all/a_digit").filter(metric="explained/all/a_digit")["step"].to_list()
    assert steps == [0, 6]
    assert "trajectory_all.png" in pictures
    assert "not, byte for byte, the model of the other sections" in page


def random_model(folder: Path, seed: int) -> Path:
    """The bundled model's architecture and tokenizer with weights that nothing trained."""
    shutil.copytree(CHECKPOINTS / "tiny", folder, ignore=shutil.ignore_patterns("*.safetensors", "README*"))
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_of_a_random_model_no_claim_holds(tmp_path: Path, uri: str) -> None:
    model = random_model(tmp_path / "random", 0)
    what = Reproduction(str(model), hops=(1, 2), seq_len=7, lengths=(7,), num_seqs=40, num_pairs=20)
    verdicts = {claim["name"]: claim["holds"] for claim in reproduce(what, uri).summary["claims"]}
    assert True not in verdicts.values()
    assert verdicts["dereferences"] is False
    assert verdicts["specialized_heads"] is verdicts["no_direct_pointer"] is None


@pytest.mark.parametrize("seed", [None, 1, 2], ids=["the bundled model", "random 1", "random 2"])
def test_heads_are_specialized_in_the_bundled_model_and_in_no_random_one(seed: int | None, tmp_path: Path) -> None:
    """Wrong pairs among them: a random model's heads do move logits, but in no direction."""
    model = models.load("tiny" if seed is None else str(random_model(tmp_path / "random", seed)))
    found = run_causal_tracing_experiment(
        model, pairs(30, 5, 3), "attention_heads", positions="targets", control=False, logit_lens=False
    )
    heads = moving_heads(found.maps)
    assert heads.specialized(24) is (True if seed is None else None)
    assert bool(heads.moving) == (seed is None)


# --- what decides a claim ---


@pytest.mark.parametrize(
    ("value", "above", "below"),
    [
        (Interval(0.97, 0.95, 0.99, 200), True, False),
        (Interval(0.97, 0.85, 0.99, 200), None, None),
        (Interval(0.5, 0.4, 0.6, 200), False, True),
        (Interval(0.97, 0.95, 0.99, 9), None, None),  # too few, whatever the interval
        (Interval(1.0, None, None, 200), None, None),
        (None, None, None),
    ],
)
def test_a_criterion_is_met_by_a_whole_interval(value: Interval | None, above: bool, below: bool) -> None:
    assert surely_above(value, 0.9) is above
    assert surely_below(value, 0.9) is below


def test_a_claim_over_several_hops_is_decided_by_the_one_that_does_not() -> None:
    assert every([True, True]) is True
    assert every([True, None]) is every([None]) is every([]) is None
    assert every([True, None, False]) is False


def noise_of_heads(rng: np.random.Generator, n: int, moved: float = 0.0, noise: float = 7) -> list[CausalMap]:
    """Maps of four heads in six layers: each moves the logit up or down by chance, by as much as the
    counterfactual does if not told otherwise; one of them moves it by a share of that."""
    made = []
    for pair in range(n):
        one = make_map(pair, heads=4)
        effects = rng.normal(0, noise, one.top.shape)
        effects[3, 1, one.target_columns["final"]] = 7 * (moved + rng.normal(0, 0.1)) if moved else rng.normal(0, noise)
        z = one.z_patched.copy()
        z[..., 0] = one.z_clean[0] + effects
        made.append(replace(one, z_patched=z))
    return made


def test_heads_of_noise_are_not_specialized_and_one_that_moves_the_value_is_found() -> None:
    """The best of 72 cells is above 0.1 with its whole interval in most of these experiments."""
    rng = np.random.default_rng(0)
    found = [moving_heads(noise_of_heads(rng, 40, noise=14)) for _ in range(20)]
    assert np.mean([of.chosen > 0 for of in found]) > 0.5
    assert np.mean([len(of.moving) > 0 for of in found]) <= 0.05
    one = moving_heads(noise_of_heads(rng, 40, moved=0.8))
    assert [(head.target, head.layer, head.head) for head in one.moving] == [("final", 3, 1)]
    assert ("final", 3, 1) in one.strongest
    assert one.n == 20


def climbing(success: dict[str, np.ndarray]) -> bool | None:
    return climbed(mean_over_pairs(maps_of(success)), 3)


def test_the_value_moves_line_by_line_where_every_line_surely_leads() -> None:
    rng = np.random.default_rng(0)
    stairs, jump = rates(0.02, **STAIRS), rates(0.01, **GAP)
    assert climbing(drawn(rng, stairs, 60)) is True
    assert climbing(drawn(rng, jump, 200)) is False, "past lines whose tokens surely do not carry it"
    assert climbing(drawn(rng, jump, 12)) is None, "too few"
    one_success = drawn(rng, jump * (jump > 0.5), 200)
    one_success["ref_depth_2_rhs"][0, 3] = 1
    assert climbing(one_success) is False
    faint = drawn(rng, jump + 0.25 * np.isin(np.arange(5), (1, 2)), 60)  # perhaps they lead for a moment
    assert climbing(faint) is None


def test_one_hop_has_no_line_between() -> None:
    mean = mean_over_pairs(maps_of(drawn(np.random.default_rng(0), rates(0.01, **GAP), 60)))
    assert mean.hand_overs() == [("ref_depth_1_rhs", "final", 4)]
    assert climbed(mean, 1) is None


def test_without_a_training_run_the_report_says_so(tmp_path: Path, uri: str) -> None:
    what = Reproduction(hops=(2,), seq_len=7, lengths=(7,), num_seqs=5, num_pairs=2)
    run = reproduce(what, uri)
    page = run.artifact("report.md").read_text("utf-8")
    assert "no training run with checkpoints" in page
    assert {claim["name"]: claim["verdict"] for claim in run.summary["claims"]}["three_phases"] == "undecided"
