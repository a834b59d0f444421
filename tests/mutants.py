"""Mutation run: each known fault is put into a copy of the source, and the tests named beside it must fail.

    python tests/mutants.py                      # all; some minutes
    python tests/mutants.py --list
    python tests/mutants.py --only padding       # those whose name holds a word
    python tests/mutants.py --since HEAD~5 --minutes 2    # those whose file, or tests, changed since a commit

A mutant is data: the text that it replaces, which must stand in its file exactly once, and the tests that are asked.
They are run on a copy of the package, first unchanged (they must pass), then with the fault. Prints a table in Markdown
(docs/mutants.md holds one); exit status 1 where a mutant survives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/debug")
LIBRARIES = [
    "pytest",
    "anyio._backends._asyncio",
    "torch",
    "transformers",
    "nnsight",
    "mlflow",
    "altair",
    "scipy.stats",
]
"""Imported once: the processes that run tests are forks of one that has them. What anyio needs comes before nnsight,
which gives every object a ``save``."""


class Mutant(NamedTuple):
    """A fault that the tests must see."""

    name: str
    file: str
    """In the package."""
    original: str
    fault: str
    tests: str
    """What pytest is given, separated by spaces: files, or tests in them."""

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
        "tests/test_robust_seeds.py::test_a_seed_counts_only_where_both_its_programs_are_as_asked_for",
    ),
    Mutant(
        "accuracy counts replacement pairs",
        "causal_experiment_runner.py",
        'and len(self.correct) < self.params["num_seqs"]',
        "",
        "tests/test_causal_experiment_runner.py::test_skipped_pairs_are_recorded_with_their_reason",
    ),
    Mutant(
        "the control is skipped where the counterfactual does not differ yet",
        "causal_tracing.py",
        "self._cells(number, self.control_row[number], first)",
        "self._cells(number, self.control_row[number])",
        "tests/test_causal_tracing.py::test_the_control_runs_where_its_own_program_differs_first",
    ),
)


class Run(NamedTuple):
    """What pytest ended with (0: all tests passed, 1: some failed), the end of what it printed, and its seconds."""

    status: int
    output: str
    seconds: float


def run(tests: str, mutant: Mutant | None, end: float) -> Run | None:
    """The tests, on a copy of the package with the fault in it; None where they would begin after ``end``."""
    if time.time() > end:
        return None
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        package = Path(folder, "debug")
        shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
        (package / "checkpoints").symlink_to(ROOT / PACKAGE / "checkpoints")
        if mutant is not None:
            (package / mutant.file).write_text(mutant.source(), "utf-8")
        os.environ["PYTHONPATH"] = folder
        sys.path.insert(0, folder)
        os.chdir(ROOT)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        import pytest

        status = int(pytest.main(["-x", "-p", "no:cacheprovider", "--no-header", "-W", "ignore", *tests.split()]))
        output.seek(0)
        return Run(status, output.read().decode(errors="replace")[-2000:], time.monotonic() - began)


def verdict(unchanged: Run | None, changed: Run | None) -> str:
    """``killed``, or what went otherwise: tests that fail without the fault tell nothing."""
    if unchanged is None or changed is None:
        return "not run"
    if unchanged.status == 0 and changed.status in (0, 1):
        return "killed" if changed.status else "SURVIVED"
    return "NOT ASKED"


def changed_since(commit: str) -> set[str]:
    """Files that differ from those of a commit; none where git does not know it, as in a copy without its history."""
    command = ["git", "diff", "--name-only", "--relative", commit, "--"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        return print(f"no mutant is chosen: {error}") or set()
    if done.returncode:
        print(f"no mutant is chosen: {done.stderr.strip()}")
    return set(done.stdout.split())


def chosen(only: str, since: str | None) -> Iterator[Mutant]:
    """Those whose name holds a word, and whose file or one of whose tests' files changed since a commit."""
    changed = None if since is None else changed_since(since)
    for mutant in MUTANTS:
        files = {str(PACKAGE / mutant.file), *(name.partition("::")[0] for name in mutant.tests.split())}
        if only in mutant.name and (changed is None or files & changed):
            yield mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only print their names")
    parser.add_argument("--only", default="", metavar="WORD", help="those whose name holds this")
    parser.add_argument("--since", metavar="COMMIT", help="those whose file or tests changed since this commit")
    parser.add_argument("--minutes", type=float, default=60, help="none is begun after so many (default 60)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mutants = list(chosen(options.only, options.since))
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in mutants))
        return 0
    end = time.time() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    print("| file | mutant | verdict | seconds |\n| --- | --- | --- | ---: |")
    verdicts = []
    with ProcessPoolExecutor(options.processes, context, max_tasks_per_child=1) as pool:
        unchanged, changed = {}, {}
        for mutant in mutants:  # in this order, so that a run that ends early has whole verdicts
            if mutant.tests not in unchanged:
                unchanged[mutant.tests] = pool.submit(run, mutant.tests, None, end)
            changed[mutant.name] = pool.submit(run, mutant.tests, mutant, end)
        for mutant in mutants:
            before, after = unchanged[mutant.tests].result(), changed[mutant.name].result()
            verdicts.append(verdict(before, after))
            seconds = f"{after.seconds:.0f}" if after else ""
            print(f"| {mutant.file} | {mutant.name} | {verdicts[-1]} | {seconds} |", flush=True)
            if verdicts[-1] == "NOT ASKED":
                print((before if before and before.status else after or before).output, file=sys.stderr)
    bad = len(verdicts) - verdicts.count("killed") - verdicts.count("not run")
    print(
        f"\n{verdicts.count('killed')} of {len(mutants)} mutants killed, {bad} not, {verdicts.count('not run')} not run"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
