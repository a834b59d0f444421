"""The report's chapter on attention heads: found on one half of the pairs, confirmed on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from debug.causal_experiment_runner import CellResult
from debug.causal_map import CausalMap, MeanCausalMap, MeanOverPairs, ratio_of_means
from debug.engine.attention_patterns import attention_pattern, attention_shares
from debug.models import LoadedModel
from debug.paper.claims import SMALLEST, every, surely_above
from debug.paper.page import Page, hops_text, without_n
from debug.paper.residual_stream import MOVES, line_of, what_it_reads
from debug.plan import Plan
from debug.statistics import Interval, bootstrap_mean
from debug.token_analyzer import analyze

QUERY_LINE = "query_hash+query_var+query_colon+final"


def report_heads(page: Page, model: LoadedModel) -> None:
    what = page.what
    page.write(
        "## Attention heads",
        "One head's output at one target patched at a time, on the same pairs. Every other pair chooses the heads: "
        f"those whose normalized logit difference lies above {MOVES} with its whole interval. On the rest they are "
        "measured; listed are those that do so again, intervals corrected for the number chosen (Bonferroni). Beside "
        "each, what the target's tokens attend to through it in these original programs: the three roles with the "
        "largest shares.",
    )
    cells = page.patched(what.hops, "attention_heads", positions="targets")
    every_head = model.n_layers * model.n_heads
    verdicts: dict[int, bool | None] = {}
    read: dict[int, bool | None] = {}
    counts: list[str] = []
    previous: dict[str, Interval] = {}  # place -> share of attention that goes to the chain line before
    for hops, cell in cells.items():
        page.maps(hops, cell, heads="normalized_logit_diff")
        found = moving_heads(page.store.load_run(cell.run_id).maps)
        verdicts[hops] = found.specialized(every_head)
        counts.append(f"{hops_text(hops)}: {found.counted(every_head)}")
        shares = _attention_of(page, model, cell, {head.target for head in found.moving})
        rows = []
        for head in found.moving:
            target, layer, number, value, success = head
            place = f"hops_{hops}/{target}/layer_{layer}_head_{number}"
            page.keep(f"head_normalized_logit_diff/{place}", value)
            page.keep(f"head_success/{place}", success)
            own = {role: by[:, layer, number] for role, by in shares[target].items()}
            attended = {role: bootstrap_mean(share, is_rate=True) for role, share in own.items()}
            page.keep_all(f"attention_share/{place}", attended)
            top = sorted(attended, key=lambda role: -attended[role].estimate)[:3]
            at = ", ".join(f"{role} {without_n(attended[role])}" for role in top)
            rows.append([target, layer, number, without_n(success), value, at])
            if (target, layer, number) in found.strongest:
                before = [by for role, by in own.items() if role.startswith(f"ref_depth_{line_of(target, hops) - 1}_")]
                share = bootstrap_mean(np.sum(before, axis=0), is_rate=True)
                page.keep(f"attention_to_previous_line/{place}", share)
                previous[f"{hops_text(hops)}, {target}, layer {layer}, head {number}"] = share
                read[hops] = every([surely_above(share, 0.5), *([read[hops]] if hops in read else [])])
        header = ["target", "layer", "head", "success", "normalized logit difference", "attends to"]
        page.table([f"{hops_text(hops)}: {header[0]}", *header[1:]], rows)
    runs = [cell.run_id for cell in cells.values()]
    page.claim(
        "specialized_heads",
        "Specialized attention heads route the value between token positions.",
        "at each number of hops some head surely moves the value into a right-hand side from referential depth 2 on "
        f"or into `final`, and at none of these more than a quarter of the {every_head} may do so; it does not where "
        "none can, or where more than a quarter surely do",
        page.inside(verdicts),
        "; ".join(counts) or "no run",
        *runs,
    )
    least = sorted(previous.items(), key=lambda item: item[1].estimate)[:2]
    page.claim(
        "heads_read_previous_line",
        "These heads look at the line of the chain before their own.",
        "through the head that moves most there (on the pairs that choose), the right-hand sides from referential "
        "depth 2 on, and `final`, surely give at least half of their attention to the chain line before",
        page.inside(read),
        f"least of {len(previous)} places, " + "; then ".join(f"at {place}: {share}" for place, share in least)
        if least
        else "no head moves the value there",
        page.run.run_id,
        *runs,
    )


class Head(NamedTuple):
    """What one head's output, patched at one target, does."""

    target: str
    layer: int
    head: int
    value: Interval
    """Normalized logit difference."""
    success: Interval | None


@dataclass(frozen=True)
class MovingHeads:
    """The heads that move the value: chosen on the pairs of even number, measured on those of odd number."""

    moving: list[Head]
    """Of those chosen the ones that do so again; intervals hold for all chosen at once."""
    chosen: int
    strongest: set[tuple[str, int, int]]
    """At each target that the value gets to, the one that moves most on the pairs that choose."""
    surely: dict[str, int]
    """Targets that the value gets to -> how many heads move it there."""
    perhaps: dict[str, int]
    """How many may: those whose interval on the measured pairs is not below ``MOVES``."""
    n: int

    def specialized(self, heads: int) -> bool | None:
        """Whether some, and few, of a model's heads move the value: see the claim."""
        if self.n < SMALLEST:
            return None
        if max(self.perhaps.values(), default=0) == 0 or max(self.surely.values(), default=0) > heads / 4:
            return False
        return True if any(self.surely.values()) and max(self.perhaps.values()) <= heads / 4 else None

    def counted(self, heads: int) -> str:
        surely, perhaps = (max(count.values(), default=0) for count in (self.surely, self.perhaps))
        return f"at most {surely} of {heads} at a target surely, {perhaps} perhaps (n={self.n})"


def moving_heads(maps: Iterable[CausalMap]) -> MovingHeads:
    """Choose and measure the heads that move the value, from causal maps of single heads.

    An effect that is no share of anything (:func:`ratio_of_means` gives None) may be above ``MOVES`` as well as below.
    """
    halves = MeanOverPairs(), MeanOverPairs()
    smallest = 0.0
    for number, causal_map in enumerate(maps):
        halves[number % 2].add(causal_map)
        smallest = causal_map.min_effect
    if halves[1].n_pairs == 0:
        return MovingHeads([], 0, set(), {}, {}, 0)
    chosen, measured = (half.result() for half in halves)
    found = list(_above_moves(chosen))
    by_strength = sorted(found, key=lambda head: head.value.estimate)
    strongest = {head.target: head for head in by_strength if what_it_reads(head.target)}
    moving = []
    for head in found:
        name = f"{head.target}/head_{head.head}"
        _, behind = halves[1].behind(name, head.layer)
        effects, wholes = (behind[part][:, None] for part in ("logit_change", "whole_effect"))
        [value] = ratio_of_means(effects, wholes, smallest, 1 - 0.05 / len(found))
        if value is not None and value.low is not None and value.low > MOVES:
            success = measured[name].success[measured.layers.index(head.layer)]
            moving.append(head._replace(value=value, success=success))
    targets = {curve.target.rpartition("/head_")[0] for curve in measured.curves}
    surely = {target: sum(head.target == target for head in moving) for target in targets if what_it_reads(target)}
    perhaps = dict.fromkeys(surely, 0)
    for curve in measured.curves:
        target = curve.target.rpartition("/head_")[0]
        if target in perhaps:
            perhaps[target] += sum(map(_may_move, curve["normalized_logit_diff"]))
    places = {(head.target, head.layer, head.head) for head in strongest.values()}
    return MovingHeads(moving, len(found), places, surely, perhaps, measured.n_pairs)


def _may_move(value: Interval | None) -> bool:
    """No value, or no ends, can be anything; but zeros are: of cells whose effect is so by construction."""
    if value is None or value.high is None:
        return value is None or value.estimate != 0
    return value.high >= MOVES


def _above_moves(mean: MeanCausalMap) -> Iterator[Head]:
    """The heads whose whole interval is above ``MOVES``."""
    for curve in mean.curves:
        target, _, head = curve.target.rpartition("/head_")
        by_layer = zip(mean.layers, curve["normalized_logit_diff"], curve.success, strict=True)
        for layer, value, success in by_layer:
            if value is not None and value.low is not None and value.low > MOVES:
                yield Head(target, layer, int(head), value, success)


def _attention_of(
    page: Page, model: LoadedModel, cell: CellResult, targets: set[str]
) -> dict[str, dict[str, Float[np.ndarray, "pair layer head"]]]:
    """Target -> role -> attention shares, of the original programs of the pairs on which heads are measured."""
    run = page.store.load_run(cell.run_id)
    template = Plan(**run.config["plan"]).template  # as the pairs were run
    found: dict[str, dict[str, list[np.ndarray]]] = {target: {} for target in targets}
    for pair in run.pairs[1::2]:
        program = analyze(model.tokenizer, pair.original, template)
        pattern = attention_pattern(model, torch.tensor(program.token_ids))
        for target in targets:
            for role, share in attention_shares(pattern, program, target).items():
                found[target].setdefault(role, []).append(share)
    return {target: {role: np.stack(by) for role, by in roles.items()} for target, roles in found.items()}
