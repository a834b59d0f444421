"""Rules of the house that no linter knows."""

import ast
import os
import re
import subprocess
import sys
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


def imported_by(script: str, *arguments: str, **environment: str) -> tuple[set[str], str]:
    """The top-level modules that a script in runs/ has imported when it ends, and what it printed."""
    run = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end\n"
        "print('imported:', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, str(ROOT / "runs" / script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said, _, names = done.stdout.rpartition("imported: ")
    return set(names.split()), said


def test_rules_in_the_place_of_models_cost_no_torch(uri: str) -> None:
    rules = ("--models", "heuristic:any-number", "heuristic:largest-chain")
    found, said = imported_by("accuracy.py", *rules, "--num-seqs", "5", MLFLOW_TRACKING_URI=uri)
    assert "heuristic:largest-chain" in said
    assert "mlflow" in found
    assert found & {"torch", "nnsight"} == set()


def test_no_name_of_a_packages_face_is_also_that_of_a_module_in_it() -> None:
    """Once the module is imported, the package's attribute of that name would be the module. Of some in
    ``debug`` it is the module that is meant: those that are given as modules, and lazy, which its face uses."""
    faces = sorted((ROOT / "src" / "debug").rglob("__init__.py"))
    assert len(faces) > 15
    hidden, given = [], []
    for face in faces:
        package = ".".join(face.parent.relative_to(ROOT / "src").parts)
        modules = {
            path.stem for path in face.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        for node in ast.walk(ast.parse(face.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {node.name}
            elif isinstance(node, ast.Assign):
                names = {each.id for to in node.targets for each in ast.walk(to) if isinstance(each, ast.Name)}
            else:
                continue
            itself = isinstance(node, ast.ImportFrom) and node.module == package
            (given if itself else hidden).extend(f"{package}.{name}" for name in sorted(names & modules))
    assert hidden == []
    assert {"debug.generators", "debug.lazy", "debug.prompts"} <= {*given}


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
