"""The other intervention: attention edges that a hypothesis needs are cut before the softmax; does the answer survive?

Two hypotheses of how a model gets from the query to the root value ship as presets; each stands beside a control that
cuts as many random edges:

- ``direct_pointer``: the query line's tokens attend straight to the root's right-hand side.
- ``chain_following``: they attend to the chain's last line, which attends to the line before it, and so on to the root.

An edge is (query position, key position). This file names edges; cutting them is the engine's part. Knockout of
edges after Geva et al. 2023 (arXiv 2304.14767), the question after Wu, Geiger and Millière (arXiv 2505.20896).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np

from debug.token_analyzer import PairError, TokenizedProgram

Edges = frozenset[tuple[int, int]]


def direct_pointer(program: TokenizedProgram) -> Edges:
    """From the query line's tokens to the root's right-hand side."""
    return _edges(_query_line(program), program.roles["ref_depth_1_rhs"])


def chain_following(program: TokenizedProgram) -> Edges:
    """From the query line's tokens to the chain's last line, and from each chain line to the one before it.

    Raises:
        PairError: the chain has one line only, and no intermediate lines to go through.
    """
    depth = sum(role.endswith("_rhs") for role in program.roles)
    if depth < 2:
        raise PairError("chain_following needs a chain of 2 lines or more: this one's root is its only line")
    lines = [program.positions(f"ref_depth_{k}_line") for k in range(1, depth + 1)]
    steps = [_edges(_query_line(program), lines[-1])]
    steps += [_edges(line, before) for before, line in pairwise(lines)]
    return frozenset().union(*steps)


HYPOTHESES: dict[str, Callable[[TokenizedProgram], Edges]] = {
    "direct_pointer": direct_pointer,
    "chain_following": chain_following,
}


def edges_of(program: TokenizedProgram, hypothesis: str) -> Edges:
    """The edges of a preset, or of one's own hypothesis ``queries->keys``: ``final->ref_depth_1_rhs+ref_depth_2_line``.

    Raises:
        PairError: this program has not all of these targets, or no edge goes from one to the other.
    """
    if hypothesis in HYPOTHESES:
        return HYPOTHESES[hypothesis](program)
    queries, _, keys = hypothesis.partition("->")
    edges = _edges(program.positions(queries), program.positions(keys))
    if not edges:
        raise PairError(f"{hypothesis!r} has no edge: every key comes after every query")
    return edges


def random_control(program: TokenizedProgram, edges: Edges) -> Edges:
    """As many other edges, drawn at random (by the prompt's text): for each query as many other keys as it has, where
    there are so many, else any edges. A query never loses itself.

    Raises:
        PairError: the prompt has not so many.
    """
    rng = np.random.RandomState(zlib.crc32(program.prompt.encode()))
    every = set(_edges(range(len(program.token_ids)), range(len(program.token_ids)))) - edges
    chosen: set[tuple[int, int]] = set()
    for query, n in sorted(Counter(query for query, _ in edges).items()):
        own = sorted(edge for edge in every if edge[0] == query)
        chosen |= {own[i] for i in rng.permutation(len(own))[:n]}
    others, missing = sorted(every - chosen), len(edges) - len(chosen)
    if missing > len(others):
        raise PairError(f"{len(edges)} edges are cut, and the prompt has only {len(every)} others for a random control")
    return frozenset(chosen | {others[i] for i in rng.permutation(len(others))[:missing]})


def _query_line(program: TokenizedProgram) -> list[int]:
    return program.positions("query_hash+query_var+query_colon+final")


def _edges(queries: list[int] | range, keys: list[int] | range) -> Edges:
    """Pairs that a causal model has, less each token's edge to itself."""
    return frozenset((query, key) for query, key in product(queries, keys) if key < query)
