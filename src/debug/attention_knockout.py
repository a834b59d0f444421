"""The other intervention: attention edges that a hypothesis needs are cut before the softmax; does the answer survive?

Two hypotheses of how a model gets from the query to the root value ship as presets, both of whole lines; each stands
beside controls that cut as many random edges (:func:`random_control`):

- ``direct_pointer``: the query line's tokens attend straight to the root's line.
- ``chain_following``: they attend to the chain's last line, which attends to the line before it, and so on to the root.

Single steps, and single tokens, are one's own hypotheses: ``ref_depth_2_line->ref_depth_1_line``,
``final->ref_depth_1_rhs``.

An edge is (query position, key position). This file names edges; cutting them is the engine's part. Knockout of
edges after Geva et al. 2023 (arXiv 2304.14767), the question after Wu, Geiger and Millière (arXiv 2505.20896).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float

from debug.token_analyzer import PairError, TokenizedProgram

Edges = frozenset[tuple[int, int]]


def direct_pointer(program: TokenizedProgram) -> Edges:
    """From the query line's tokens to the root's line."""
    return _edges(_query_line(program), program.positions("ref_depth_1_line"))


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


NEAREST = 3  # candidates of the like distance among which a draw chooses


def random_control(
    program: TokenizedProgram,
    edges: Edges,
    draw: int = 0,
    mass: Float[np.ndarray, "query key"] | None = None,
) -> Edges:
    """As many other edges, drawn at random (by the prompt's text and ``draw``), that no chain of the query needs.

    Each stands for one that is cut: of the same query where that has another one to give, else of any; among these one
    of the NEAREST by the distance from query to key, or, where ``mass`` is given (what each query attends to each key),
    the nearest by that of some that are near by distance. Never an edge between tokens of the queried chain's lines
    and of the query line, which are what hypotheses cut; a query never loses itself.

    Raises:
        PairError: the prompt has not so many.
    """
    rng = np.random.RandomState([zlib.crc32(program.prompt.encode()), draw])
    depth = sum(role.endswith("_rhs") for role in program.roles)
    chain = {*_query_line(program), *(p for k in range(1, depth + 1) for p in program.positions(f"ref_depth_{k}_line"))}
    every = _edges(range(len(program.token_ids)), range(len(program.token_ids)))
    free = sorted(edge for edge in every - edges if not chain.issuperset(edge))
    if len(edges) > len(free):
        raise PairError(
            f"{len(edges)} edges are cut, and the prompt has only {len(free)} others off the queried chain for a "
            "random control"
        )
    chosen: set[tuple[int, int]] = set()
    cut = [sorted(edges)[i] for i in rng.permutation(len(edges))]
    if mass is not None:
        cut.sort(key=lambda edge: -mass[edge])  # the largest first: they have the fewest likes
    for query, key in cut:
        left = [edge for edge in free if edge not in chosen]
        own = [edge for edge in left if edge[0] == query] or left
        own.sort(key=lambda edge: (abs((query - key) - (edge[0] - edge[1])), abs(query - edge[0])))
        if mass is None:
            chosen.add(own[rng.randint(min(NEAREST, len(own)))])
        else:
            some = [own[i] for i in rng.permutation(min(4 * NEAREST, len(own)))[: 2 * NEAREST]]
            chosen.add(min(some, key=lambda edge: abs(mass[edge] - mass[query, key])))
    return frozenset(chosen)


def _query_line(program: TokenizedProgram) -> list[int]:
    return program.positions("query_hash+query_var+query_colon+final")


def _edges(queries: list[int] | range, keys: list[int] | range) -> Edges:
    """Pairs that a causal model has, less each token's edge to itself."""
    return frozenset((query, key) for query, key in product(queries, keys) if key < query)
