"""The columns of a pair's map: which token positions are patched together, or between which edges are cut."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch

from debug.attention_knockout import HYPOTHESES, edges_of, random_control
from debug.causal_map import PAIR_SOURCES, RANDOM
from debug.engine.attention_patterns import attention_pattern
from debug.models import LoadedModel
from debug.plan import Plan
from debug.token_analyzer import PairError, TokenizedPair, TokenizedProgram


class Columns(NamedTuple):
    """The columns of a map, and what a knockout cuts in each."""

    positions: list[int]
    columns: list[list[int]]
    targets: dict[str, list[int]]
    target_columns: dict[str, int]
    edges: list[tuple[tuple[int, int], ...]]


def columns_of(plan: Plan, model: LoadedModel, tokenized: TokenizedPair) -> Columns:
    """Raises PairError where the program has not every target, or not every edge, that is asked for."""
    original = tokenized.original
    if plan.knockout:
        return _hypotheses_of(plan, model, original)
    if not isinstance(plan.positions, str):
        targets = original.targets(plan.positions)
    elif plan.targets == "roles":
        first = tokenized.first_difference if plan.source in PAIR_SOURCES else 0
        targets = original.targets([role for role, at in original.roles.items() if at[-1] >= first])
    else:
        targets = original.targets(plan.targets)  # type: ignore[arg-type]  (a list: else "roles")
    single = range(len(original.token_ids)) if plan.positions == "all" else {p for at in targets.values() for p in at}
    positions = sorted(single)
    joint = [at for at in targets.values() if len(at) > 1]
    columns = [*([p] for p in positions), *joint]
    return Columns(positions, columns, targets, {t: columns.index(at) for t, at in targets.items()}, [])


def _hypotheses_of(plan: Plan, model: LoadedModel, program: TokenizedProgram) -> Columns:
    edges, mass = {}, None
    if plan.control and plan.match_attention:
        mass = attention_pattern(model, torch.tensor(program.token_ids)).mean((0, 1))
    for name in HYPOTHESES if isinstance(plan.positions, str) else map(str, plan.positions):
        edges[name] = edges_of(program, name)
        if plan.control:
            with suppress(PairError):  # a prompt that is all chain: it has no control, which n then shows
                draws = [random_control(program, edges[name], n, mass) for n in range(plan.random_draws)]
                edges |= {f"{name}{RANDOM}" + (f"_{n + 1}" if n else ""): of for n, of in enumerate(draws)}
    targets = {name: sorted({p for edge in of for p in edge}) for name, of in edges.items()}
    numbers = {name: number for number, name in enumerate(targets)}
    return Columns([], list(targets.values()), targets, numbers, [tuple(sorted(of)) for of in edges.values()])
