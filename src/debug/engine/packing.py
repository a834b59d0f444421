"""Interventions packed into the rows of batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.engine.interventions import Intervention
from debug.engine.unpatched import ForwardPasses
from debug.models import LoadedModel

ROW_TOKENS = 64  # attention costs tokens x row length, so rows of packed interventions are short
MOST_LOGITS = 2**26  # numbers that a batch of interventions may have as logits


def pack(interventions: Sequence[Intervention], indices: Iterable[int], length: int) -> list[list[int]]:
    """Interventions into rows; a row belongs to one unpatched forward pass. The longest rows first."""
    by_base: dict[int, list[int]] = defaultdict(list)
    for index in sorted(indices, key=lambda index: interventions[index].start):
        by_base[interventions[index].base].append(index)
    rows = []
    for chosen in by_base.values():
        tokens = [length - interventions[index].start for index in chosen]
        most = max(ROW_TOKENS, tokens[0])
        # Rows of like length have no padding: as many as are needed, each as short as that allows, give or take some.
        even = max(tokens[0], -(-sum(tokens) // -(-sum(tokens) // most)))
        tries = [_first_fit(tokens, capacity) for capacity in sorted({even, even + 1, even + 3, even + 6, most})]
        best = min(tries, key=lambda packed: len(packed) * max(sum(tokens[i] for i in row) for row in packed))
        rows += [[chosen[i] for i in row] for row in best]
    return sorted(rows, key=lambda row: -row_length(row, interventions, length))


def _first_fit(tokens: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of things, given longest first, in rows of no more than ``capacity``."""
    free: list[int] = []  # of each row
    rows: list[list[int]] = []
    first_open = 0
    for number, size in enumerate(tokens):
        row = next((row for row in range(first_open, len(rows)) if free[row] >= size), len(rows))
        if row == len(rows):
            free.append(capacity)
            rows.append([])
        free[row] -= size
        rows[row].append(number)
        while first_open < len(rows) and free[first_open] == 0:
            first_open += 1
    return rows


def row_length(row: Sequence[int], interventions: Sequence[Intervention], length: int) -> int:
    return sum(length - interventions[index].start for index in row)


def next_batch(
    rows: list[list[int]], interventions: Sequence[Intervention], passes: ForwardPasses, batch_tokens: int
) -> list[list[int]]:
    """The first rows, as many as a batch may have tokens, and interventions whose logits are kept."""
    most = max(1, batch_tokens // row_length(rows[0], interventions, passes.length))
    logits = np.cumsum([len(row) for row in rows[:most]]) * passes.logits.shape[1]
    return rows[: max(1, int((logits <= MOST_LOGITS).sum()))]


@dataclass(frozen=True)
class Packed:
    """Interventions packed into the rows of a batch: where the tokens of each lie, and what they may see."""

    interventions: list[Intervention]
    numbers: list[int]
    """Of each intervention: what ``segments`` call it."""
    offsets: list[tuple[int, int]]
    """Of each intervention: its row, and the token of the row at which it begins."""
    length: int
    positions: Int[np.ndarray, "row token"]
    starts: Int[np.ndarray, "row token"]
    segments: Int[np.ndarray, "row token"]
    """Which intervention a token belongs to; -1 is padding, which sees padding only."""
    bases: list[int]
    """Of each row: the unpatched forward pass that its interventions change."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], interventions: Sequence[Intervention], passes: ForwardPasses) -> Packed:
        shape = (len(rows), max(row_length(row, interventions, passes.length) for row in rows))
        positions, starts = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1)
        offsets = []
        for r, row in enumerate(rows):
            offset = 0
            for index in row:
                start = interventions[index].start
                end = offset + passes.length - start
                positions[r, offset:end] = np.arange(start, passes.length)
                starts[r, offset:end] = start
                segments[r, offset:end] = index
                offsets.append((r, offset))
                offset = end
        numbers = [index for row in rows for index in row]
        packed = [interventions[index] for index in numbers]
        return cls(
            packed,
            numbers,
            offsets,
            passes.length,
            positions,
            starts,
            segments,
            [interventions[row[0]].base for row in rows],
        )

    def token(self, intervention: int, position: int) -> tuple[int, int]:
        """Row and token at which an intervention has a position of its prompt."""
        row, offset = self.offsets[intervention]
        return row, offset + position - self.interventions[intervention].start

    @property
    def shape(self) -> tuple[int, int]:
        rows, tokens = self.positions.shape
        return rows, tokens

    @property
    def prefix(self) -> int:
        """Positions of the clean prefix that some row reads."""
        return int(self.starts.max())

    def mask(self, model: LoadedModel, device: torch.device) -> Float[Tensor, "row 1 query key"] | dict[str, Tensor]:
        own = (self.segments[:, :, None] == self.segments[:, None, :]) & (
            self.positions[:, None, :] <= self.positions[:, :, None]
        )
        prefix = np.arange(self.prefix)
        allowed = np.concatenate([prefix < self.starts[:, :, None], own], axis=2)
        key_positions = np.concatenate(
            [np.broadcast_to(prefix, (len(self.bases), len(prefix))), self.positions], axis=1
        )
        distance = self.positions[:, :, None] - key_positions[:, None, :]
        return model.attention_mask(torch.from_numpy(allowed).to(device), torch.from_numpy(distance).to(device))
