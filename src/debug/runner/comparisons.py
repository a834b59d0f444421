"""Models compared on the same programs: paired tests per cell and over cells, and the seeds that cells share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from debug.core import shared_programs
from debug.kinds import Json
from debug.models import heuristics
from debug.runner.results import hops_text
from debug.statistics import Comparison, holm, mcnemar


def compare_series(samples: list[dict[str, Json]]) -> tuple[list[dict[str, Json]], list[dict[str, Json]]]:
    """Paired tests of every two series (but not of two heuristics): per cell, paired by program; and over all cells of
    a task, clustered by seed, as cells share programs. Holm's correction over all tests of each kind."""
    cells: dict[tuple[str, int | None, int], dict[str, dict[str, bool]]] = {}
    seeds: dict[str, int] = {}  # program -> seed, the first one where several seeds give it
    for sample in samples:
        if sample["correct"] is not None:
            cell = cells.setdefault((sample["generator"], sample["cell_hops"], sample["seq_len"]), {})
            cell.setdefault(sample["label"], {}).setdefault(sample["program"], sample["correct"])
            seeds.setdefault(sample["program"], sample["seed"])
    places, compared = [], []
    together: dict[tuple[str, str, str], list[dict[str, tuple[bool, bool]]]] = defaultdict(list)
    for place, series in cells.items():
        for first, second in combinations(series, 2):
            if first.startswith(heuristics.PREFIX) and second.startswith(heuristics.PREFIX):
                continue  # of no interest, and each comparison costs the others power
            both = sorted(series[first].keys() & series[second].keys())
            if both:
                places.append((*place, first, second))
                compared.append(mcnemar(*([series[name][program] for program in both] for name in (first, second))))
                answers = {program: (series[first][program], series[second][program]) for program in both}
                together[place[0], first, second].append(answers)
    over_cells = {place: answers for place, answers in together.items() if len(answers) > 1}
    pooled = []
    for of_cells in over_cells.values():
        answers = {program: both for cell in of_cells for program, both in cell.items()}  # each program once
        pooled.append(mcnemar(*zip(*answers.values(), strict=True), seeds=[seeds[program] for program in answers]))
    return (
        _comparison_records(("generator", "hops", "seq_len", "first", "second"), places, compared),
        _comparison_records(("generator", "first", "second"), list(over_cells), pooled),
    )


def _comparison_records(
    names: Sequence[str], places: Sequence[Sequence[Json]], compared: Sequence[Comparison]
) -> list[dict[str, Json]]:
    return [
        dict(zip(names, place, strict=True)) | _comparison_record(comparison)
        for place, comparison in zip(places, holm(compared), strict=True)
    ]


def what_is_shared(samples: list[dict[str, Json]]) -> str | None:
    """A note where cells share seeds, with the largest number of seeds that two of them have in common; else None."""
    seeds: dict[tuple[str, int | None, int], set[int]] = defaultdict(set)
    for sample in samples:
        if sample["seed"] is not None:
            seeds[sample["generator"], sample["cell_hops"], sample["seq_len"]].add(sample["seed"])
    shared = {
        (one, other): len(seeds[one] & seeds[other]) for one, other in combinations(seeds, 2) if one[0] == other[0]
    }
    if not any(shared.values()):
        return None
    (one, other), most = max(shared.items(), key=lambda item: item[1])
    named = " and ".join(
        f"{hops_text(hops)} {'hop' if hops == 1 else 'hops'} on {lines}" for _, hops, lines in (one, other)
    )
    text = shared_programs([(one[0], *one[1:], 0), (other[0], *other[1:], 0)])
    return f"{text} Most shared seeds: {most} of {len(seeds[one])}, by {named} lines."


def _comparison_record(comparison: Comparison) -> dict[str, Json]:
    return {
        "difference": comparison.difference.estimate,
        "ci_low": comparison.difference.low,
        "ci_high": comparison.difference.high,
        "n": comparison.difference.n,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "p_value": comparison.p_value,
        "p_adjusted": comparison.p_adjusted,
        "warning": comparison.warning,
        "text": str(comparison),
    }
