"""The checkpoints of a training run, and the runs of a store that were made with their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from debug.errors import DebugError
from debug.kinds import Json
from debug.programs import Program, ProgramError
from debug.provenance import files_digest
from debug.tracking import LoggedRun

_FILE = re.compile(r"checkpoints/step_(\d{1,9})/(config\.json|model\.safetensors)")


@dataclass(frozen=True)
class Said:
    """A checkpoint's answer to a program of variable binding."""

    program: str
    answer: str | None
    right: bool
    hops: int
    root_line: int
    """The line that assigns the root value, from 1."""
    lines: int
    expected: str

    @property
    def outcome(self) -> str:
        """One of :data:`debug.causal_visualization.checkpoints.OUTCOMES`."""
        if self.right:
            return "right"
        if self.answer is None:
            return "no answer"
        numbers = [(a.line, a.rhs) for a in Program.parse(self.program).assignments if a.source is None]
        if self.answer in [number for line, number in numbers if line < 2]:
            return "wrong: number on line 1 or 2"
        if self.answer in [number for _, number in numbers]:
            return "wrong: other number of the program"
        return "wrong: not in the program"


@dataclass(frozen=True)
class Checkpoints:
    """A training run's checkpoints and what a store knows of each."""

    training: LoggedRun
    runs: Sequence[LoggedRun]
    """The cells of the store, in the order in which they were started."""

    @cached_property
    def folders(self) -> dict[int, Path]:
        """Step -> the folder of a checkpoint's weights, of those that are whole."""
        found: dict[int, dict[str, Path]] = {}
        for name in self.training.artifacts():
            if match := _FILE.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = self.training.artifact(name)
        return {step: files["config.json"].parent for step, files in sorted(found.items()) if len(files) == 2}

    @cached_property
    def _step_of(self) -> dict[str, int]:
        """Digest of weights -> step."""
        files = ("config.json", "model.safetensors")
        return {files_digest(folder / name for name in files): step for step, folder in self.folders.items()}

    def made_with(self, kind: str, component: str | None = None) -> dict[int, list[LoggedRun]]:
        """Step -> the finished cells of a kind (and component) that were run on its weights: those of the study with
        the most checkpoints, the newest of several. Names may repeat between trainings; digests of weights do not."""
        by_study: dict[str | None, dict[int, list[LoggedRun]]] = {}
        for run in self.runs:
            step = self._step_of.get(run.tags.get("debug.weights_digest", ""))
            suits = run.kind == kind and component in (None, run.params.get("intervention_type"))
            if suits and step is not None and run.status == "FINISHED":
                by_study.setdefault(run.parent_run_id, {}).setdefault(step, []).append(run)
        best: dict[int, list[LoggedRun]] = {}
        for found in by_study.values():
            best = found if len(found) >= len(best) else best
        return dict(sorted(best.items()))

    @cached_property
    def answers(self) -> dict[int, dict[str, Said]]:
        """Step -> program -> answer, of the programs that every checkpoint was asked."""
        by_step = {step: _said(runs) for step, runs in self.made_with("accuracy").items()}
        if not by_step:
            return {}
        shared = set.intersection(*(set(found) for found in by_step.values()))
        first = next(iter(by_step.values()))
        ordered = [program for program in first if program in shared]
        return {step: {program: found[program] for program in ordered} for step, found in by_step.items() if ordered}


def _said(runs: Sequence[LoggedRun]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for run in runs:
        try:
            for sample in run.sample_records():
                if (said := _answer(sample)) is not None:
                    found.setdefault(said.program, said)
        except DebugError:
            continue  # the page of the run says what is wrong with it
    return found


def _answer(sample: Mapping[str, Json]) -> Said | None:
    """None of what is no program of variable binding, and of samples that failed."""
    try:
        program = Program.parse(sample["program"] or "")
    except ProgramError:
        return None
    if sample["correct"] is None:
        return None
    parsed = sample["parsed"]
    return Said(
        program.text,
        None if parsed is None else str(parsed),
        sample["correct"],
        program.hops,
        program.chain.root.line + 1,
        program.seq_len,
        str(program.answer),
    )
