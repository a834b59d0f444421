"""The report's chapter on cut attention edges: direct pointer or chain following."""

from __future__ import annotations

from collections.abc import Iterator

from debug import causal_visualization as charts
from debug.attention_knockout import HYPOTHESES
from debug.causal_experiment_runner import CellResult
from debug.causal_map import RANDOM
from debug.paper.accuracy import wrong_table
from debug.paper.claims import NOTHING, every, surely_above, surely_below
from debug.paper.heads import QUERY_LINE
from debug.paper.page import Page, hops_text, mean_of_cell, without_n
from debug.paper.strategies import EARLY, wrong_answers
from debug.statistics import Interval
from debug.tracking import LoggedRun


def report_knockout(page: Page) -> None:
    page.write(
        "## Knockout",
        "Attention edges cut in all layers. Direct pointer: the query line's tokens cannot look at the root's value. "
        "Chain following: the query line cannot look at the chain's last line, nor any chain line at the one before "
        "it; then each of these alone. Beside each, random edges cut in the same pairs, and the paired difference with "
        "its exact McNemar test.",
    )
    cells: dict[int, CellResult] = {}
    for hops in (hops for hops in page.what.hops if hops > 1):
        cells |= page.patched([hops], "attention_knockout", positions=[*HYPOTHESES, *_steps(hops)])
    rows: list[list[object]] = []
    kept: dict[str, dict[int, tuple[Interval, Interval]]] = {}
    single: dict[int, dict[str, tuple[Interval, Interval]]] = {}
    for hops, cell in cells.items():
        mean, steps = mean_of_cell(cell), _steps(hops)
        for name, [compared, *_] in mean.against_random.items():
            own, random = (mean[target]["answer_kept"][0] for target in (name, name + RANDOM))
            assert own is not None
            label = steps.get(name, name.replace("_", " "))
            test = [compared.difference, f"{compared.p_value:.2g}", f"`{cell.run_id}`"]
            rows.append([hops, label, own, random, *test])
            into = single.setdefault(hops, {}) if name in steps else kept.setdefault(name, {})
            into[label if name in steps else hops] = (own, compared.difference)  # type: ignore[index]
    page.table(["hops", "cut", "answer kept", "with random edges cut", "difference", "p", "run"], rows)
    for hops, cell in cells.items():
        page.picture(f"knockout_{hops}_hops", charts.knockout_chart(mean_of_cell(cell)), f"knockout, {hops_text(hops)}")
    runs = [cell.run_id for cell in cells.values()]
    lost, direct = kept.get("chain_following", {}), kept.get("direct_pointer", {})
    most = max(lost.items(), key=lambda item: item[1][0].estimate, default=None)
    least = min(direct.items(), key=lambda item: item[1][0].estimate, default=None)
    page.claim(
        "chain_following_needed",
        "The answer is found by following the chain line by line.",
        "with those edges cut the answer is kept surely in less than half of the pairs, and surely in fewer than with "
        "random edges cut",
        page.inside(
            {hops: every([surely_below(own, 0.5), surely_below(diff, 0)]) for hops, (own, diff) in lost.items()}, 2
        ),
        f"kept most, at {hops_text(most[0])}: {most[1][0]}; difference {most[1][1]}" if most else "no run",
        *runs,
    )
    weakest = [
        (diff.estimate, f"{hops_text(hops)}, {label}: {own}, difference {diff}")
        for hops, by in single.items()
        for label, (own, diff) in by.items()
    ]
    page.claim(
        "every_line_read",
        "Each line of the chain reads the one before it (ours, not the paper's: the claim before, edge by edge).",
        "with one line's edges to the one before it cut, and no others, the answer is kept surely in fewer pairs than "
        f"with random edges cut; it does not where the difference is surely smaller than {NOTHING:.0%}",
        page.inside({hops: every(_needed(diff) for _, diff in by.values()) for hops, by in single.items()}, 2),
        "matters least: " + max(weakest)[1] if weakest else "no run",
        *runs,
    )
    page.claim(
        "no_direct_pointer",
        "The query does not point straight at the root's value.",
        "with those edges cut the answer is kept surely in 90% of the pairs or more",
        page.inside({hops: surely_above(own, 0.9) for hops, (own, _) in direct.items()}, 2),
        f"kept least, at {hops_text(least[0])}: {least[1][0]}; difference {least[1][1]}" if least else "no run",
        *runs,
    )
    page.write(
        "What the model answers instead, the chain-following edges cut: of the wrong answers that are numbers of their "
        "program, the share of each shallow heuristic, beside chance as in the trajectory. In none of these pairs is "
        "the root on line 1 or 2."
    )
    wrong = {hops: wrong_answers(_cut(page.store.load_run(cell.run_id))) for hops, cell in cells.items()}
    wrong_table(page, "hops", wrong)
    page.claim(
        "heuristic_kept",
        "The early-line heuristic stays beneath the final mechanism, as what it falls back on.",
        "with the chain-following edges cut, wrong answers at each number of hops are surely oftener of line 1 or 2 "
        "than the value of a line drawn (chosen after such runs were seen; not tested: whether random cuts do so too)",
        page.inside({hops: surely_above(by.get(EARLY), 0) for hops, by in wrong.items()}, 2),
        "; ".join(
            f"{hops_text(hops)}: {by['line 1 or 2']}, less line drawn {without_n(by[EARLY])}"
            for hops, by in wrong.items()
            if by
        )
        or "no wrong answer",
        page.run.run_id,
        *runs,
    )


def _steps(hops: int) -> dict[str, str]:
    """The edges of chain following one line at a time: hypothesis -> what it cuts, in words."""
    steps = {f"{QUERY_LINE}->ref_depth_{hops}_line": f"query → line {hops}"}
    for line in range(hops, 1, -1):
        steps[f"ref_depth_{line}_line->ref_depth_{line - 1}_line"] = f"line {line} → line {line - 1}"
    return steps


def _needed(difference: Interval) -> bool | None:
    """Whether cutting surely costs answers (True), or surely next to none (False)."""
    return False if surely_above(difference, -NOTHING) else surely_below(difference, 0) or None


def _cut(run: LoggedRun) -> Iterator[tuple[int | None, str]]:
    """(answer, program) of a knockout's pairs with the chain-following edges cut."""
    pairs = run.pairs
    for found in run.maps:
        [token] = found.top[..., found.target_columns["chain_following"]]
        text = found.vocabulary[int(token)].strip()
        yield int(text) if text.isdecimal() else None, pairs[found.pair].original.text
