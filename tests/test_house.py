"""Rules of the house that no linter knows."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
IGNORED = re.compile(r"#\s*(?:type|pyright):\s*ignore\b(?:\[[^]]*\])?(.*)")


def python_files() -> list[Path]:
    folders = ("src", "runs", "dashboard", "tests", "benchmarks")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    return files


def test_what_type_checkers_are_told_to_ignore_has_its_reason() -> None:
    """Behind it, in the same comment: ``# type: ignore[arg-type]  (why)``."""
    ignored = [
        (f"{file.relative_to(ROOT)}:{number}", found[1])
        for file in python_files()
        if file != Path(__file__)
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if (found := IGNORED.search(line))
    ]
    assert ignored
    assert [place for place, behind in ignored if not re.search(r"\w{3}", behind)] == []


def any_without_reason(file: Path) -> Iterator[int]:
    """Lines of code that say ``Any`` and have no comment; imports aside."""
    with file.open("rb") as source:
        tokens = list(tokenize.tokenize(source.readline))
    explained = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for token in tokens:
        said = token.type == tokenize.NAME and token.string == "Any"
        if said and token.start[0] not in explained and not re.match(r"\s*(from|import)\b", token.line):
            yield token.start[0]


def test_any_has_its_reason_on_its_line() -> None:
    """Reasons that recur have names of their own in debug.kinds."""
    assert [f"{file.relative_to(ROOT)}:{line}" for file in python_files() for line in any_without_reason(file)] == []


def test_an_any_without_a_comment_is_found(tmp_path: Path) -> None:
    code = "from typing import Any\nx: Any = 1\ny: Any = 2  # why\nz = 'Any'\ndef f(a: int,\n    b: list[Any]): ...\n"
    (file := tmp_path / "code.py").write_text(code)
    assert list(any_without_reason(file)) == [2, 6]
