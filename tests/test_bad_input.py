"""What anybody may hand to a causal run by mistake, or on purpose: one sentence, exit code 2, and nothing executed."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

from debug.causal_tracing import run_causal_tracing_experiment
from debug.counterfactual import read_pairs, read_program
from debug.errors import InputError
from debug.kinds import Json

SCRIPT = str(Path(__file__).parents[1] / "runs" / "causal_trace.py")
PAIR: dict[str, Json] = {
    "original": "a = 1\nb = 2\nc = a\nd = c\n#d: ",
    "counterfactual": "b = 3\na = 4\nc = a\nd = c\n#d: ",
    "expected_original": 1,
    "expected_counterfactual": 4,
    "spans": {"reference": [16, 17]},
}
LONG = str(PAIR["original"]) * 400

PAIRS: dict[str, tuple[dict[str, Json], str]] = {
    "a span outside the text": ({"spans": {"x": [0, 1000]}}, "span 'x' is [0, 1000], outside the text"),
    "a span before the text": ({"spans": {"x": [-1, 2]}}, "span 'x' is [-1, 2], outside the text"),
    "a span inside a token": ({"spans": {"x": [27, 28]}}, "span 'x', ' ', begins or ends inside a token: its tokens"),
    "answers that begin alike": (
        {"expected_original": 12, "expected_counterfactual": 14},
        "answers 14 and 12 begin with the same token",
    ),
    "texts of unequal length": ({"counterfactual": "b = 3\na = 4\n#a: "}, "from token 0 on: original ['a', ' = ', '1'"),
    "the same text twice": ({"counterfactual": PAIR["original"]}, "the prompts are the same tokens"),
    "two differences, and a kind that has one": (
        {"spans": None, "kind": "root_value"},
        "must differ in the root value and in nothing else, or else be of another kind",
    ),
    "a character without a token": ({"counterfactual": str(PAIR["original"]).replace("1", "é")}, "has no token for"),
    "a text of a megabyte": ({"original": "a" * 1_000_000}, "1,000,000 characters; expected 1 to 100,000"),
    "a text beyond the window": ({"original": LONG, "counterfactual": f"b{LONG[1:]}"}, "tokens and model 'tiny' reads"),
    "a list of a million as a span": ({"spans": {"x": [0] * 1_000_000}}, "expected [start, end], in characters"),
    "a list of a million as spans": ({"spans": [0] * 1_000_000}, "expected names with [start, end]"),
    "a list of a million as targets": ({"targets": ["x"] * 1_000_000}, "expected names of the spans"),
    "a name of Python's outside the text": ({"spans": {"__import__": [0, 99]}}, "span '__import__' is [0, 99], out"),
    "a call as answers": (
        {"expected_original": "__import__('os')", "expected_counterfactual": "__import__('sys')"},
        "there is no token for part of the answers",
    ),
    "a name of 100,000 letters": ({"spans": {"x" * 100_000: [0, 1]}}, "cannot name a span"),
    "a seed of 100,000 digits": ({"seed": "1" * 100_000}, "expected an integer or nothing"),
    "100,000 fields": ({"original": 1, **{f"f{n}": 0 for n in range(100_000)}}, "a pair needs the texts"),
}

PROGRAMS = {
    "no halt": ("a = 1\nwhile True:\n    a = 2\nprint(a)", "line 3: the program has not ended after 10,000 steps"),
    "recursion": ("def f(x):\n    return f(x)\na = f(1)\nprint(a)", "line 2: calls are nested deeper than"),
    "a megabyte": ("a = 1\n" * 170_000, "characters; expected at most 20,000"),
    "nesting": (f"a = {'(' * 9000}1{')' * 9000}\nprint(a)", "line 1: this is no Python (too many nested parentheses)"),
    "a list of a million": ("a = [1] * 1000000\nprint(a[0])", "line 1: a value has more than 10,000 elements"),
    "a range of a million": ("a = 0\nfor i in range(1000000):\n    a = i\nprint(a)", "line 2: a range has more than"),
    "a list of 9,000 literals": (f"a = [{'1,' * 9000}]\nprint(a[0])", "the program has 9,001 literals"),
    "a text of a billion": ("a = 'x' * 1000000000\nprint(a)", "line 1: a value has more than 10,000"),
    "a power of powers": ("a = 9 ** 9 ** 9\nprint(a)", "line 1: a number grows larger than 64 bits"),
    "a number of 9,000 digits": (f"a = {'9' * 9000}\nprint(a)", "line 1: a number is larger than 64 bits"),
    "__import__": ("a = __import__('os').mkdir('{made}')\nprint(a)", "line 1: "),
    "__import__ as a name": ("__import__ = 1\nprint(__import__)", "line 1: the name '__import__'"),
    "import": ("import os\nprint(1)", "line 1: 'import' is not part of the Python that is read here"),
    "eval": ('a = eval(\'open("{made}", "w")\')\nprint(a)', "line 1: there is no function 'eval'"),
    "exec": ('exec(\'open("{made}", "w")\')\nprint(1)', "line 1: there is no function 'exec'"),
    "open": ("a = open('{made}', 'w')\nprint(a)", "line 1: there is no function 'open'"),
    "attributes": ("a = ().__class__.__bases__\nprint(a)", "line 1: the attribute"),
    "an exception": ("a = 1 // 0\nprint(a)", "line 1: ZeroDivisionError"),
    "no question": ("a = 1", "the program asks for nothing"),
    "nothing": ("", "the program asks for nothing"),
    "a NUL": ("a = 1\0\nprint(a)", r"line 1: the character '\x00' cannot stand in a program"),
}


def in_python(flag: str, path: Path) -> None:
    given = read_pairs(path) if flag == "--pairs" else read_program(path)
    run_causal_tracing_experiment("tiny", given, positions="targets", require_correct=False)


CASES = [("--pairs", name) for name in PAIRS] + [("--program", name) for name in PROGRAMS]


@pytest.mark.parametrize(("flag", "name"), CASES)
def test_bad_input_is_one_sentence_and_executes_nothing(
    flag: str, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the command line and of Python; of a pair that only tokens show to be none, too."""
    path, made = tmp_path / "given", tmp_path / "made"
    if flag == "--pairs":
        fields, message = PAIRS[name]
        path.write_text(json.dumps(PAIR | fields))
    else:
        text, message = PROGRAMS[name]
        path.write_text(text.replace("{made}", str(made)))
    arguments = [flag, str(path), "--positions", "targets", "--no-require-correct", "--tracking-uri", uri]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "ERROR", "WARN"))]
    said = [line for line in said if "was moved or copied" not in line]  # the test's store is a copy
    assert ended.value.code == 2
    assert len(said) == 1, said
    assert message in said[0]
    assert len(said[0]) < 900
    with pytest.raises(InputError) as caught:
        in_python(flag, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not made.exists()
