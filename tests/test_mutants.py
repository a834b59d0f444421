"""The mutation run (``tests/mutants.py``) is about the source as it is."""

from pathlib import Path

import pytest

import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_text_of_each_mutant_stands_in_its_file_once_and_still_compiles(mutant: mutants.Mutant) -> None:
    compile(mutant.source(), mutant.file, "exec")
    for name in mutant.tests.split():
        assert name.startswith("-") or "::" in name or (Path(mutants.ROOT) / name).exists() or name.isidentifier()
