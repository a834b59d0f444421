"""The counterfactual of a program: another root value, named by the program's own seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug.counterfactual import make_pair, python_pair, python_pairs, same_answer_program
from debug.generators import generate, make_variable_binding_program
from debug.programs import Program, ProgramError
from present import present

SEEDS = st.integers(0, 2**32 - 1)
EVERY_DIGIT = "".join(f"{name} = {digit}\n" for name, digit in zip("abcdefghij", "0123456789", strict=True)) + "#d: "


@given(SEEDS, st.integers(1, 40))
def test_the_root_is_drawn_by_the_programs_seed_from_digits_that_do_not_occur(seed: int, seq_len: int) -> None:
    made = generate(make_variable_binding_program, seq_len, seed)
    pair = make_pair(made.program, seed)
    free = [d for d in "0123456789" if d not in made.program] or [d for d in "0123456789" if int(d) != made.answer]
    assert pair.expected_counterfactual == int(np.random.RandomState([seed, 1]).choice(free))
    assert pair.expected_counterfactual != made.answer
    assert pair == make_pair(made.program, seed)
    assert pair.seed == seed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("s = 'ab'\nn = 2\nr = s * n\n#r: ", "abab"),
        ("r = ''\nfor i in range(3):\n    r += 'x'\n#r: ", "xxx"),
        ("a = 1\nr = 5\nif a > 3:\n    r = '5'\nif a > 6:\n    r = 7\n#r: ", "5"),
    ],
)
def test_of_own_python_changes_whose_answer_cannot_be_asked_for_are_passed_over(text: str, answer: str) -> None:
    """One of them, an empty text or 5 and '5', refused the whole program."""
    found = [*python_pairs(text), python_pair(text, 3)]
    assert len(found) > 1
    assert {str(pair.original.answer) for pair in found} == {answer}
    assert all(str(pair.counterfactual.answer).strip() not in ("", answer) for pair in found)


@given(SEEDS, st.integers(1, 40))
def test_only_the_root_changes(seed: int, seq_len: int) -> None:
    pair = make_pair(generate(make_variable_binding_program, seq_len, seed).program, seed)
    original, counterfactual = pair.original.text, pair.counterfactual.text
    differing = [place for place, (a, b) in enumerate(zip(original, counterfactual, strict=True)) if a != b]
    assert differing == [pair.variable_chain.root.rhs_span[0]]
    assert pair.original.chain.names == pair.counterfactual.chain.names


@given(SEEDS)
def test_where_every_digit_occurs_any_other_digit_may_be_drawn(seed: int) -> None:
    pair = make_pair(EVERY_DIGIT, seed)
    assert pair.expected_original == 3
    assert pair.expected_counterfactual in set(range(10)) - {3}


def test_every_free_digit_is_drawn_by_some_seed() -> None:
    drawn = {make_pair("a = 1\nb = 2\nc = a\n#c: ", seed).expected_counterfactual for seed in range(100)}
    assert drawn == {0, 3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("value", [2, 10, -3, 123456])
def test_a_root_value_may_be_given(value: int) -> None:
    pair = make_pair("a = 1\nb = 2\nc = a\n#c: ", seed=5, root_value=value)
    assert pair.counterfactual.text == f"a = {value}\nb = 2\nc = a\n#c: "
    assert (pair.expected_counterfactual, pair.seed) == (value, 5)


def test_a_program_without_a_seed_has_a_pair_too() -> None:
    pair = make_pair(Program.parse("a = 1\n#a: "))
    assert pair.seed is None
    assert pair.expected_counterfactual == make_pair("a = 1\n#a: ", seed=0).expected_counterfactual


def test_the_programs_own_root_value_is_no_counterfactual() -> None:
    with pytest.raises(ProgramError, match="same answer, 1; the root value must differ"):
        make_pair("a = 1\n#a: ", root_value=1)


@pytest.mark.parametrize("text", ["", "a = 1", "a = 1\n#b: ", "garbage\n#a: "])
def test_what_is_no_program_has_no_pair(text: str) -> None:
    with pytest.raises(ProgramError):
        make_pair(text, 3)


@pytest.mark.parametrize("value", [1.5, "b", True, None.__class__, 10**18])
def test_a_root_value_that_is_no_number_of_a_program_is_refused(value: object) -> None:
    with pytest.raises(ProgramError):
        make_pair("b = 1\nc = 5\na = b\n#a: ", root_value=value)  # type: ignore[arg-type]  (refused)


# --- The same-answer control's source ---


@given(SEEDS, st.integers(1, 40), st.integers(0, 9))
def test_the_control_has_the_answer_and_the_lines_of_the_program_and_none_of_its_names_in_place(
    seed: int, seq_len: int, attempt: int
) -> None:
    program = Program.parse(generate(make_variable_binding_program, seq_len, seed).program)
    control = same_answer_program(program, attempt)
    if control is None:  # the last letters of a long program may find no other name
        assert len({a.lhs for a in program.assignments}) > 13
        assert any(same_answer_program(program, other) for other in range(10))
        return
    assert (control.answer, control.hops, len(control.text)) == (program.answer, program.hops, len(program.text))
    assert control == same_answer_program(program, attempt), "drawn by the text and the attempt alone"
    for old, new in zip(program.text, control.text, strict=True):
        assert (old != new) == old.isalpha(), "every name is another, and nothing else is"
    assert [a.source for a in control.assignments] == [a.source for a in program.assignments]


def test_attempts_draw_other_controls() -> None:
    program = Program.parse("a = 1\nb = a\n#b: ")
    assert len({present(same_answer_program(program, attempt)).text for attempt in range(20)}) > 10


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("ab = 1\nxy = ab\nzzz = 4\nyyy = 2\n#xy: ", "xy = 1\nab = xy\nyyy = 4\nzzz = 2\n#ab: "),
        ("foo = 1\nbar = foo\n#bar: ", "bar = 1\nfoo = bar\n#foo: "),
        ("foo = 1\n#foo: ", None),
        ("de = 1\n#de: ", None),  # part of the alphabet, and yet no letter
        ("a = 1\nfoo = a\n#foo: ", None),
    ],
)
def test_longer_names_are_exchanged_with_those_of_their_length(text: str, control: str | None) -> None:
    found = same_answer_program(Program.parse(text))
    assert (found and found.text) == control


def test_letters_keep_their_case() -> None:
    control = same_answer_program(Program.parse("A = 1\nb = A\n#b: "))
    assert present(control).text[0].isupper()
    assert present(control).query.islower()
