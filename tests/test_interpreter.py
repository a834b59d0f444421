"""The interpreter's Python: states and answers are Python's, roles point at their text, the rest is refused."""

import ast
import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debug import interpreter
from debug.interpreter import Change, Code, State
from debug.interpreter.syntax import LONGEST_TEXT
from debug.programs import ProgramError
from traced_programs import difference

NESTED = """\
def f(a, b):
    c = a + 2
    return c - b
x = f(3, 4)
for i in range(3):
    if i % 2 == 0:
        x += i
    elif x > 0:
        x, i = i, x
    else:
        pass
#x: """


def parts(text: str, **options) -> dict[str, str]:
    """Role -> its text."""
    code = Code.parse(text, **options)
    return {role: code.text[slice(*span)] for role, span in code.spans.items()}


def refusal(text: str, query: str | None = "x") -> str:
    with pytest.raises(ProgramError) as refused:
        Code.parse(text, query)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# --- what Python does -------------------------------------------------------------------------------------------------

PROGRAMS = [
    NESTED,
    "x = 7 // -2\ny = -7 % 3\nz = 2 ** 10\nx = x - y * z\n#x: ",
    "x = True + 1\nx = not x\ny = x or 3\nx = y and 'a'\nx = x * 3 + 'b'\n#x: ",
    "a = [1, 2]\nb = a\nb.append(3)\na += [4]\nb[0] += 5\na = a + [6]\nx = b[0] + len(b) + b.pop()\n#x: ",
    "a = {'k': 1, 2: (3, 4)}\na['k'] += 1\na[5] = a[2][1]\nx = 'k' in a\ny = 7 not in a\nz = len(a)\n#x: ",
    "x = 0\nwhile x < 10:\n    x += 3\n    if x == 6:\n        continue\n    if x > 6:\n        break\n#x: ",
    "x = 0\nfor a in [1, 2]:\n    for b in (3, 4):\n        if b == 4:\n            break\n        x += a * b\n#x: ",
    "x = 0\nfor c in 'aba':\n    if c == 'a':\n        x += 1\nfor i in range(5, 0, -2):\n    x += i\n#x: ",
    "x = [1, 2, 3]\nfor i in x:\n    if len(x) < 6:\n        x.append(i)\nx = sum(x)\n#x: ",
    "x = 1 < 2 < 3 != 4\ny = 1 < 3 < 2\nx = x ^ y | True & False\n#x: ",
    "x = 0\ntry:\n    x += 1\n    x = x // 0\n    x = 9\nexcept IndexError:\n    x = 8\n"
    "except ZeroDivisionError:\n    x += 2\n#x: ",
    "def f(a):\n    return a[5]\nx = 0\ntry:\n    x = f([1])\nexcept IndexError:\n    x = 4\n#x: ",
    "x = 0\nfor i in range(3):\n    try:\n        x += 6 // i\n    except ZeroDivisionError:\n        continue\n#x: ",
    "def f(a):\n    if a < 1:\n        return 1\n    return a * f(a - 1)\nx = f(4)\n#x: ",
    "def f(a):\n    a.append(y)\ny = 3\nz = [1]\nx = f(z)\nx = len(z) + z[1]\n#x: ",
    "def f(x):\n    for y in x:\n        if y > 1:\n            return y\nx = f([1, 2, 3])\n#x: ",
    "x = max(3, min([4, 5])) + abs(-3) + int('12') + len(str(1234)) + bool([])\n#x: ",
    "x = [3, [4, 5]]\ny = x[1][-1]\nx[1][0] = 6\nx, y = y, x\n#x: ",
    "x = (1, 2) + (3,)\nx = x[0] + x[-1] + sum(range(4)) + (2 in range(3))\n#x: ",
    "if 3 > 2:\n\tx = 1\nelse:\n\tx = 2\n# a comment\n#x: ",
    "x = '# no comment'  # ü\nx = x + \"'é\"\n#x: ",
    "x = 3\nprint(x, [x, 'a'])\nprint('é')\nprint(x + 1)",
    "sum = 3\nsum += 1\n#sum: ",
    "é = 1\nﬁ = é + 1\n#ﬁ: ",
]


@pytest.mark.parametrize("text", PROGRAMS)
def test_every_state_is_pythons(text: str) -> None:
    code = Code.parse(text)
    assert difference(code.text, code.query) is None


def random_program(rng: random.Random) -> str:
    """Nested blocks, functions, lists and exceptions over a few names, all of which have a value."""
    names = ["a", "b", "c"]

    def atom() -> str:
        return rng.choice([*names, str(rng.randint(-3, 9)), "x[0]", "x[-1]", "len(x)", f"f({rng.choice(names)}, 2)"])

    def expression() -> str:
        sign = rng.choice(["+", "-", "*", "//", "%"])
        right = str(rng.randint(1, 5)) if sign == "*" else atom()
        return rng.choice([atom(), f"{atom()} % 50 {sign} {right}", f"max({atom()}, {atom()}) % 100"])

    def condition() -> str:
        compared = f"{atom()} {rng.choice(['<', '==', '>=', '!='])} {atom()}"
        return rng.choice([compared, f"{compared} {rng.choice(['and', 'or'])} not {atom()}", f"{atom()} in x"])

    def block(indent: str, depth: int, loop: bool) -> list[str]:
        lines = []
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(["set", "set", "add", "swap", "list"] + ["if", "for", "while", "try"] * (depth < 3))
            inner = indent + "    "
            if kind == "set":
                lines.append(f"{indent}{rng.choice(names)} = {expression()}")
            elif kind == "add":
                lines.append(f"{indent}{rng.choice(names)} {rng.choice(['+=', '-=', '//=', '%='])} {atom()}")
            elif kind == "swap":
                lines.append(f"{indent}a, {rng.choice(['b', 'x[0]'])} = b, a")
            elif kind == "list":
                lines.append(indent + rng.choice([f"x[-1] = {atom()}", f"x.append({atom()})", f"x = [{atom()}, 1]"]))
            elif kind == "if":
                lines += [f"{indent}if {condition()}:", *block(inner, depth + 1, loop)]
                if rng.random() < 0.5:
                    lines += [f"{indent}elif {condition()}:", *block(inner, depth + 1, loop)]
                if rng.random() < 0.5:
                    lines += [f"{indent}else:", *block(inner, depth + 1, loop)]
            elif kind == "for":
                over = rng.choice(["range(3)", "[a, 2]", "(b, c)"])
                lines += [f"{indent}for i{depth} in {over}:", *block(inner, depth + 1, True)]
            elif kind == "while":
                lines += [f"{indent}n{depth} = 0", f"{indent}while n{depth} < 2 and ({condition()}):"]
                lines += [f"{inner}n{depth} += 1", *block(inner, depth + 1, True)]
            else:
                lines += [f"{indent}try:", *block(inner, depth + 1, loop), f"{indent}except ZeroDivisionError:"]
                lines += block(inner, depth + 1, loop)
        if loop and rng.random() < 0.3:
            lines.append(indent + rng.choice(["break", "continue", "pass"]))
        return lines

    head = [
        "def f(p, q):",
        "    if p > q:",
        "        p = p % 10",
        "    return p - q",
        "a = 1",
        "b = 2",
        "c = 3",
        "x = [4]",
    ]
    whole = ["try:", *block("    ", 1, False), "except ZeroDivisionError:", "    a = -1"]
    return "\n".join([*head, *block("", 0, False)[:0], *whole, "#a: "])


def test_every_state_of_random_programs_is_pythons() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        assert difference(random_program(rng), None) is None


def test_a_state_is_a_copy_and_says_which_branch_was_taken() -> None:
    code = Code.parse("x = [1]\nfor i in range(1):\n    if i:\n        pass\n    x.append(i)\nx = len(x)\n#x: ")
    assert code.states == (
        State(1, {"x": [1]}),
        State(2, {"x": [1], "i": 0}, True),
        State(3, {"x": [1], "i": 0}, False),
        State(5, {"x": [1, 0], "i": 0}),
        State(2, {"x": [1, 0], "i": 0}, False),
        State(6, {"x": 2, "i": 0}),
    )


def test_lines_of_a_call_come_before_the_line_that_calls_with_the_functions_own_variables() -> None:
    states = Code.parse("def f(a):\n    b = a\n    return b\ny = 2\nx = f(y)\n#x: ").states
    assert [(state.line, state.depth, state.variables) for state in states] == [
        (1, 0, {}),
        (4, 0, {"y": 2}),
        (2, 1, {"a": 2, "b": 2}),
        (3, 1, {"a": 2, "b": 2}),
        (5, 0, {"y": 2, "x": 2}),
    ]


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "query", "answer"),
    [
        ("x = 3\n#x: ", None, 3),
        ("x = 3\n#x:", None, 3),
        ("\ufeffx = 3\r\ny = 4\r\n#x: \r\n\r\n", None, 3),
        ("x = 3\ny = 4\n", "y", 4),
        ("x = 3\ny = 4\n#x: ", "y", 4),
        ("x = 'a'\n#x: ", None, "a"),
        ("x = 3\nprint(x > 2)", None, True),
        ("x = 3\nprint(x)\n", None, 3),
        ("x = 'a'\nprint(x, 1)", None, "a 1"),
        ("print([1, 'a'])", None, "[1, 'a']"),
    ],
)
def test_the_answer_is_the_queried_variable_or_what_the_last_line_prints(text, query, answer) -> None:
    code = Code.parse(text, query)
    assert (code.answer, type(code.answer)) == (answer, type(answer))
    assert code.printed == ("" if "print" not in text else f"{answer}\n")


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ("x = 3", None, "asks for nothing; expected a last line such as '#x: ' or 'print.x.'"),
        ("", None, "asks for nothing"),
        ("if 1 > 0:\n    print(1)", None, "asks for nothing"),
        ("x = 3\n#y: ", None, "'y' is asked for, which no line assigns"),
        ("x = 3\n#if: ", None, "'if' is asked for, which no line assigns"),
        ("x = 3", "y", "'y' is asked for, which no line assigns"),
        ("x = [3]\n#x: ", None, r"'x' is asked for, and is \[3\]; an answer is a number, a text or a bool"),
        ("x = None\n#x: ", None, "an answer is a number"),
    ],
)
def test_a_program_without_an_answer_is_refused(text, query, message) -> None:
    with pytest.raises(ProgramError, match=message):
        Code.parse(text, query)


# --- roles and literals -----------------------------------------------------------------------------------------------


def test_roles_are_spans_of_the_text() -> None:
    found = parts(NESTED)
    for line in (role.split("_")[1] for role in found if role.startswith("line")):
        assert found[f"line_{line}_newline"] == "\n"
    assert {role: text for role, text in found.items() if not role.endswith("newline")} == {
        **{"line_1_argument_1": "a", "line_1_argument_2": "b"},
        **{"line_2_lhs": "c", "line_2_operator": "=", "line_2_rhs": "a + 2", "line_3_return": "c - b"},
        **{"line_4_lhs": "x", "line_4_operator": "=", "line_4_rhs": "f(3, 4)"},
        **{"line_4_argument_1": "3", "line_4_argument_2": "4"},
        **{"line_5_loop_variable": "i", "line_5_iterable": "range(3)", "line_5_argument_1": "3"},
        **{"line_6_condition": "i % 2 == 0", "line_7_lhs": "x", "line_7_operator": "+=", "line_7_rhs": "i"},
        **{"line_8_condition": "x > 0", "line_9_lhs": "x, i", "line_9_operator": "=", "line_9_rhs": "i, x"},
        **{"query_hash": "#", "query_var": "x", "query_colon": ":"},
    }


def test_roles_count_characters_and_not_bytes() -> None:
    found = parts("x = 'éü😀'  # ü\nü = x + '😀'; # é\nprint('é', ü)")
    assert (found["line_1_rhs"], found["line_2_lhs"], found["line_2_rhs"]) == ("'éü😀'", "ü", "x + '😀'")
    assert (found["line_3_print"], found["line_3_argument_2"]) == ("'é', ü", "ü")
    code = Code.parse("x = 'éü'\ny = [x, 'é', -3, True]\n#x: ")
    assert [(one.line, code.text[slice(*one.span)], one.value) for one in code.literals] == [
        (1, "'éü'", "éü"),
        (2, "'é'", "é"),
        (2, "-3", -3),
        (2, "True", True),
    ]


@given(st.integers(-(10**6), 10**6) | st.booleans() | st.text(max_size=5).filter(lambda t: t.isprintable()))
def test_a_literal_that_is_replaced_has_its_new_value_and_nothing_else_changes(value) -> None:
    code = Code.parse("x = 3 ** 1\ny = x\n#y: ")
    if isinstance(value, str):
        with pytest.raises(ProgramError, match="TypeError"):
            code.with_literal(0, value)
        return
    changed = code.with_literal(0, value)
    assert changed.answer == value
    assert changed.text.partition(" **")[2] == code.text.partition(" **")[2]
    assert changed.literals[0].value == value or value < 0


def test_a_literal_that_there_is_not_or_that_is_none_is_refused() -> None:
    code = Code.parse("x = 3\n#x: ")
    with pytest.raises(ProgramError, match="there is no literal 1; the program has 1"):
        code.with_literal(1, 3)
    with pytest.raises(ProgramError, match=r"a literal is a number, True, False or a text, given: \[\]"):
        code.with_literal(0, [])  # type: ignore[arg-type]  (refused)
    assert Code.parse("x = 3", "x").with_literal(0, 4).answer == 4
    assert code.with_literal(0, 3) == code
    assert hash(code.with_literal(0, 3)) == hash(code)


def test_changes_of_the_answer_begin_with_where_it_comes_from() -> None:
    code = Code.parse("a = 1\nb = 5\nc = b + 2\nif a > 3:\n    c = 0\nd = c\ne = 8\n#d: ")
    changes = code.changes_of_answer(range(3))
    assert changes == code.changes_of_answer(range(3))
    assert [(code.literals[one.literal].line, one.value, one.answer) for one in changes] == [
        *[(2, 0, 2), (2, 1, 3), (2, 2, 4), (3, 0, 5), (3, 1, 6)],  # the same lines run
        *[(4, 0, 0)],
    ]
    copied = Code.parse("a = 2\nb = a\nif b < 1:\n    b = a\nx = True\n#b: ").changes_of_answer([2, 5])
    assert copied == [Change(0, 5, 5)]
    assert Code.parse("x = True\n#x: ").changes_of_answer() == [Change(0, False, False)]
    assert Code.parse("a = 'k'\nx = 'v'\n#x: ").changes_of_answer() == [Change(1, "k", "k")]
    assert Code.parse("x = 3\nx = x - x\n#x: ").changes_of_answer() == []


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_every_change_changes_the_answer_to_what_it_says(seed: int) -> None:
    try:
        code = Code.parse(random_program(random.Random(seed)))
    except ProgramError:
        return
    for change in code.changes_of_answer([0, 7])[:10]:
        assert change.answer != code.answer
        assert code.with_literal(change.literal, change.value).answer == change.answer


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "construct"),
    [
        ("x = 1\nimport os", 2, "'import'"),
        ("from os import path", 1, "'import'"),
        ("x = 1\n\n\nclass A:\n    pass", 4, "'class'"),
        ("x = lambda: 1", 1, "'lambda'"),
        ("def f():\n    global x\n    x = 1", 2, "'global'"),
        ("with x:\n    pass", 1, "'with'"),
        ("x = 1\ndel x", 2, "'del'"),
        ("x = (y := 3)", 1, "':='"),
        ("x = f'{1}'", 1, "an f-string"),
        ("x = [i for i in range(3)]", 1, "a comprehension"),
        ("x = {1, 2}", 1, "a set"),
        ("x = [1, 2][0:1]", 1, "a slice"),
        ("x = 1 if 2 > 1 else 3", 1, "'if' inside of an expression"),
        ("x: int = 3", 1, "an annotation"),
        ("x = y = 3", 1, "'=' twice in one assignment"),
        ("x = 1 / 2", 1, "'/'"),
        ("x = 1.5", 1, "the value 1.5"),
        ("x = b'a'", 1, "the value b'a'"),
        ("x = ...", 1, "the value Ellipsis"),
        ("x = 1\ny = x is 1", 2, "'is'"),
        ("x = ~1", 1, "'~'"),
        ("x = __import__('os')", 1, "the name '__import__'"),
        ("x = __builtins__", 1, "the name '__builtins__'"),
        ("def __f(a):\n    pass", 1, "the name '__f'"),
        ("x = (1).__class__", 1, "the attribute '__class__'"),
        ("x = [].__class__.__base__", 1, "the attribute '__base__'"),
        ("x = [1]\nx.sort()", 2, "the attribute 'sort'"),
        ("x = 'a'.format", 1, "the attribute 'format'"),
        ("x = [1]\nx.y = 3", 2, "the attribute 'y'"),
        ("x = print", 1, "the function 'print' without a call"),
        ("def f(a):\n    return a\nx = f", 3, "the function 'f' without a call"),
        ("x = (1)(2)", 1, "a call of what is no name"),
        ("def f(*a):\n    pass", 1, "an argument of a function that is no plain name"),
        ("def f(a=1):\n    pass", 1, "an argument of a function that is no plain name"),
        ("def f(a: int):\n    pass", 1, "an argument of a function that is no plain name"),
        ("@f\ndef g(a):\n    pass", 1, "a decorator"),
        ("if 1 > 0:\n    def f():\n        pass", 2, "a function inside of another block"),
        ("def f(a):\n    return a\nx = f(a=1)", 3, "an argument with a name"),
        ("x = [1]\ny = max(*x)", 2, "'*' before a name"),
        ("x = {**{}}", 1, "'**' before a name"),
        ("a, *x = [1, 2]", 1, "'*' before a name"),
        ("x = range(3)", 1, "'range' elsewhere"),
        ("x = 1; y = 2", 1, "a second statement on one line"),
        ("if 1 > 0: x = 2", 1, "a second statement on one line"),
        ("x = [1,\n2]", 1, "a statement of several lines"),
        ("x = 1 + \\\n2", 1, "a statement of several lines"),
        ("x = 3\nx", 2, "an expression that is not assigned"),
        ("for i in [1]:\n    pass\nelse:\n    x = 1", 1, "'else' of a loop"),
        ("try:\n    x = 1\nfinally:\n    x = 2", 1, "'else' or 'finally' of a try"),
        ("try:\n    x = 1\nexcept:\n    x = 2", 3, "an 'except' that does not name one of"),
        ("try:\n    x = 1\nexcept KeyError as e:\n    x = 2", 3, "an 'except' that does not name one of"),
        ("raise ValueError", 1, "'raise'"),
        ("assert 1 > 0", 1, "'assert'"),
        ("x = '%s' % 3", 1, "'%' behind a text"),
        ("x = {} | {}", 1, "'|' behind a dict"),
        ("for x in {'a': 1}:\n    pass", 1, "a loop over a dict"),
        ("x, y = {1: 2, 3: 4}", 1, "the unpacking of a dict"),
        ("x = {1: 2}.pop(1)", 1, "'pop' of what is no list"),
    ],
)
def test_what_is_not_of_the_subset_is_refused_by_line_and_construct(text: str, line: int, construct: str) -> None:
    message = refusal(text)
    assert message.startswith(f"line {line}: {construct}"), message
    assert "is not part of the Python that is read here" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx = open('a')", "line 2: there is no function 'open'; there are: len, sum"),
        ("x = eval('1')", "line 1: there is no function 'eval'"),
        ("x = f(1)\ndef f(a):\n    return a", "line 1: the function 'f' is not defined yet"),
        ("x = y", "line 1: the variable 'y' has no value yet"),
        ("def f():\n    y = x\n    x = 1\nx = 2\nf()", "line 2: the variable 'x' has no value yet"),
        ("x = 1\nx = [2][x]", "line 2: IndexError: list index out of range"),
        ("x = 1 // 0", "line 1: ZeroDivisionError"),
        ("x = 1 + 'a'", "line 1: TypeError"),
        ("x = {[]: 1}", "line 1: TypeError"),
        ("x = 3\nfor i in x:\n    pass", "line 2: TypeError"),
        ("def f(a):\n    return a\nx = f(1, 2)", "line 3: TypeError: f has 2 arguments; expected 1"),
        ("x = len([1], [2])", "line 1: len has 2 arguments; expected 1"),
        ("x = 3\nx = x(1)", "line 2: 'x' is a variable and no function here"),
        ("def f(a, a):\n    pass", "line 1: two arguments have one name"),
        ("def f(a):\n    pass\nf = 3", "line 1: 'f' is the name of a function and of a variable"),
        ("def len(a):\n    pass", "line 1: there is already a function 'len'"),
        ("x = 1\nreturn x", "line 2: 'return' stands outside of a function"),
        ("x = 1\nbreak", "line 2: 'break' stands outside of a loop"),
        ("x = = 1", "line 1: this is no Python (invalid syntax)"),
        ("x = 1\n\ty = 2", "line 2: this is no Python (unexpected indent)"),
        ("if 1 > 0:\n        x = 1\n\tx = 2", "line 3: this is no Python"),
        ("x = 1\0", "line 1: the character '\\x00' cannot stand in a program"),
        ("x = 1\ry = 2", "line 1: the character '\\r' cannot stand in a program"),
        ("x = '\ud800'", "line 1: the character '\\ud800' cannot stand in a program"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_a_text_that_is_none_is_refused() -> None:
    with pytest.raises(ProgramError, match="a program is a text, given: 3"):
        Code.parse(3)  # type: ignore[arg-type]  (refused)


DEEP = "\n".join(" " * n + "if 1 > 0:" for n in range(60)) + "\n" + " " * 60 + "x = 1"
SHARED = "x = [1]\n" + "x = [x, x]\n" * 60
# Lists that hold one another, each small when it is made, and doubled from the top down within one line.
HIDDEN = (
    "".join(f"{name}{n} = []\n" for name in "gh" for n in range(60))
    + "def f():\n"
    + "".join(f"    {name}{n}.append({name}{n + 1})\n" * 2 for name in "gh" for n in range(59))
    + "    return g0 == h0\nx = f()"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n" * 170_000, "the program has 1,020,000 characters; expected at most 20,000"),
        ("x = " + "(" * 9000 + "1" + ")" * 9000, "this is no Python (too many nested parentheses)"),
        ("x = " + "-" * 19_000 + "1", "nested"),
        ("x = " + "not " * 4000 + "1", "nested"),
        ("x = 1" + " + 1" * 4000, "nested"),
        ("x = " + "[" * 190 + "]" * 190, "nested deeper than 50"),
        ("x = y" + ".a" * 9000, "nested"),
        (DEEP, "blocks are nested deeper than 10"),
        ("if x:\n    x = 1\n" + "elif x:\n    x = 1\n" * 1000, ""),
        ("x = 0\nwhile True:\n    x = 1 - x", "the program has not ended after 10,000 steps"),
        ("x = 0\nwhile True:\n    pass", "the program has not ended after 10,000 steps"),
        ("x = [1]\nfor i in x:\n    x.append(i)", "the program copies and compares more than 2,000,000 values"),
        ("def f(a):\n    return f(a)\nx = f(1)", "calls are nested deeper than 8"),
        ("def f(a):\n    return g(a)\ndef g(a):\n    return f(a)\nx = f(1)", "calls are nested deeper than 8"),
        ("x = [0] * 1000000", "a value has more than 10,000 elements"),
        ("x = 1000000 * 'a'", "a value has more than 10,000 elements or characters"),
        ("x = [1] * 9000\nx = x + x", "a value has more than 10,000 elements"),
        ("x = [1] * 9000\nx += x", "a value has more than 10,000 elements"),
        ("x = ['a' * 9000]\nx = x * 9000", "a value has more than 10,000 elements or characters"),
        ("x = str(['a' * 9000] * 9000)", "a value has more than 10,000 elements or characters"),
        ("x = 0\nfor i in range(1000000):\n    x = i", "a range has more than 10,000 numbers"),
        ("x = 'a' in range(10 ** 18)", "a range has more than 10,000 numbers"),
        ("x = 10**10**10", "a number grows larger than 64 bits"),
        ("x = 2\nwhile True:\n    x = x * x", "a number grows larger than 64 bits"),
        ("x = 9" + "9" * 5000, "a number is larger than 64 bits"),
        ("x = 99999999999999999999", "a number is larger than 64 bits"),
        ("x = int('9' * 5000)", "a number grows larger than 64 bits"),
        ("x = 2 ** -1", "a negative exponent gives no whole number"),
        ("x = 3\nwhile True:\n    print(x, 'a' * 900)", "the program prints more than 10,000 characters"),
        ("x = []\nx.append(x)", "a value is nested deeper than 20"),
        ("x = [1]\nx[0] = x", "a value is nested deeper than 20"),
        (SHARED, "a value has more than 10,000 elements|a value is nested deeper than 20"),
        (HIDDEN, "a value has more than 10,000 elements|a value is nested deeper than 20"),
    ],
)
def test_hostile_programs_are_refused_in_a_sentence_and_at_once(text: str, message: str) -> None:
    started = time.process_time()
    said = refusal(text)
    assert any(part in said for part in message.split("|")), said
    assert time.process_time() - started < 5


@given(st.text(max_size=200) | st.text("xy=+-*/%()[]{}:,.'\"#\n\t 019defifinreturnwhile\\\r\0", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ProgramError):  # any other error fails the test
        Code.parse(text, "x", max_steps=200)


@pytest.mark.parametrize("text", ["x = 1\n" * 300, "x = 0\ny = [1, 2, 3]\nwhile x < 6000:\n    x += 2\n"])
def test_no_change_is_looked_for_in_a_program_that_is_too_long_for_that(text: str) -> None:
    with pytest.raises(ProgramError, match=r"takes [0-9,]+ runs, and at most 2,000 of 1,000,000 lines in all are made"):
        Code.parse(text + "#x: ").changes_of_answer(range(50))


def test_a_change_that_makes_a_program_endless_is_passed_over() -> None:
    changes = Code.parse("x = 0\nwhile x < 3:\n    x += 1\n#x: ").changes_of_answer([0, 4])
    assert [(change.literal, change.value, change.answer) for change in changes] == [
        (1, 0, 0),
        (1, 4, 4),
        (0, 4, 4),
        (2, 4, 4),
    ]


def test_the_interpreter_has_no_way_to_have_python_execute_a_text_and_imports_no_array_library() -> None:
    files = [*Path(interpreter.__file__).parent.glob("*.py")]
    assert len(files) == 4
    for file in files:
        named = {node.id for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Name)}
        assert named & {"exec", "eval", "compile", "getattr", "setattr", "__import__", "globals", "open"} <= {"getattr"}
    code = (
        "import sys, debug.interpreter as i; i.Code.parse('x = 1', 'x'); print({'numpy', 'torch'} & set(sys.modules))"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert started.stdout == "set()\n"


def test_as_many_steps_as_are_allowed_may_run() -> None:
    text = "x = 0\nwhile x < 10:\n    x += 1\n#x: "
    steps = len(Code.parse(text).states)
    assert Code.parse(text, max_steps=steps).answer == 10
    with pytest.raises(ProgramError, match=f"line 2: the program has not ended after {steps - 1} steps"):
        Code.parse(text, max_steps=steps - 1)


def test_the_longest_text_may_be_as_long_as_it_may_be() -> None:
    text = "x = 1\n#" + "y" * (LONGEST_TEXT - 7)
    assert Code.parse(text, "x").answer == 1
    assert "expected at most" in refusal(text + "y")
