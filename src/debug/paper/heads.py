"""The report's chapter on attention heads: selected on one half of the pairs, measured on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from debug.causal_experiment_runner import CellResult
from debug.causal_map import CausalMap, MeanCausalMap, MeanOverPairs, ratio_of_means
from debug.causal_map.names import Place
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
        "One head's output is patched at one target at a time, on the same pairs. Every other pair is used to select "
        f"heads: those whose normalized logit difference has a 95% CI above {MOVES}. The other pairs measure them. The "
        "tables list the heads that pass again, with CIs corrected for the number of selected heads (Bonferroni), and "
        "the three roles that the target's tokens attend to most through that head in the original programs.",
    )
    cells = page.patched(what.hops, "attention_heads", positions="targets")
    every_head = model.n_layers * model.n_heads
    verdicts: dict[int, bool | None] = {}
    read: dict[int, bool | None] = {}
    counts: list[str] = []
    previous: dict[str, Interval] = {}  # place -> share of attention to the previous line of the chain
    for hops, cell in cells.items():
        page.maps(hops, cell, heads="normalized_logit_diff")
        found = moving_heads(page.store.load_run(cell.run_id).maps)
        verdicts[hops] = found.specialized(every_head)
        counts.append(f"{hops_text(hops)}: {found.counted(every_head)}")
        shares = _attention_of(page, model, cell, {head.target for head in found.moving})
        rows = []
        for head in found.moving:
            own = {role: by[:, head.layer, head.head] for role, by in shares[head.target].items()}
            place = f"hops_{hops}/{head.target}/layer_{head.layer}_head_{head.head}"
            rows.append(_row_of(page, place, head, own))
            if (head.target, head.layer, head.head) in found.strongest:
                share = _share_of_line(own, line_of(head.target, hops) - 1)
                page.keep(f"attention_to_previous_line/{place}", share)
                previous[f"{hops_text(hops)}, {head.target}, layer {head.layer}, head {head.head}"] = share
                read[hops] = every([surely_above(share, 0.5), *([read[hops]] if hops in read else [])])
        header = ["target", "layer", "head", "success", "normalized logit difference", "attends to"]
        page.table([f"{hops_text(hops)}: {header[0]}", *header[1:]], rows)
    runs = [cell.run_id for cell in cells.values()]
    page.claim(
        "specialized_heads",
        "Specialized attention heads route the value between token positions.",
        f"at each number of hops some head moves the value (CI above {MOVES}) into a right-hand side of referential "
        f"depth 2 or more or into `final`, and at each of these targets at most a quarter of the {every_head} heads "
        f"may move it (CI not below {MOVES}); does not hold where no head may, or more than a quarter do",
        page.inside(verdicts),
        "; ".join(counts) or "no run",
        *runs,
    )
    least = sorted(previous.items(), key=lambda item: item[1].estimate)[:2]
    page.claim(
        "heads_read_previous_line",
        "These heads attend to the previous line of the chain.",
        "right-hand sides of referential depth 2 or more, and `final`: their share of attention to the previous line "
        "of the chain, through the head with the largest effect there on the selection pairs, has a 95% CI above 50%",
        page.inside(read),
        f"smallest of {len(previous)} places: " + "; then ".join(f"at {place}: {share}" for place, share in least)
        if least
        else "no head moves the value there",
        page.run.run_id,
        *runs,
    )


def _row_of(page: Page, place: str, head: Head, attention: dict[str, Float[np.ndarray, " pair"]]) -> list[object]:
    """A head's row of the table, with the three roles that it attends to most; logs its effect and its attention.

    Args:
        attention: role -> the share of the target's attention that it gets through this head, by pair.
    """
    page.keep(f"head_normalized_logit_diff/{place}", head.value)
    page.keep(f"head_success/{place}", head.success)
    attended = {role: bootstrap_mean(share, is_rate=True) for role, share in attention.items()}
    page.keep_all(f"attention_share/{place}", attended)
    top = sorted(attended, key=lambda role: -attended[role].estimate)[:3]
    at = ", ".join(f"{role} {without_n(attended[role])}" for role in top)
    return [head.target, head.layer, head.head, without_n(head.success), head.value, at]


def _share_of_line(attention: dict[str, Float[np.ndarray, " pair"]], line: int) -> Interval:
    """The share of attention to all roles of a line of the chain."""
    roles = [share for role, share in attention.items() if role.startswith(f"ref_depth_{line}_")]
    return bootstrap_mean(np.sum(roles, axis=0), is_rate=True)


class Head(NamedTuple):
    """The effect of patching one head's output at one target."""

    target: str
    layer: int
    head: int
    value: Interval
    """Normalized logit difference."""
    success: Interval | None


@dataclass(frozen=True)
class MovingHeads:
    """The heads that move the value: selected on even-numbered pairs, measured on odd-numbered ones."""

    moving: list[Head]
    """The selected heads that pass again; with simultaneous (Bonferroni) intervals."""
    chosen: int
    strongest: set[tuple[str, int, int]]
    """At each target that the value is moved to, the head with the largest effect on the selection pairs."""
    surely: dict[str, int]
    """Target that the value is moved to -> number of heads that move it there."""
    perhaps: dict[str, int]
    """Target -> number of heads that may: their interval on the measuring pairs is not below ``MOVES``."""
    n: int

    def specialized(self, heads: int) -> bool | None:
        """Whether some, but few, of a model's heads move the value: the criterion of the claim."""
        if self.n < SMALLEST:
            return None
        if max(self.perhaps.values(), default=0) == 0 or max(self.surely.values(), default=0) > heads / 4:
            return False
        return True if any(self.surely.values()) and max(self.perhaps.values()) <= heads / 4 else None

    def counted(self, heads: int) -> str:
        surely, perhaps = (max(count.values(), default=0) for count in (self.surely, self.perhaps))
        return f"at most {surely} of {heads} heads at a target move it, {perhaps} may (n={self.n})"


def moving_heads(maps: Iterable[CausalMap]) -> MovingHeads:
    """Select and measure the heads that move the value, from causal maps of single heads.

    An undefined effect (:func:`ratio_of_means` gives None) counts as possibly above ``MOVES``.
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
        name = Place(head.target, (head.head,)).name
        _, behind = halves[1].behind(name, head.layer)
        effects, wholes = (behind[part][:, None] for part in ("logit_change", "whole_effect"))
        [value] = ratio_of_means(effects, wholes, smallest, 1 - 0.05 / len(found))
        if value is not None and value.low is not None and value.low > MOVES:
            success = measured[name].success[measured.layers.index(head.layer)]
            moving.append(head._replace(value=value, success=success))
    targets = {curve.place.target for curve in measured.curves}
    surely = {target: sum(head.target == target for head in moving) for target in targets if what_it_reads(target)}
    perhaps = dict.fromkeys(surely, 0)
    for curve in measured.curves:
        if (target := curve.place.target) in perhaps:
            perhaps[target] += sum(map(_may_move, curve["normalized_logit_diff"]))
    places = {(head.target, head.layer, head.head) for head in strongest.values()}
    return MovingHeads(moving, len(found), places, surely, perhaps, measured.n_pairs)


def _may_move(value: Interval | None) -> bool:
    """Whether the interval is not below ``MOVES``. A missing value or interval may be anything, except an effect of 0
    without interval: it is 0 by construction."""
    if value is None or value.high is None:
        return value is None or value.estimate != 0
    return value.high >= MOVES


def _above_moves(mean: MeanCausalMap) -> Iterator[Head]:
    """The heads whose interval is above ``MOVES``."""
    for curve in mean.curves:
        target, (head,) = curve.place
        by_layer = zip(mean.layers, curve["normalized_logit_diff"], curve.success, strict=True)
        for layer, value, success in by_layer:
            if value is not None and value.low is not None and value.low > MOVES:
                yield Head(target, layer, head, value, success)


def _attention_of(
    page: Page, model: LoadedModel, cell: CellResult, targets: set[str]
) -> dict[str, dict[str, Float[np.ndarray, "pair layer head"]]]:
    """Target -> role -> attention shares, of the original programs of the pairs on which heads are measured."""
    run = page.store.load_run(cell.run_id)
    plan = Plan(**run.config["plan"])  # as the pairs were run
    found: dict[str, dict[str, list[np.ndarray]]] = {target: {} for target in targets}
    for pair in run.pairs[1::2]:
        program = analyze(
            model.tokenizer, pair.original, plan.prompt_template, chat=plan.chat, lead=plan.answer_lead or ""
        )
        pattern = attention_pattern(model, torch.tensor(program.token_ids))
        for target in targets:
            for role, share in attention_shares(pattern, program, target).items():
                found[target].setdefault(role, []).append(share)
    return {target: {role: np.stack(by) for role, by in roles.items()} for target, roles in found.items()}
