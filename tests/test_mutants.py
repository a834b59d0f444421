"""The mutation run (``tests/mutants.py``) is about the source and the tests as they are."""

from pathlib import Path

import pytest

import mutants
from mutants import Run


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_of_each_mutant_stands_in_its_file_once_and_still_compiles(mutant: mutants.Mutant) -> None:
    compile(mutant.source(), mutant.file, "exec")
    for name in mutant.tests.split():
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (mutants.ROOT / file).read_text("utf-8") if test else file
        assert (mutants.ROOT / file).is_file()


def test_names_tell_mutants_apart() -> None:
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


def test_a_mutant_is_killed_only_by_tests_that_pass_without_it() -> None:
    passed, failed, broken = (Run(status, "", 1.0) for status in (0, 1, 2))
    assert mutants.verdict(passed, failed) == "killed"
    assert mutants.verdict(passed, passed) == "SURVIVED"
    assert {mutants.verdict(before, failed) for before in (failed, broken)} == {"NOT ASKED"}
    assert mutants.verdict(passed, broken) == "NOT ASKED"
    assert mutants.verdict(passed, Run(1, "E  SelfCheckError: beside", 1.0), "SelfCheckError") == "killed"
    assert mutants.verdict(passed, Run(1, "E  IndexError: beside", 1.0), "SelfCheckError") == "ANOTHER ERROR"
    assert mutants.verdict(passed, None) == mutants.verdict(None, None) == "not run"


def test_without_history_no_mutant_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the files alone, a clone of the last commit alone, a machine without git."""
    assert len(mutants.chosen("", None)) == len(mutants.MUTANTS)
    assert mutants.chosen("", "no-such-commit") == []
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    assert mutants.chosen("", "HEAD~5") == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mutants.chosen("", "HEAD~5") == []
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert all(line.startswith("no mutant is chosen: ") for line in said)


def test_mutants_of_files_and_of_tests_that_changed_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"src/debug/paper/strategies.py", "tests/test_self_checks.py"}
    monkeypatch.setattr(mutants, "changed_since", lambda _: changed)
    found = mutants.chosen("", "HEAD~1")
    assert found[0].file == "paper/strategies.py", "what may not be reached in time comes last"
    assert {mutant.file.rpartition("/")[0] for mutant in found} == {"paper", "engine"}
    assert {mutant.tests.partition("::")[0] for mutant in found} == {
        "tests/test_strategies.py",
        "tests/test_self_checks.py",
    }
