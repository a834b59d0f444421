"""Programs of a family under Python's own line tracing, compared with the interpreter's states: run as a process.

The test suite runs this on 1,000 programs of each family; 10,000 of one take up to 30 seconds of a slow processor.

python tests/traced_programs.py conditionals 10000
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, FunctionType

from debug.generators import GENERATORS, generate
from debug.interpreter import Code
from debug.kinds import Json

Row = tuple[int, int, str]  # line, call depth, variables after it


def shown(variables: dict[str, Json]) -> str:
    """Variables as one text, which tells True from 1 and a list from a tuple."""
    return repr(sorted((k, v) for k, v in variables.items() if k != "__builtins__" and not isinstance(v, FunctionType)))


def python_states(text: str) -> tuple[list[Row], dict[str, Json]]:
    """What Python's variables are after each line that it runs, and in the end."""
    rows: list[Row] = []
    lines: list[int | None] = []  # of each frame, the line that runs

    def trace(frame: FrameType, event: str, _: object) -> Json:
        if frame.f_code.co_filename != "<program>":
            return None
        if event == "call":
            lines.append(None)
        elif event in ("line", "return"):
            if (line := lines[-1]) is not None:
                rows.append((line, len(lines) - 1, shown(frame.f_locals)))
            lines[-1] = frame.f_lineno
            if event == "return":
                lines.pop()
        return trace

    variables: dict[str, Json] = {}
    program = compile(text, "<program>", "exec")
    sys.settrace(trace)
    try:
        exec(program, variables)
    finally:
        sys.settrace(None)
    return rows, variables


def difference(text: str, query: str | None) -> str | None:
    """Where Python and the interpreter disagree about a program."""
    code = Code.parse(text, query)
    return compared(text, code.query, code.answer, [state.to_record() for state in code.states])


def compared(text: str, query: str | None, answer: object, states: list[dict[str, Json]]) -> str | None:
    """Where Python disagrees with these states and this answer."""
    rows, variables = python_states(text)
    ours = [(state["line"], state["depth"], shown(state["variables"])) for state in states]
    if ours != rows:
        at = next((n for n, pair in enumerate(zip(ours, rows, strict=False)) if pair[0] != pair[1]), -1)
        return f"state {at}: {ours[at : at + 1]}, Python: {rows[at : at + 1]}\n{text}"
    if query is not None and (answer, type(answer)) != (variables[query], type(variables[query])):
        return f"answer {answer!r}, Python: {variables[query]!r}\n{text}"
    return None


def differences(family: str, number: int) -> Iterator[str]:
    """Of programs of 1 to 20 lines."""
    for seed in range(number):
        made = generate(GENERATORS[family], 1 + seed % 20, seed)
        query = made.program[-3] if made.program.endswith(": ") else "result" if family == "exception" else "x"
        states = made.metadata.get("states") or [s.to_record() for s in Code.parse(made.program, query).states]
        if found := compared(made.program, query, made.answer, states):
            yield f"{family}, seed {seed}: {found}"


if __name__ == "__main__":
    found = list(differences(sys.argv[1], int(sys.argv[2])))
    print(f"{len(found)} of {sys.argv[2]} programs differ")
    print("\n".join(found[:3]))
    sys.exit(bool(found))
