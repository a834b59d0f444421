"""The report's chapter on attention knockout: direct pointer or chain following."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from debug import causal_visualization as charts
from debug.attention_knockout import HYPOTHESES
from debug.causal_experiment_runner import CellResult
from debug.causal_map import RANDOM
from debug.paper.accuracy import wrong_table
from debug.paper.claims import NOTHING, every, surely_above, surely_below
from debug.paper.heads import QUERY_LINE
from debug.paper.page import Page, hops_text, mean_of_cell, without_n
from debug.paper.strategies import EARLY, EXCESS, wrong_answers
from debug.statistics import Interval
from debug.tracking import LoggedRun


@dataclass(frozen=True)
class _Knockouts:
    """The knockouts of all numbers of hops: the share of answers kept, and its difference to random edges cut."""

    hypotheses: dict[str, dict[int, tuple[Interval, Interval]]]
    """Hypothesis -> hops -> share and difference."""
    steps: dict[int, dict[str, tuple[Interval, Interval]]]
    """Hops -> description of one line's edges -> share and difference."""


def report_knockout(page: Page) -> None:
    page.write(
        "## Knockout",
        "Attention edges are cut in all layers. Direct pointer: the query line's tokens cannot attend to the root's "
        "value. Chain following: the query line cannot attend to the chain's last line, nor any chain line to the "
        "previous one; then each of these edges alone. As a control, as many random edges are cut in the same pairs; "
        "the paired difference (hypothesis − random) has an exact McNemar test.",
    )
    cells: dict[int, CellResult] = {}
    for hops in (hops for hops in page.what.hops if hops > 1):
        cells |= page.patched([hops], "attention_knockout", positions=[*HYPOTHESES, *_steps(hops)])
    found = _measure(page, cells)
    runs = [cell.run_id for cell in cells.values()]
    _claim_chain_following(page, found.hypotheses.get("chain_following", {}), runs)
    _claim_every_line(page, found.steps, runs)
    _claim_no_direct_pointer(page, found.hypotheses.get("direct_pointer", {}), runs)
    _report_wrong_answers(page, cells)


def _measure(page: Page, cells: Mapping[int, CellResult]) -> _Knockouts:
    """Measure each knockout; write the table of all, and a picture per number of hops."""
    rows: list[list[object]] = []
    found = _Knockouts({}, {})
    for hops, cell in cells.items():
        mean, steps = mean_of_cell(cell), _steps(hops)
        for name, [compared, *_] in mean.against_random.items():
            own, random = (mean[target]["answer_kept"][0] for target in (name, name + RANDOM))
            assert own is not None
            label = steps.get(name, name.replace("_", " "))
            test = [compared.difference, f"{compared.p_value:.2g}", f"`{cell.run_id}`"]
            rows.append([hops, label, own, random, *test])
            if name in steps:
                found.steps.setdefault(hops, {})[label] = own, compared.difference
            else:
                found.hypotheses.setdefault(name, {})[hops] = own, compared.difference
    page.table(["hops", "cut", "answer kept", "with random edges cut", "difference", "p", "run"], rows)
    for hops, cell in cells.items():
        page.picture(f"knockout_{hops}_hops", charts.knockout_chart(mean_of_cell(cell)), f"knockout, {hops_text(hops)}")
    return found


def _claim_chain_following(page: Page, lost: Mapping[int, tuple[Interval, Interval]], runs: Sequence[str]) -> None:
    most = max(lost.items(), key=lambda item: item[1][0].estimate, default=None)
    page.claim(
        "chain_following_needed",
        "The model finds the answer by following the chain line by line.",
        "chain-following edges cut: answer kept, 95% CI below 50%, and difference to random edges, 95% CI below 0",
        page.inside(
            {hops: every([surely_below(own, 0.5), surely_below(diff, 0)]) for hops, (own, diff) in lost.items()}, 2
        ),
        f"answer kept most often, at {hops_text(most[0])}: {most[1][0]}; difference {most[1][1]}" if most else "no run",
        *runs,
    )


def _claim_every_line(
    page: Page, steps: Mapping[int, dict[str, tuple[Interval, Interval]]], runs: Sequence[str]
) -> None:
    weakest = [
        (diff.estimate, f"{hops_text(hops)}, {label}: {own}, difference {diff}")
        for hops, by in steps.items()
        for label, (own, diff) in by.items()
    ]
    page.claim(
        "every_line_read",
        "Each line of the chain reads the previous line (ours, not the paper's: the claim above, edge by edge).",
        "only one line's edges to the previous line cut: answer kept, difference to random edges, 95% CI below 0; does "
        f"not hold where the 95% CI is above −{NOTHING:.0%}",
        page.inside({hops: every(_needed(diff) for _, diff in by.values()) for hops, by in steps.items()}, 2),
        "smallest effect: " + max(weakest)[1] if weakest else "no run",
        *runs,
    )


def _claim_no_direct_pointer(page: Page, direct: Mapping[int, tuple[Interval, Interval]], runs: Sequence[str]) -> None:
    least = min(direct.items(), key=lambda item: item[1][0].estimate, default=None)
    page.claim(
        "no_direct_pointer",
        "The query does not point directly at the root's value.",
        "direct-pointer edges cut: answer kept, 95% CI above 90%",
        page.inside({hops: surely_above(own, 0.9) for hops, (own, _) in direct.items()}, 2),
        f"answer kept least often, at {hops_text(least[0])}: {least[1][0]}; difference {least[1][1]}"
        if least
        else "no run",
        *runs,
    )


def _report_wrong_answers(page: Page, cells: Mapping[int, CellResult]) -> None:
    """What the model answers where it cannot follow the chain, and whether that is the early-line heuristic."""
    page.write(
        "Wrong answers with the chain-following edges cut: of those that are numbers of their program, the share that "
        "each shallow heuristic gives, and the chance levels, as in the training trajectory. In none of these pairs is "
        "the root on line 1 or 2."
    )
    wrong = {hops: wrong_answers(_cut(page.store.load_run(cell.run_id))) for hops, cell in cells.items()}
    wrong_table(page, "hops", wrong)
    page.claim(
        "heuristic_kept",
        "The early-line heuristic remains as a fallback of the final mechanism.",
        "chain-following edges cut: at each number of hops, wrong answers are more often on line 1 or 2 than the value "
        "of a random line (difference, 95% CI above 0). This criterion was chosen after such runs were seen; random "
        "cuts are not tested",
        page.inside({hops: surely_above(by.get(EARLY), 0) for hops, by in wrong.items()}, 2),
        "; ".join(
            f"{hops_text(hops)}: {by['line 1 or 2']}; {EXCESS}: {without_n(by[EARLY])}"
            for hops, by in wrong.items()
            if by
        )
        or "no wrong answer",
        page.run.run_id,
        *(cell.run_id for cell in cells.values()),
    )


def _steps(hops: int) -> dict[str, str]:
    """The edges of chain following, one line at a time: hypothesis -> description of its edges."""
    steps = {f"{QUERY_LINE}->ref_depth_{hops}_line": f"query → line {hops}"}
    for line in range(hops, 1, -1):
        steps[f"ref_depth_{line}_line->ref_depth_{line - 1}_line"] = f"line {line} → line {line - 1}"
    return steps


def _needed(difference: Interval) -> bool | None:
    """Whether cutting costs answers (95% CI below 0: True), or hardly any (95% CI above -``NOTHING``: False)."""
    return False if surely_above(difference, -NOTHING) else surely_below(difference, 0) or None


def _cut(run: LoggedRun) -> Iterator[tuple[int | None, str]]:
    """(answer, program) of each pair of a knockout with the chain-following edges cut."""
    pairs = run.pairs
    for found in run.maps:
        [token] = found.top[..., found.target_columns["chain_following"]]
        text = found.vocabulary[int(token)].strip()
        yield int(text) if text.isdecimal() else None, pairs[found.pair].original.text
