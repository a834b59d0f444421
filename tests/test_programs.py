"""What a program is: parsed as Python would read it, never executed; anything else is refused by name."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug.programs import Program, ProgramError, ProgramPair

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,3}", fullmatch=True)
NUMBERS = st.integers(-(10**17), 10**17)
SPACES = st.text(" \t", max_size=2)


@st.composite
def program_texts(draw: st.DrawFn) -> str:
    """Programs of any shape that Python reads: long names, re-assignment, large and negative numbers, odd spacing."""
    assigned: list[str] = []
    lines = []
    for _ in range(draw(st.integers(1, 30))):
        name = draw(NAMES | st.sampled_from(assigned) if assigned else NAMES)
        value = draw(NUMBERS.map(str) | st.sampled_from(assigned) if assigned else NUMBERS.map(str))
        lines.append(f"{name}{draw(SPACES)}={draw(SPACES)}{value}{draw(SPACES)}")
        assigned.append(name)
    return "\n".join([*lines, f"#{draw(st.sampled_from(assigned))}:{draw(SPACES)}"])


def evaluate(text: str) -> tuple[int, list[str]]:
    """The answer and the chain of names, as Python's own assignment gives them."""
    values: dict[str, int] = {}
    chains: dict[str, list[str]] = {}
    *lines, query = text.split("\n")
    for line in lines:
        name, right = (side.strip() for side in line.split("="))
        values[name], chains[name] = values[right] if right in values else int(right), [name, *chains.get(right, [])]
    queried = query.strip().strip("#:")
    return values[queried], chains[queried]


@given(program_texts())
def test_the_answer_is_what_python_would_compute(text: str) -> None:
    answer, names = evaluate(text)
    program = Program.parse(text)
    assert program.answer == answer
    assert list(program.chain.names) == names
    assert program.hops == len(names)
    assert program.seq_len == text.count("\n")
    assert program.chain.root_value == answer


@given(program_texts())
def test_referential_depth_counts_up_from_the_root_and_every_line_is_below_the_one_that_it_reads(text: str) -> None:
    chain = Program.parse(text).chain.assignments
    assert [assignment.ref_depth for assignment in chain] == list(range(1, len(chain) + 1))
    assert [assignment.source for assignment in chain] == [None, *[a.line for a in chain[:-1]]]
    assert all(above.line < below.line for above, below in pairwise(chain))


@given(program_texts())
def test_spans_point_at_their_text(text: str) -> None:
    program = Program.parse(text)
    for assignment in program.assignments:
        spans = (assignment.lhs_span, assignment.equals_span, assignment.rhs_span, assignment.newline_span)
        assert [text[slice(*span)] for span in spans] == [assignment.lhs, "=", assignment.rhs, "\n"]
        assert text[: assignment.newline_span[0]].count("\n") == assignment.line
    spans = (program.query_hash_span, program.query_var_span, program.query_colon_span)
    assert [text[slice(*span)] for span in spans] == ["#", program.query, ":"]


@given(program_texts(), NUMBERS)
def test_another_root_value_changes_the_root_and_nothing_else(text: str, value: int) -> None:
    program = Program.parse(text)
    changed = program.with_root(value)
    assert changed.answer == value
    start, end = program.chain.root.rhs_span
    assert changed.text == text[:start] + str(value) + text[end:]
    assert changed.with_root(program.answer) == program


def test_a_read_takes_the_last_assignment_above_it() -> None:
    program = Program.parse("a = 1\nb = a\na = 2\nc = a\na = a\n#a: ")
    assert (program.answer, program.chain.names) == (2, ("a", "a"))
    assert Program.parse("a = 1\nb = a\na = 2\n#b: ").answer == 1


def test_programs_are_equal_when_their_texts_are() -> None:
    assert len({Program.parse("a = 1\n#a: "), Program.parse("a = 1\n#a: "), Program.parse("a = 1\n#a:")}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the last line is ''; expected a query line such as '#a: '"),
        ("\n", "line 1 is ''; expected an assignment"),
        ("a = 1", "the last line is 'a = 1'; expected a query line"),
        ("a = 1\n", "the last line is ''; expected a query line"),
        ("a = 1\n#a: \nb = 1\n#b: ", "line 2 is '#a: ', a query line; expected it to be the last, but others follow"),
        ("a = 1\n#a: \n  ", "line 2 is '#a: ', a query line; expected it to be the last"),
        ("#a: \na = 1", "line 1 is '#a: ', a query line; expected it to be the last"),
        ("a = 1\n#a: 1", "the last line is '#a: 1'"),
        ("a = 1\n# a: ", "the last line is '# a: '"),
        ("#a: ", "the query line asks for 'a', which no line assigns"),
        ("a = 1\n#b: ", "the query line asks for 'b', which no line assigns"),
        ("a = b\nb = 1\n#a: ", "line 1 is 'a = b', but 'b' is not assigned above it"),
        ("a = a\n#a: ", "line 1 is 'a = a', but 'a' is not assigned above it"),
        ("a = 1\n\nb = a\n#b: ", "line 2 is ''; expected an assignment"),
        ("a = 1 + 2\n#a: ", "line 1 is 'a = 1 + 2'"),
        ("a == 1\n#a: ", "line 1 is 'a == 1'"),
        ("a = 1.5\n#a: ", "line 1"),
        ("1 = 1\n#a: ", "line 1"),
        (" a = 1\n#a: ", "line 1"),
        ("a = 007\n#a: ", "line 1"),  # no number to Python, and not what with_root would write
        ("a = -0\n#a: ", "line 1"),
        ("a = 1\r#a: ", r"the last line is 'a = 1\r#a: '"),
        ("a = 1\r\r\n#a: ", r"line 1 is 'a = 1\r'"),
        ("a = 1\n\ufeffb = a\n#b: ", r"line 2 is '\ufeffb = a'"),
        ("a = 1\x00\n#a: ", "line 1"),
        ("a\x0b=\x0c1\n#a: ", "line 1"),
        ("a = 1\n#a:\x1b[2J", "the last line"),
        ("a\u00a0= 1\n#a: ", "line 1"),
        ("a = \u0661\n#a: ", "line 1"),  # a digit, but not an ASCII one
        ("\ufb01 = 1\n#\ufb01: ", "line 1"),  # a ligature, which Python would read as another name
        ("__import__('os').system('true')\n#a: ", "line 1"),
        ("a = {code}\n#a: ", "line 1"),
    ],
)
def test_what_is_no_program_is_refused_with_the_line_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(message)):
        Program.parse(text)


@given(st.text() | st.text("ab=# 12:\n\t\r\x00-"))
def test_any_text_is_a_program_or_a_program_error(text: str) -> None:
    try:
        program = Program.parse(text)
    except ProgramError:
        return
    assert (program.answer, list(program.chain.names)) == evaluate(program.text)


@pytest.mark.parametrize(
    "written",
    [
        lambda text: text + "\n",
        lambda text: text + "\n\n\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r\n") + "\r\n",
        lambda text: "\ufeff" + text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n") + "\r\n",
    ],
)
@pytest.mark.parametrize("query", ["#b: ", "#b:"])
def test_what_editors_add_is_no_part_of_a_program(written, query: str) -> None:
    """A line break at the end, carriage returns, a byte-order mark: the tokens of the prompt and the answer stay."""
    plain = f"a = 4\nb = a\n{query}"
    program = Program.parse(written(plain))
    assert program == Program.parse(plain)
    assert (program.text, program.answer, program.seq_len) == (plain, 4, 2)
    assert program.assignments == Program.parse(plain).assignments
    other = plain.replace("4", "7")
    pair = ProgramPair.from_record({"original": written(plain), "counterfactual": written(other)})
    assert pair == ProgramPair(Program.parse(plain), Program.parse(other))
    assert ProgramPair.from_record(pair.to_record()) == pair


@pytest.mark.timeout(60)
def test_a_hundred_thousand_lines_take_linear_time_and_no_recursion() -> None:
    lines = 100_000
    program = Program.parse("".join(["v0 = 7\n", *(f"v{i} = v{i - 1}\n" for i in range(1, lines)), f"#v{lines - 1}: "]))
    assert program.hops == lines
    assert program.with_root(8).answer == 8


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", ["a" * 10**6, " " * 10**6, "a = " + "b" * 10**6, "a" + " " * 10**6 + "!", "1" * 10**6])
def test_one_huge_line_is_refused_at_once_with_a_short_message(line: str) -> None:
    with pytest.raises(ProgramError) as refused:
        Program.parse(f"{line}\n#a: ")
    assert len(str(refused.value)) < 400


ORIGINAL = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "
COUNTERFACTUAL = "i = 3\nx = i\nh = x\ny = 4\nw = x\n#h: "
RECORD = {
    "seed": 2,
    "hops": 3,
    "seq_len": 5,
    "original": ORIGINAL,
    "counterfactual": COUNTERFACTUAL,
    "expected_original": 8,
    "expected_counterfactual": 3,
    "variable_chain": ["h", "x", "i"],
}


@given(program_texts(), NUMBERS, st.none() | st.integers(0, 2**32 - 1))
def test_a_pair_survives_its_record_and_json(text: str, value: int, seed: int | None) -> None:
    original = Program.parse(text)
    if value == original.answer:
        value = value + 1
    pair = ProgramPair(original, original.with_root(value), seed)
    assert ProgramPair.from_record(json.loads(json.dumps(pair.to_record()))) == pair
    assert (pair.expected_original, pair.expected_counterfactual) == (original.answer, value)
    assert pair.reversed.reversed == pair
    assert pair.reversed.expected_original == value


def test_a_record_says_everything_that_a_re_run_needs() -> None:
    pair = ProgramPair(Program.parse(ORIGINAL), Program.parse(COUNTERFACTUAL), seed=2)
    assert pair.to_record() == RECORD


def test_a_users_record_needs_no_more_than_the_two_texts() -> None:
    pair = ProgramPair.from_record({"original": ORIGINAL, "counterfactual": COUNTERFACTUAL, "note": "mine"})
    assert (pair.seed, pair.original.hops) == (None, 3)
    assert ProgramPair.from_record(RECORD | {"variable_chain": ("h", "x", "i"), "hops": None}).seed == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original": None}, "needs the texts 'original' and 'counterfactual', given fields"),
        ({"counterfactual": 3}, "needs the texts"),
        ({"original": "a = 1"}, "expected a query line"),
        ({"counterfactual": ORIGINAL}, "same answer, 8; the root value must differ"),
        (
            {"counterfactual": COUNTERFACTUAL.replace("y = 4", "y = 5"), "kind": "root_value"},
            "differ in the root value and in nothing else",
        ),
        ({"counterfactual": COUNTERFACTUAL.replace("h = x", "h = 8")}, "same answer, 8"),
        ({"seed": "2"}, "'seed' is '2'; expected an integer"),
        ({"seed": True}, "'seed' is True"),
        ({"hops": 2}, "'hops' is 2, but the programs say 3"),
        ({"hops": "3"}, "'hops' is '3'"),
        ({"seq_len": 4}, "'seq_len' is 4, but the programs say 5"),
        ({"expected_original": 3}, "'expected_original' is 3, but the programs say 8"),
        ({"expected_original": "8"}, "'expected_original' is '8'"),
        ({"expected_counterfactual": 8}, "'expected_counterfactual' is 8, but the programs say 3"),
        ({"variable_chain": ["i", "x", "h"]}, "'variable_chain' is"),
        ({"variable_chain": "hxi"}, "'variable_chain' is 'hxi'"),
    ],
)
def test_a_record_that_contradicts_its_programs_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        ProgramPair.from_record(RECORD | changes)


def test_true_is_not_one() -> None:
    record = {"original": "a = 1\n#a: ", "counterfactual": "a = 2\n#a: ", "hops": True}
    with pytest.raises(ProgramError, match="'hops' is True"):
        ProgramPair.from_record(record)


@pytest.mark.parametrize("record", [None, [], "text", [RECORD]])
def test_what_is_no_record_is_refused(record: object) -> None:
    with pytest.raises(ProgramError, match="a pair is a record of fields, given"):
        ProgramPair.from_record(record)  # type: ignore[arg-type]  (refused)
