"""Rules of the house that no linter knows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
IGNORED = re.compile(r"#\s*(?:type|pyright):\s*ignore\b(?:\[[^]]*\])?(.*)")


def test_what_type_checkers_are_told_to_ignore_has_its_reason() -> None:
    """Behind it, in the same comment: ``# type: ignore[arg-type]  (why)``."""
    folders = ("src", "runs", "dashboard", "tests", "benchmarks")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    ignored = [
        (f"{file.relative_to(ROOT)}:{number}", found[1])
        for file in files
        if file != Path(__file__)
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if (found := IGNORED.search(line))
    ]
    assert ignored
    assert [place for place, behind in ignored if not re.search(r"\w{3}", behind)] == []
