"""Cells of one study: which programs they share, that it is said, and how they are drawn from seeds of their own."""

from itertools import combinations, pairwise, product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vocabularies
from debug import ExperimentRunner, models, quick_experiment, tracking
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner, CellResult
from debug.core import ExperimentConfig, shared_programs
from debug.generators import MAX_SEEDS, generate
from debug.models import Completion
from debug.programs import Program
from debug.runner import draw_programs
from debug.study_file import read_study
from present import present


def experiment(models_=("tiny",), **fields) -> ExperimentConfig:
    defaults = {"num_seqs": 200, "hops": [None, 4], "seq_lens": [5, 17]}
    return quick_experiment("cells", "VARIABLE_BINDING", "variable_binding", models_, **defaults | fields)


def seeds_of(config: ExperimentConfig, *cell) -> set[int]:
    return {program.seed for program in draw_programs(config, *cell).programs}


def test_cells_share_programs_unless_they_are_drawn_independently():
    """134 of 200 programs of any and of 4 hops are the same, and 17 lines begin with the 5 lines of their seed."""
    shared, apart = experiment(), experiment(independent_cells=True)
    assert len(seeds_of(shared, None, 17) & seeds_of(shared, 4, 17)) == 134
    short, long = (draw_programs(shared, None, lines).programs for lines in (5, 17))
    assert all(b.program.startswith(a.program[: a.program.index("#")]) for a, b in zip(short, long, strict=True))
    drawn = {cell: draw_programs(apart, *cell) for cell in apart.cells}
    for one, other in combinations(drawn.values(), 2):
        assert not {p.seed for p in one.programs} & {p.seed for p in other.programs}
        assert not {p.program for p in one.programs} & {p.program for p in other.programs}
    for (hops, lines), cell in drawn.items():
        assert cell.seeds_passed_over == cell.programs[-1].seed - apart.first_seed(hops, lines) + 1 - 200
        for program in cell.programs[:5]:  # one integer names it, still
            assert generate(apart.generator[1], lines, program.seed, hops).program == program.program


@given(st.sets(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 10**6))
def test_no_two_independent_cells_have_a_seed_in_common(lines, seed):
    config = experiment(
        seq_lens=sorted(lines), hops=[None, *range(1, min(lines) + 1)], seed=seed, independent_cells=True
    )
    first = sorted(config.first_seed(*cell) for cell in config.cells)
    assert all(b - a >= MAX_SEEDS for a, b in pairwise(first))
    assert first[0] >= 1_000_000
    assert first[-1] + MAX_SEEDS <= 2**32
    assert config.first_seed(*config.cells[0]) - seed == experiment(
        seq_lens=sorted(lines), hops=config.hops, independent_cells=True
    ).first_seed(*config.cells[0])


def test_cells_without_a_range_of_their_own_are_refused():
    assert experiment(seq_lens=[400]).first_seed(None, 400) == 0
    with pytest.raises(ValueError, match=r"independent_cells: programs of up to 400 lines .* smaller seed"):
        experiment(seq_lens=[400], independent_cells=True)
    with pytest.raises(ValueError, match="independent_cells is 'yes'; expected true or false"):
        experiment(independent_cells="yes")


def test_cells_are_said_to_share_programs_where_they_do():
    cells = [("variable_binding", hops, lines, 0) for hops, lines in product(("any", 4), (5, 17))]
    assert "share seeds, and so share programs" in present(shared_programs(cells))
    assert shared_programs(cells[:1] * 2) is None  # two models on one cell: compared program by program
    assert shared_programs([cells[0], ("boolean", "any", 17, 0)]) is None
    apart = experiment(independent_cells=True)
    assert shared_programs([("variable_binding", *cell, apart.first_seed(*cell)) for cell in apart.cells]) is None


class Guesses:
    """In the place of a model: right on programs whose text has an even number of some letter."""

    path, dtype, device, backend, quantization = "nowhere", "float32", "cpu", "transformers", None
    tokenizer = vocabularies.tokenizer("tiny")
    suited = models.AnswersPrompts.suited

    def __init__(self, model_id):
        self.id = model_id

    def rendered(self, prompt, *, chat=False):
        return prompt

    def provenance(self):
        return {}

    def generate(self, prompts, **_):
        for index, prompt in enumerate(prompts):
            right = Program.parse(prompt).answer
            yield index, Completion(str(right if prompt.split("=")[0].count(self.id) == 0 else (right + 1) % 10))


@pytest.fixture
def guesses(monkeypatch):
    monkeypatch.setattr(models, "locate", lambda model_id: (model_id, {}))
    monkeypatch.setattr(models, "load", lambda model_id, **_: Guesses(model_id))
    monkeypatch.setattr("debug.runner.asking.given", lambda model, template, programs: programs)


@pytest.mark.parametrize("independent", [False, True])
def test_a_result_says_that_cells_share_programs_and_clusters_what_it_pools_by_seed(uri, guesses, independent):
    config = experiment(["b", "e"], num_seqs=40, independent_cells=independent)
    result = ExperimentRunner(uri).run(config)
    [pooled] = result.summary["comparisons_over_cells"]
    shared = [seeds_of(config, *cell) for cell in config.cells]
    assert pooled["n"] == len(set.union(*shared))
    assert (pooled["n"] == 160) == independent
    assert "paired comparisons over all cells, clustered by seed" in str(result)
    text = "Most shared seeds: 40 of 40, by any hops on 5 and any hops on 17 lines."
    assert (text in str(result)) == (not independent) == bool(result.summary["shared_programs"])
    # the first line alone decides here: programs of one seed are answered alike, and are no evidence of their own
    alone = next(c for c in result.summary["comparisons"] if c["seq_len"] == 5 and c["hops"] is None)
    assert (alone["ci_low"] > 0 or alone["ci_high"] < 0) == (alone["p_value"] < 0.05)
    store = tracking.Store(uri)
    for (_, hops, lines), run_id in result.cell_run_ids.items():
        run = store.load_run(run_id)
        assert int(run.params["seed"]) == config.first_seed(hops, lines)
        assert run.config["independent_cells"] is independent
        assert min(run.samples["seed"]) >= config.first_seed(hops, lines)


def test_one_cell_has_nothing_to_pool_and_nothing_to_share(uri, guesses):
    result = ExperimentRunner(uri).run(experiment(["b", "e"], num_seqs=5, hops=[None], seq_lens=[5]))
    assert result.summary["comparisons_over_cells"] == []
    assert result.summary["shared_programs"] is None
    assert "clustered" not in str(result)


def test_causal_cells_are_drawn_from_the_same_seeds_as_accuracy_cells(uri, monkeypatch):
    cells = {}

    def cell(self, study, model, asked, name, run_id):
        seeds = [next(asked.pairs).seed for _ in range(5)]
        cells[asked.params["hops"], asked.params["seq_len"]] = (asked.params["seed"], seeds)
        return CellResult("tiny", name)

    monkeypatch.setattr(models, "load", lambda model_id, **_: SimpleNamespace(id=model_id))
    monkeypatch.setattr(CausalExperimentRunner, "_cell", cell)
    fields = {"models": ["tiny"], "hops": [2, 3], "seq_lens": [5, 9], "independent_cells": True}
    config = CausalConfig(**fields)
    CausalExperimentRunner(uri).run(config)
    for (hops, lines), (first, seeds) in cells.items():
        assert first == config.first_seed(hops, lines)
        expected = experiment(**{name: fields[name] for name in ("hops", "seq_lens", "independent_cells")})
        assert seeds == [p.seed for p in draw_programs(expected, hops, lines).programs[:5]]
    assert len(cells) == 4


def test_a_study_file_asks_for_independent_cells(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("{name: s, defaults: {independent_cells: true}, experiments: [{models: [tiny]}]}")
    assert read_study(path)[1][0].independent_cells
