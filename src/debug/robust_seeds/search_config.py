"""What is looked for. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from debug.core import ExperimentConfig

KIND = "robust_seeds"


@dataclass(frozen=True)
class RobustSearch(ExperimentConfig):
    """Which seeds are looked for: ``count`` of each cell (hops, seq_len).

    Raises:
        InputError: names the field, what it was, and what was expected.
    """

    name: str = field(default=KIND, kw_only=True)
    prompt_template: str = field(default="VARIABLE_BINDING", kw_only=True)
    program_generator: str = field(default="variable_binding", init=False)
    models: Sequence[str] = field(kw_only=True)
    num_seqs: int = field(init=False)
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    hops: Sequence[int | None] = field(default=(3,), kw_only=True)
    independent_cells: bool = field(default=False, init=False)
    answer_parser: None = field(default=None, init=False)
    max_new_tokens: int = 8
    chat: bool = field(default=False, init=False)
    scoring: str = field(default="generate", init=False)
    count: int = 1
    """Seeds to find in each cell."""
    max_tried: int = 1000
    """Programs to try in each cell before it gives up."""
    all_incorrect: bool = False
    """Look for seeds that every model answers wrong instead; an unparseable text is not a wrong answer."""

    def __post_init__(self) -> None:
        self._check_integers(max_tried=1, count=1)
        self._check_booleans("all_incorrect")
        self._set("num_seqs", self.count)
        super().__post_init__()
