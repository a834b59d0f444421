"""What a report measures. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reproduction:
    """What is measured, of which model, on how many programs."""

    model: str = "tiny"
    """Model id: tiny, smollm2, a folder, a hub id."""
    prompt_template: str = "VARIABLE_BINDING"
    """Name of a prompt template, or a text with {code}."""
    hops: Sequence[int] = (1, 2, 3, 4)
    """Referential depths of the query."""
    seq_len: int = 17
    """Lines of the programs that are patched."""
    lengths: Sequence[int] = (2, 5, 8, 11, 14, 17)
    """Lines of the programs of the accuracy by length."""
    num_seqs: int = 500
    """Programs in each accuracy cell."""
    num_pairs: int = 200
    """Pairs, shallow ones excluded, in each causal cell."""
    seed: int = 0
    """RNG seed of the first program of each cell."""
    training_run: str | None = None
    """The run whose checkpoints are evaluated. Without: the newest finished training run of the model, if any."""
