"""Studies, searches and training that are struck at random moments: a sample of what benchmarks/faults.py does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def test_nothing_is_lost_doubled_or_changed(tmp_path: Path) -> None:
    """In a process of its own: it forks."""
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    command = [sys.executable, script, "--only", "kill -9", "--times", "1"]
    command += ["--seed", str(time.time_ns() % 2**31), "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 4
    assert sum(outcome["faults"] for outcome in found) >= 2, done.stdout
