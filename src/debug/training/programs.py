"""Training programs, and the ones that are held out of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from debug.counterfactual import make_pair
from debug.generators import generate, make_variable_binding_program, search
from debug.programs import ProgramPair
from debug.training.vocabulary import DIGIT, EQUALS, LETTER, NEWLINE, VOCABULARY

# ------------------------------------------------------------------------------------------------- held-out programs

Shape = tuple[int | None, int]  # hops (None: any) and seq_len

LENGTHS = range(2, 18)
MAX_HOPS = 4

HELD_OUT: dict[Shape, int] = {
    **{(None, seq_len): 4000 if seq_len == 17 else 1000 for seq_len in LENGTHS},
    **{(hops, seq_len): 1000 for seq_len in (5, 17) for hops in range(1, MAX_HOPS + 1)},
}
"""(hops, seq_len) -> how many programs are held out: those of the first seeds, from 0, that have these hops
(None: any). They and their counterfactuals are never trained on, whichever variable is queried."""


BEYOND: dict[Shape, int] = {(None, 20): 1000, (None, 26): 1000, **{(hops, 17): 500 for hops in range(5, 9)}}
"""Cells outside the training distribution (longer programs, deeper queries), reported whatever they are."""

PUBLISHED = {(1, 5): 11, (2, 5): 3, (3, 5): 2, (1, 17): 5, (2, 17): 14, (3, 17): 12}
"""(hops, seq_len) -> seed of the programs published with the paper; all of them are held out."""


def first_pairs(cells: dict[Shape, int]) -> dict[Shape, list[ProgramPair]]:
    """The pairs of the first seeds of each (hops, seq_len), as many as asked for."""
    pairs = {}
    for (hops, seq_len), count in tqdm(cells.items(), desc="held-out programs", unit="cell"):
        found = islice(search(make_variable_binding_program, seq_len, 0, hops), count)
        pairs[hops, seq_len] = [make_pair(made.program, made.seed) for made in found]
    return pairs


def published_pairs() -> dict[Shape, list[ProgramPair]]:
    """The six programs published with the paper, and their counterfactuals."""
    texts = {cell: generate(make_variable_binding_program, cell[1], seed).program for cell, seed in PUBLISHED.items()}
    return {cell: [make_pair(text, PUBLISHED[cell])] for cell, text in texts.items()}


def reserved_texts(pairs: Iterable[ProgramPair]) -> set[bytes]:
    """The assignment lines of both programs of each pair, query left out, as tokens: what may not be trained on."""
    index = {word: number for number, word in enumerate(VOCABULARY)}
    return {
        bytes(token for line in program.assignments for token in (index[line.lhs], EQUALS, index[line.rhs], NEWLINE))
        for pair in pairs
        for program in (pair.original, pair.counterfactual)
    }


# ------------------------------------------------------------------------------------------------- training programs


@dataclass(frozen=True)
class Programs:
    """Assignment lines of many programs of one length; every array is [program, line] of integers."""

    lhs: Int[np.ndarray, "program line"]
    """Letter, 0 for a."""
    source: Int[np.ndarray, "program line"]
    """The line that the right-hand side reads, -1 where it is a digit."""
    depth: Int[np.ndarray, "program line"]
    root: Int[np.ndarray, "program line"]
    """The line that assigns the root value of this line."""
    value: Int[np.ndarray, "program line"]

    @property
    def tokens(self) -> Int[np.ndarray, "program token"]:
        read = np.take_along_axis(self.lhs, np.maximum(self.source, 0), axis=1)
        rhs = np.where(self.source < 0, DIGIT + self.value, LETTER + read)
        lines = np.stack([LETTER + self.lhs, np.full_like(rhs, EQUALS), rhs, np.full_like(rhs, NEWLINE)], axis=2)
        return lines.reshape(len(rhs), -1)

    def keep(self, chosen: Bool[np.ndarray, " program"]) -> Programs:
        return Programs(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def sample_programs(
    rng: np.random.Generator,
    count: int,
    seq_len: int,
    constant_share: float | Float[np.ndarray, "program 1"] = 0.3,
    depth_power: float | Float[np.ndarray, "program 1"] = 3.0,
) -> Programs:
    """Programs of :func:`debug.generators.make_variable_binding_program`'s distribution, many at once.

    Letters are not assigned again, so that seq_len is at most 26.

    Args:
        constant_share: probability that a line assigns a digit; 0.3 as published.
        depth_power: a variable is read with probability proportional to its referential depth to this power; 3 as
            published.
    """
    lhs = rng.permuted(np.tile(np.arange(26), (count, 1)), axis=1)[:, :seq_len]
    digits = rng.integers(10, size=(count, seq_len))
    constant = rng.random((count, seq_len)) < constant_share
    draw = rng.random((count, seq_len))
    rows = np.arange(count)
    source = np.full((count, seq_len), -1)
    depth = np.ones((count, seq_len), dtype=int)
    root = np.tile(np.arange(seq_len), (count, 1))
    for line in range(1, seq_len):
        heap = np.cumsum(depth[:, :line].astype(float) ** depth_power, axis=1)
        read = (draw[:, line, None] * heap[:, -1:] >= heap).sum(axis=1)
        source[:, line] = np.where(constant[:, line], -1, read)
        depth[:, line] = np.where(constant[:, line], 1, depth[rows, read] + 1)
        root[:, line] = np.where(constant[:, line], line, root[rows, read])
    return Programs(lhs, source, depth, root, np.take_along_axis(digits, root, axis=1))


def sample_queries(rng: np.random.Generator, programs: Programs, count: int) -> Int[np.ndarray, "program query"]:
    """Lines whose variables are queried: each depth from 1 to 4 of a program equally likely, within a depth each root,
    within those each variable.

    The published draw of the query is not balanced: "the root of the largest chain" answers 85 to 90% of its queries,
    and training on it stops there.
    """
    depth, root = programs.depth, programs.root
    same_depth = depth[:, :, None] == depth[:, None, :]
    weight = 1 / (same_depth & (root[:, :, None] == root[:, None, :])).sum(axis=2)
    weight /= (same_depth * weight[:, None, :]).sum(axis=2)
    heap = np.cumsum(np.where(depth <= MAX_HOPS, weight, 0), axis=1)
    draw = rng.random((len(depth), count)) * heap[:, -1:]
    return (draw[:, :, None] >= heap[:, None, :]).sum(axis=2)
