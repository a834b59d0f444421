"""What is looked for. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from debug.core import ExperimentConfig
from debug.errors import InputError

KIND = "robust_seeds"


@dataclass(frozen=True)
class RobustSearch:
    """Which seeds are looked for. Fields that :class:`debug.core.ExperimentConfig` has, too, are what they are there.

    Raises:
        InputError: names the field, what it was, and what was expected.
    """

    models: Sequence[str]
    hops: Sequence[int | None] = (3,)
    seq_lens: Sequence[int] = (5,)
    count: int = 1
    """Seeds to find in each cell (hops, seq_len)."""
    seed: int = 0
    max_tried: int = 1000
    """Programs to try in each cell before it gives up."""
    prompt_template: str = "VARIABLE_BINDING"
    few_shot: int = 0
    all_incorrect: bool = False
    """Look for seeds that every model answers wrong instead; an unparseable text is not a wrong answer."""
    max_new_tokens: int = 8
    name: str = KIND
    programs: ExperimentConfig = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.max_tried, bool) or not isinstance(self.max_tried, int) or self.max_tried < 1:
            raise InputError(f"max_tried is {self.max_tried!r}; expected an integer, 1 or more")
        if not isinstance(self.all_incorrect, bool):
            raise InputError(f"all_incorrect is {self.all_incorrect!r}; expected true or false")
        config = ExperimentConfig(
            name=self.name,
            prompt_template=self.prompt_template,
            program_generator="variable_binding",
            models=self.models,
            num_seqs=self.count,
            seq_lens=self.seq_lens,
            hops=self.hops,
            seed=self.seed,
            few_shot=self.few_shot,
            max_new_tokens=self.max_new_tokens,
        )
        object.__setattr__(self, "programs", config)
        object.__setattr__(self, "hops", config.hops)
