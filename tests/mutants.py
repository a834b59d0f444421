"""Mutation run: each known fault is put into a copy of the source, and the tests named beside it must fail.

    python tests/mutants.py                      # all; some minutes
    python tests/mutants.py --list
    python tests/mutants.py --only padding       # those whose name holds a word
    python tests/mutants.py --since 1.day        # those of files that commits of the last day changed
    python tests/mutants.py --since 1.day --minutes 5

A mutant is data: the text that it replaces, which must stand in its file exactly once, and the tests that are asked.
They are run on a copy of the package, first unchanged (they must pass), then with the fault. Exit status 1 where a
mutant survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/debug")


class Mutant(NamedTuple):
    """A fault that the tests must see."""

    name: str
    file: str
    """In the package."""
    original: str
    fault: str
    tests: str
    """What pytest is given, separated by spaces; a word with ``-k`` in front chooses by name."""

    def source(self) -> str:
        """The file with the fault in it; raises ValueError where the text does not stand there exactly once."""
        text = (ROOT / PACKAGE / self.file).read_text("utf-8")
        if (times := text.count(self.original)) != 1:
            raise ValueError(f"mutant {self.name!r}: stands {times} times in {self.file}, not once:\n{self.original}")
        return text.replace(self.original, self.fault)


MUTANTS: Sequence[Mutant] = (
    Mutant(
        "robust seed ignores the counterfactual",
        "robust_seeds.py",
        "all(wrong if search.all_incorrect else correct)",
        "(wrong if search.all_incorrect else correct)[0]",
        "tests/test_robust_seeds.py",
    ),
    Mutant(
        "accuracy counts replacement pairs",
        "causal_experiment_runner.py",
        'and len(self.correct) < self.params["num_seqs"]',
        "",
        "tests/test_causal_experiment_runner.py",
    ),
    Mutant(
        "the control is skipped where the counterfactual does not differ yet",
        "causal_tracing.py",
        "self._cells(number, self.control_row[number], first)",
        "self._cells(number, self.control_row[number])",
        "tests/test_causal_tracing.py -k control",
    ),
)


def copied(folder: Path, mutant: Mutant | None) -> Path:
    """A copy of the package in ``folder``, with the fault in it; the bundled weights are linked."""
    package = folder / "debug"
    shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    (package / "checkpoints").symlink_to(ROOT / PACKAGE / "checkpoints")
    if mutant is not None:
        (package / mutant.file).write_text(mutant.source(), "utf-8")
    return folder


def run(tests: str, mutant: Mutant | None) -> tuple[int, str]:
    """pytest's exit status and the end of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(copied(Path(folder), mutant)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--no-header", *tests.split()]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr)[-2000:]


def verdict(mutant: Mutant) -> str:
    """``killed``, or what went otherwise: a test that fails without the fault tells nothing."""
    for fault, expected in ((None, 0), (mutant, 1)):
        status, output = run(mutant.tests, fault)
        if status != expected:
            return "SURVIVED" if fault and status == 0 else f"NOT ASKED: pytest ended with {status}\n{output}"
    return "killed"


def changed_since(since: str) -> set[str]:
    """Files of the package that commits since then changed."""
    command = ["git", "log", f"--since={since}", "--name-only", "--format="]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return {str(Path(name).relative_to(PACKAGE)) for name in names if Path(name).is_relative_to(PACKAGE)}


def chosen(options: argparse.Namespace) -> Iterable[Mutant]:
    changed = changed_since(options.since) if options.since else None
    for mutant in MUTANTS:
        if options.only in mutant.name and (changed is None or mutant.file in changed):
            yield mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only print their names")
    parser.add_argument("--only", default="", metavar="WORD", help="those whose name holds this")
    parser.add_argument("--since", help="those of files changed since then, as git log --since takes it")
    parser.add_argument("--minutes", type=float, default=60, help="no mutant is begun after so many (default 60)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mutants = list(chosen(options))
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in mutants))
        return 0
    end = time.monotonic() + 60 * options.minutes
    with ThreadPoolExecutor(options.processes) as pool:
        verdicts = list(pool.map(lambda m: verdict(m) if time.monotonic() < end else "not run: out of time", mutants))
    for mutant, said in zip(mutants, verdicts, strict=True):
        print(f"{said:10} {mutant.file}: {mutant.name}")
    bad = sum(said.startswith(("SURVIVED", "NOT ASKED")) for said in verdicts)
    print(f"\n{verdicts.count('killed')} of {len(mutants)} mutants killed, {bad} not")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
