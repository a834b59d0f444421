"""Flags of scripts from the fields of a dataclass: what the help says, and what a command line gives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from debug.errors import InputError
from debug.kinds import Argument
from debug.options import Known, OneOf, add_flags, check_choices, docs_of, flags_of, given

SIZES = ("small", "large")


@dataclass(frozen=True)
class Base:
    models: Sequence[str]
    """Ids of models."""
    few_shot: int = 0
    """Not read: another class says it again."""
    told_elsewhere: int = 0


@dataclass(frozen=True)
class Options(Base):
    few_shot: int = 2
    """Solved
    examples, 50% of them short."""
    size: Annotated[str, OneOf(SIZES)] = "small"
    """How large."""
    source: Annotated[str, OneOf(SIZES)] | None = None
    wording: Annotated[str, Known(("PLAIN", "CHAT"))] = "PLAIN"
    """What is asked."""
    control: bool = True
    """Run the control."""
    seq_lens: Sequence[int] = (5, 17)
    """Numbers of lines."""
    layers: Sequence[int] | None = None
    window: int | None = None
    hops: Sequence[int | None] = (None, 3)
    heads: Sequence[int | Sequence[int]] | str | None = None
    note: str | None = None
    made: str = field(init=False, default="")
    """Set when it is made."""


@dataclass
class Docs:
    few_shot: int = 0
    """Not read: the field has its own."""
    told_elsewhere: int = 0
    """Told by another dataclass."""


def parser(**how: Argument) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    add_flags(made, Options, **how)
    return made


def parsed(*arguments: str, **how: Argument) -> dict[str, Argument]:
    return given(parser(**how).parse_args(arguments), Options)


def helps(**how: Argument) -> dict[str, str]:
    """First flag -> its help, as it is printed, in one line."""
    made = parser(**how)
    printed = " ".join(made.format_help().split())
    found = {each.option_strings[0]: (each.help or "") % vars(each) for each in made._actions}
    assert all(" ".join(text.split()) in printed for text in found.values())
    return found


def test_a_field_is_a_flag_and_one_that_is_not_given_is_not_there() -> None:
    assert parsed() == {}
    assert parsed("--few-shot", "3", "--note", "5 a") == {"few_shot": 3, "note": "5 a"}
    assert parsed("--note", "5") == {"note": "5"}  # text that looks like a number
    assert "--made" not in helps()
    with pytest.raises(argparse.ArgumentError, match="expected one argument"):
        parsed("--few-shot")
    for flag in ("--few-shot", "--window", "--seq-lens", "--layers"):
        with pytest.raises(argparse.ArgumentError, match="invalid int value: 'x'"):
            parsed(flag, "x")


def test_only_fields_of_the_dataclass_are_given() -> None:
    made = parser()
    made.add_argument("--batch-size", type=int, default=32)
    assert given(made.parse_args(["--batch-size", "8", "--size", "large"]), Options) == {"size": "large"}


def test_several_values_are_numbers_where_they_are_whole_and_words_elsewhere() -> None:
    assert parsed("--seq-lens", "5", "17") == {"seq_lens": [5, 17]}
    assert parsed("--models", "tiny", "7") == {"models": ["tiny", "7"]}
    assert parsed("--hops", "any", "3") == {"hops": ["any", 3]}
    assert parsed("--heads", "0", "3+5") == {"heads": [0, "3+5"]}
    with pytest.raises(argparse.ArgumentError, match="expected at least one argument"):
        parsed("--seq-lens")


def test_yes_or_no_has_two_flags() -> None:
    assert parsed("--control") == {"control": True}
    assert parsed("--no-control") == {"control": False}


def test_choices_are_refused_on_the_command_line_and_in_python() -> None:
    assert parsed("--size", "large", "--source", "small") == {"size": "large", "source": "small"}
    for flag in ("--size", "--source"):
        with pytest.raises(argparse.ArgumentError, match="invalid choice: 'huge'"):
            parsed(flag, "huge")
    check_choices(Options(["tiny"]))
    for name in ("size", "source"):
        with pytest.raises(InputError, match=f"{name} is 'huge'; expected one of small, large"):
            check_choices(Options(["tiny"], **dict[str, Argument]({name: "huge"})))


def test_names_that_are_known_are_listed_and_others_will_do() -> None:
    assert helps()["--wording"] == "What is asked. One of: PLAIN, CHAT. (default: PLAIN)"
    assert parsed("--wording", "Run: {code}") == {"wording": "Run: {code}"}
    check_choices(Options(["tiny"], wording="Run: {code}"))


def test_help_is_the_docstring_and_the_default() -> None:
    said = helps()
    assert said["--few-shot"] == "Solved examples, 50% of them short. (default: 2)"
    assert said["--control"] == "Run the control. (default: yes)"
    assert said["--seq-lens"] == "Numbers of lines. (default: 5 17)"
    assert said["--hops"].strip() == "(default: any 3)"
    assert said["--models"] == "Ids of models."  # no default
    assert said["--note"] == ""  # None is none
    assert said["--size"] == "How large. (default: small)"
    assert "--size {small,large}" in parser().format_help()
    for shown in (
        "--few-shot N",
        "--layers N [N ...]",
        "--hops N [N ...]",
        "--wording WORDING",
        "--heads HEADS [HEADS ...]",
    ):
        assert shown in parser().format_help()


def test_a_scripts_own_defaults_are_parsed_and_shown() -> None:
    own = {"models": ["tiny", "large"], "control": False}
    assert parsed(defaults=own) == own
    assert parsed("--models", "small", "--control", defaults=own) == {"models": ["small"], "control": True}
    said = helps(defaults=own)
    assert said["--models"] == "Ids of models. (default: tiny large)"
    assert said["--control"] == "Run the control. (default: no)"


def test_where_all_stays_as_logged_no_default_is_named() -> None:
    assert not [flag for flag, text in helps(as_logged=True).items() if "(default" in text]
    assert helps(as_logged=True)["--wording"] == "What is asked. One of: PLAIN, CHAT."
    assert parsed(as_logged=True) == {}


def test_docstrings_come_from_bases_and_from_a_dataclass_that_is_alike() -> None:
    assert docs_of(Options)["models"] == "Ids of models."
    assert helps()["--told-elsewhere"].strip() == "(default: 0)"
    said = helps(like=Docs)
    assert said["--told-elsewhere"] == "Told by another dataclass. (default: 0)"
    assert said["--few-shot"] == "Solved examples, 50% of them short. (default: 2)"


def test_some_flags_are_not_their_fields_names() -> None:
    assert flags_of("layer_window") == ("--layer-window",)
    kinds = argparse.ArgumentParser()
    add_flags(kinds, Renamed)
    both = ["--prompt", "CHAT", "--num-seeds", "7"]
    for task in ("--task", "--generator"):
        found = given(kinds.parse_args([*both, task, "range"]), Renamed)
        assert found == {"prompt_template": "CHAT", "count": 7, "program_generator": "range"}


@dataclass
class Renamed:
    prompt_template: str = ""
    program_generator: str = ""
    count: int = 1
