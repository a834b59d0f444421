"""What a model answers: a completion, or the scores of possible answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind a prompt; ``ended``: it stopped by itself. ``error``: why it was not asked.

    ``tokens``: of the prompt and of the completion, where a server counted them.
    """

    text: str = ""
    ended: bool = True
    error: str | None = None
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scores:
    """Log probabilities of the possible answers behind a prompt, among themselves, by their first telling token.

    ``mass`` is what they share of the whole vocabulary's probability. ``error``: why the prompt was not run.
    ``tokens``: as :class:`Completion`.
    """

    log_probabilities: tuple[float, ...] = ()
    mass: float | None = None
    error: str | None = None
    tokens: tuple[int, int] | None = None
