"""How long commands on the bundled model take from the prompt to the end, on two pairs or programs.

python benchmarks/startup.py                    # in a store that is there, and in a new one; median of 5
python benchmarks/startup.py --no-bytecode      # as where nothing was compiled when it was installed
python benchmarks/startup.py --source ../older/src

CPU is that of all processes of a command: it is longer than the wall where two cores work.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "trace --num-seqs 2": ["trace", "--num-seqs", "2"],
    "accuracy --num-seqs 2": ["accuracy", "--num-seqs", "2"],
    "demo, 2 programs, 2 pairs": ["demo", "--num-seqs", "2", "--num-pairs", "2", "--hops", "1", "3"],
    "rerun": ["rerun", "RUN"],
}


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds on the wall and of CPU, and what was printed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "debug", *words], env=environment, capture_output=True, text=True, check=True
    )
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--no-bytecode", action="store_true")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, median of {options.times}\n")
    print("| command | wall, s | CPU, s |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(options.source.resolve())}
        if options.no_bytecode:
            environment |= {"PYTHONPYCACHEPREFIX": f"{folder}/none", "PYTHONDONTWRITEBYTECODE": "1"}
        there = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/there/mlflow.db"}
        *_, said = timed(["trace", "--num-seqs", "2"], there)
        run_id = said.partition("; run ")[2].split()[0]
        for name, words in {"trace --num-seqs 2, new store": COMMANDS["trace --num-seqs 2"], **COMMANDS}.items():
            times = []
            for number in range(options.times):
                new = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/{number}/mlflow.db"}
                here = new if name.endswith("new store") else there
                times.append(timed([run_id if word == "RUN" else word for word in words], here)[:2])
            wall, cpu = (statistics.median(each) for each in zip(*times, strict=True))
            print(f"| `debug {name}` | {wall:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
