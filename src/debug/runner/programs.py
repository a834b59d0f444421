"""The programs of a cell: drawn seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

from debug.core import ExperimentConfig
from debug.errors import InputError
from debug.generators import MAX_SEEDS, GeneratedProgram, GeneratorError, attempts
from debug.progress import Progress
from debug.runner.results import hops_text


class TooFewPrograms(InputError):
    """The search for programs of the hops asked for ended before there were enough."""


@dataclass(frozen=True)
class NotGenerated:
    """A seed for which the generator gave no program."""

    seed: int
    error: str


@dataclass(frozen=True)
class Drawn:
    """The programs of a cell, the template they are put into, and how many seeds were passed over to find them."""

    programs: list[GeneratedProgram]
    failed: list[NotGenerated]
    template: str
    seeds_passed_over: int


def draw_programs(config: ExperimentConfig, hops: int | None, seq_len: int) -> Drawn:
    """The first ``num_seqs`` seeds whose program has the hops and is not solved in the prompt as an example.

    A seed at which the generator fails is one of them: it is recorded, and not replaced by another.
    """
    template = config.prompt_text(seq_len)
    programs, failed, start = [], [], config.first_seed(hops, seq_len)
    with Progress(config.num_seqs, "programs", "program", brief=True) as bar:
        for found in attempts(config.generator[1], seq_len, start, hops, template):
            if isinstance(found, GeneratorError):
                failed.append(NotGenerated(found.seed, str(found)))
            else:
                programs.append(found)
            bar.update()
            done = len(programs) + len(failed)
            if done == config.num_seqs:
                return Drawn(programs, failed, template, found.seed - start + 1 - done)
    raise TooFewPrograms(
        f"found {len(programs)} of {config.num_seqs} programs with {hops_text(hops)} hops on {seq_len} lines in "
        f"{MAX_SEEDS} seeds from {start} on; ask for fewer, or for longer programs"
    )
