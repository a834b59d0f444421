"""From a text to its tree: what is no part of the subset is refused by line, and roles and literals get their spans."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from debug.programs import ProgramError, Span

LONGEST_TEXT = 20_000  # characters
DEEPEST_EXPRESSION = 50
DEEPEST_BLOCK = 10
LARGEST_INTEGER = 2**63 - 1

METHODS = {"append": (1, 1), "pop": (0, 1)}
"""Methods of lists -> least and most arguments."""
BUILTINS = {
    **dict.fromkeys(("len", "sum", "abs", "int", "str", "bool"), (1, 1)),
    **dict.fromkeys(("min", "max", "print"), (1, 99)),
    "range": (1, 3),
}
EXCEPTIONS = ("ZeroDivisionError", "IndexError", "KeyError", "ValueError", "TypeError")

BINARY: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
}
COMPARISONS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}

_REFUSED: dict[type, str] = {
    ast.Import: "'import'",
    ast.ImportFrom: "'import'",
    ast.ClassDef: "'class'",
    ast.Lambda: "'lambda'",
    ast.Global: "'global'",
    ast.Nonlocal: "'nonlocal'",
    ast.With: "'with'",
    ast.Delete: "'del'",
    ast.Assert: "'assert'",
    ast.Raise: "'raise'",
    ast.Match: "'match'",
    ast.AsyncFunctionDef: "'async'",
    ast.AsyncFor: "'async'",
    ast.AsyncWith: "'async'",
    ast.Await: "'await'",
    ast.Yield: "'yield'",
    ast.YieldFrom: "'yield'",
    ast.AnnAssign: "an annotation",
    ast.TryStar: "'except*'",
    ast.NamedExpr: "':='",
    ast.Starred: "'*' before a name",
    ast.JoinedStr: "an f-string",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.IfExp: "'if' inside of an expression",
    ast.Slice: "a slice",
    ast.Set: "a set",
    ast.Div: "'/'",
    ast.MatMult: "'@'",
    ast.LShift: "'<<'",
    ast.RShift: "'>>'",
    ast.Invert: "'~'",
    ast.Is: "'is'",
    ast.IsNot: "'is not'",
}
_QUERY = re.compile(r"(?P<hash>#)(?P<var>[^\W\d]\w*)(?P<colon>:)[ \t]*")


def refused(line: int, what: str) -> ProgramError:
    return ProgramError(
        f"line {line}: {what} is not part of the Python that is read here; it has assignments, arithmetic, "
        "comparisons, if, for, while, try, functions, lists, dicts, tuples and print"
    )


@dataclass(frozen=True)
class Literal:
    """A number, a truth value or a text that stands in the program; its span holds the sign, and the quotes."""

    line: int
    span: Span
    value: int | bool | str


@dataclass(frozen=True)
class Function:
    """A function of the program; ``names`` are its local variables, arguments and all that it assigns."""

    definition: ast.FunctionDef
    parameters: tuple[str, ...]
    names: frozenset[str]


@dataclass(frozen=True)
class Syntax:
    """A program of the subset. ``query`` is the variable that its last line ``#x: `` asks for."""

    text: str
    body: list[ast.stmt]
    functions: dict[str, Function]
    spans: dict[str, Span]
    literals: tuple[Literal, ...]
    query: str | None


def read(text: str) -> Syntax:
    """Read a text; what editors add (a byte-order mark, carriage returns, line breaks behind the query) is dropped.

    Raises:
        ProgramError: the text is no Python, too long, nested too deep, or has what is not of the subset.
    """
    if not isinstance(text, str):
        raise ProgramError(f"a program is a text, given: {text!r:.80}")
    if len(text) > LONGEST_TEXT:
        raise ProgramError(f"the program has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if _QUERY.fullmatch((stripped := text.rstrip("\n")).rpartition("\n")[2]):
        text = stripped
    for number, line in enumerate(text.split("\n"), 1):
        if strange := re.search(r"[\0\r\f]|[\ud800-\udfff]", line):
            raise ProgramError(f"line {number}: the character {strange[0]!r} cannot stand in a program")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        huge = "integer string conversion" in error.msg  # of thousands of digits
        what = "a number is larger than 64 bits" if huge else f"this is no Python ({error.msg})"
        raise ProgramError(f"line {error.lineno or 1}: {what}") from error
    except (RecursionError, MemoryError) as error:
        raise ProgramError("the program is nested too deep to be read") from error
    except ValueError as error:
        raise ProgramError(f"the program cannot be read ({error})") from error
    return _Reader(text).read(tree)


class _Reader:
    """The walk over a tree: it checks each node before it goes into it, and no deeper than the bounds."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.spans: dict[str, Span] = {}
        self.literals: list[Literal] = []
        self.functions: dict[str, Function] = {}
        self.calls: list[tuple[int, str]] = []
        self.loads: list[tuple[int, str]] = []
        self.assigned: set[str] = set()
        """What the function that is read assigns; at the top level, what the program does."""
        self.all_assigned: set[str] = set()
        self.arguments: list[Span] = []
        """Of the calls of the line that is read."""
        self.seen: set[int] = set()

    def read(self, tree: ast.Module) -> Syntax:
        self.block(tree.body, 0, in_loop=False, in_function=False)
        self.all_assigned |= self.assigned
        for name in self.functions:
            if name in self.all_assigned:
                line = self.functions[name].definition.lineno
                raise ProgramError(f"line {line}: {name!r} is the name of a function and of a variable; rename one")
        for line, name in self.loads:
            if name in self.functions or (name in BUILTINS and name not in self.all_assigned):
                raise refused(line, f"the function {name!r} without a call")
        for line, name in self.calls:
            if name not in self.functions and name not in BUILTINS and name not in self.all_assigned:
                known = ", ".join([*self.functions, *BUILTINS])
                raise ProgramError(f"line {line}: there is no function {name!r:.80}; there are: {known}")
        return Syntax(self.text, tree.body, self.functions, self.spans, tuple(self.literals), self._query())

    def _query(self) -> str | None:
        match = _QUERY.fullmatch(self.lines[-1])
        if match is None:
            return None
        for part in ("hash", "var", "colon"):
            start, end = match.span(part)
            self.spans[f"query_{part}"] = (self.starts[-2] + start, self.starts[-2] + end)
        return unicodedata.normalize("NFKC", match["var"])  # as Python reads names

    # --- places ------------------------------------------------------------------------------------------------------

    def at(self, line: int, column: int) -> int:
        """The character at which a column stands; ``ast`` counts bytes of UTF-8."""
        text = self.lines[line - 1]
        return self.starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))

    def span(self, node: ast.expr | ast.arg) -> Span:
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.at(node.lineno, node.col_offset), self.at(end_line, end_column)

    def role(self, line: int, name: str, span: Span) -> None:
        self.spans[f"line_{line}_{name}"] = span

    # --- statements --------------------------------------------------------------------------------------------------

    def block(self, statements: Sequence[ast.stmt], depth: int, in_loop: bool, in_function: bool) -> None:
        for statement in statements:
            if depth > DEEPEST_BLOCK:
                raise ProgramError(f"line {statement.lineno}: blocks are nested deeper than {DEEPEST_BLOCK}")
            following: ast.stmt | None = statement
            while following is not None:  # a chain of elif is no deeper than its if
                following = self.statement(following, depth, in_loop, in_function)

    def statement(self, statement: ast.stmt, depth: int, in_loop: bool, in_function: bool) -> ast.stmt | None:
        """Check a statement and its blocks, and give back its ``elif``."""
        line = statement.lineno
        self.new_line(line)
        blocks: list[tuple[Sequence[ast.stmt], bool]] = []
        match statement:
            case ast.Assign(targets=[target], value=value):
                self.target(target)
                self.expression(value)
                self.sides(line, target, value, "=")
            case ast.Assign():
                raise refused(line, "'=' twice in one assignment")
            case ast.AugAssign(target=target, op=operator, value=value):
                self.target(target)
                self.operator(line, operator, BINARY)
                self.expression(value)
                self.sides(line, target, value, f"{BINARY[type(operator)]}=")
            case ast.Expr(value=ast.Call() as call):
                self.expression(call)
                if isinstance(call.func, ast.Name) and call.func.id == "print":
                    self.role(line, "print", (self.span(call.args[0])[0], self.span(call.args[-1])[1]))
            case ast.If(test=test, body=body, orelse=orelse):
                self.condition(line, test)
                blocks = [(body, in_loop), (orelse, in_loop)]
            case ast.While(test=test, body=body, orelse=[]):
                self.condition(line, test)
                blocks = [(body, True)]
            case ast.For(target=target, iter=iterable, body=body, orelse=[]):
                self.target(target)
                self.expression(iterable, ranges=True)
                self.role(line, "loop_variable", self.span(target))
                self.role(line, "iterable", self.span(iterable))
                blocks = [(body, True)]
            case ast.While() | ast.For():
                raise refused(line, "'else' of a loop")
            case ast.Try(body=body, handlers=handlers, orelse=[], finalbody=[]):
                blocks = [(body, in_loop)]
                for handler in handlers:
                    self.handler(handler)
                    blocks.append((handler.body, in_loop))
            case ast.Try():
                raise refused(line, "'else' or 'finally' of a try")
            case ast.FunctionDef():
                if depth or in_function:
                    raise refused(line, "a function inside of another block")
                self.function(statement)
            case ast.Return(value=value):
                if not in_function:
                    raise ProgramError(f"line {line}: 'return' stands outside of a function")
                start = self.at(line, statement.col_offset)
                self.role(line, "return", (start, start + len("return")))
                if value is not None:
                    self.expression(value)
                    self.role(line, "return", self.span(value))
            case ast.Break() | ast.Continue():
                if not in_loop:
                    raise ProgramError(f"line {line}: '{type(statement).__name__.lower()}' stands outside of a loop")
            case ast.Pass():
                pass
            case ast.Expr(value=value):
                self.expression(value)
                raise refused(line, "an expression that is not assigned")
            case _:
                raise self.refused(statement)
        self.one_line(statement)
        for number, span in enumerate(sorted(self.arguments), 1):
            self.role(line, f"argument_{number}", span)
        self.arguments = []
        following = elif_of(statement)
        for statements, inside in blocks:
            if not following or statements[0] is not following:
                self.block(statements, depth + 1, inside, in_function)
        return following

    def new_line(self, line: int) -> None:
        if line in self.seen:
            raise refused(line, "a second statement on one line")
        self.seen.add(line)
        if line < len(self.lines):
            newline = self.starts[line] - 1
            self.role(line, "newline", (newline, newline + 1))

    def one_line(self, statement: ast.stmt) -> None:
        """States and roles go by lines, so that each line holds one statement, and each statement one line."""
        heads: Iterable[ast.AST | None]
        match statement:
            case ast.If(test=head) | ast.While(test=head) | ast.For(iter=head):
                heads = [head]
            case ast.FunctionDef(args=arguments):
                heads = arguments.args
            case ast.Try():
                return
            case _:
                heads = [statement]
        for head in heads:
            if getattr(head, "end_lineno", statement.lineno) != statement.lineno:
                raise refused(statement.lineno, "a statement of several lines")

    def handler(self, handler: ast.ExceptHandler) -> None:
        line = handler.lineno
        self.new_line(line)
        kind = handler.type
        if handler.name is not None or not isinstance(kind, ast.Name) or kind.id not in EXCEPTIONS:
            raise refused(line, f"an 'except' that does not name one of {', '.join(EXCEPTIONS)}")
        self.role(line, "condition", self.span(kind))

    def function(self, definition: ast.FunctionDef) -> None:
        line, arguments = definition.lineno, definition.args
        parameters = tuple(argument.arg for argument in arguments.args)
        plain = len(parameters) == sum(len(getattr(arguments, kind) or ()) for kind in ("posonlyargs", "args"))
        others = (arguments.vararg, arguments.kwarg, definition.returns, *(a.annotation for a in arguments.args))
        if definition.decorator_list:
            raise refused(definition.decorator_list[0].lineno, "a decorator")
        if not plain or arguments.kwonlyargs or arguments.defaults or any(other is not None for other in others):
            raise refused(line, "an argument of a function that is no plain name")
        if getattr(definition, "type_params", []):
            raise refused(line, "a type parameter")
        if definition.name in self.functions or definition.name in BUILTINS:
            raise ProgramError(f"line {line}: there is already a function {definition.name!r:.80}")
        if len(set(parameters)) < len(parameters):
            raise ProgramError(f"line {line}: two arguments have one name")
        for name in (definition.name, *parameters):
            self.name(line, name)
        for number, argument in enumerate(arguments.args, 1):
            self.role(line, f"argument_{number}", self.span(argument))
        self.functions[definition.name] = Function(definition, parameters, frozenset())
        outside, self.assigned = self.assigned, set(parameters)
        self.one_line(definition)
        self.block(definition.body, 1, in_loop=False, in_function=True)
        self.functions[definition.name] = Function(definition, parameters, frozenset(self.assigned))
        self.all_assigned |= self.assigned
        self.assigned = outside

    def target(self, target: ast.expr) -> None:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        for part in parts:
            match part:
                case ast.Name(id=name):
                    self.name(part.lineno, name)
                    self.assigned.add(name)
                case ast.Subscript(value=value, slice=index):
                    self.expression(value)
                    self.expression(index)
                case ast.Attribute(attr=name):
                    raise refused(part.lineno, f"the attribute {name!r:.80}")
                case _:
                    raise self.refused(part) if type(part) in _REFUSED else refused(part.lineno, "such a left side")

    def condition(self, line: int, test: ast.expr) -> None:
        self.expression(test)
        self.role(line, "condition", self.span(test))

    def sides(self, line: int, target: ast.expr, value: ast.expr, sign: str) -> None:
        """Roles of an assignment; the operator is its sign, ``=`` or ``+=``."""
        left, right = self.span(target), self.span(value)
        start = self.text.index(sign, left[1])
        self.role(line, "lhs", left)
        self.role(line, "operator", (start, start + len(sign)))
        self.role(line, "rhs", right)

    # --- expressions -------------------------------------------------------------------------------------------------

    def expression(self, node: ast.expr, depth: int = 0, ranges: bool = False) -> None:
        """Check one node and what is below it; ``ranges``: whether ``range(...)`` may stand here."""
        if depth > DEEPEST_EXPRESSION:
            raise ProgramError(f"line {node.lineno}: an expression is nested deeper than {DEEPEST_EXPRESSION}")
        line, below = node.lineno, depth + 1
        match node:
            case ast.Constant(value=value):
                self.constant(node, value, self.span(node))
            case ast.Name(id=name):
                self.name(line, name)
                self.loads.append((line, name))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if not isinstance(value, bool):
                self.constant(node, -value, self.span(node))
            case ast.UnaryOp(op=operator, operand=operand):
                if not isinstance(operator, ast.USub | ast.UAdd | ast.Not):
                    raise self.refused(operator, line)
                self.expression(operand, below)
            case ast.BinOp(left=left, op=operator, right=right):
                self.operator(line, operator, BINARY)
                self.expression(left, below)
                self.expression(right, below)
            case ast.BoolOp(values=values):
                for value in values:
                    self.expression(value, below)
            case ast.Compare(left=left, ops=operators, comparators=comparators):
                self.expression(left, below)
                for operator, comparator in zip(operators, comparators, strict=True):
                    self.operator(line, operator, COMPARISONS)
                    self.expression(comparator, below, ranges=isinstance(operator, ast.In | ast.NotIn))
            case ast.Call():
                self.call(node, below, ranges)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                for part in parts:
                    self.expression(part, below)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if key is None:
                        raise refused(line, "'**' before a name")
                    self.expression(key, below)
                    self.expression(value, below)
            case ast.Subscript(value=value, slice=index):
                self.expression(value, below)
                self.expression(index, below)
            case ast.Attribute(attr=name):
                raise refused(line, f"the attribute {name!r:.80}")
            case _:
                raise self.refused(node)

    def call(self, node: ast.Call, depth: int, ranges: bool) -> None:
        line = node.lineno
        match node.func:
            case ast.Name(id=name):
                self.name(line, name)
                self.calls.append((line, name))
                least, most = BUILTINS.get(name, (0, 99))
                if name == "range" and not ranges:
                    raise refused(line, "'range' elsewhere than in a loop, behind 'in', or in len, min, max or sum")
            case ast.Attribute(value=owner, attr=name) if name in METHODS:
                self.expression(owner, depth)
                least, most = METHODS[name]
            case ast.Attribute(attr=name):
                raise refused(line, f"the attribute {name!r:.80}")
            case _:
                raise refused(line, "a call of what is no name")
        if node.keywords:
            raise refused(line, "an argument with a name")
        for argument in node.args:
            inside = isinstance(node.func, ast.Name) and name in ("len", "min", "max", "sum")
            self.expression(argument, depth, ranges=inside)
            self.arguments.append(self.span(argument))
        if not least <= len(node.args) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise ProgramError(f"line {line}: {name} has {len(node.args)} arguments; expected {count}")

    def constant(self, node: ast.expr, value: object, span: Span) -> None:
        line = node.lineno
        if value is None:
            return
        if not isinstance(value, int | str):
            raise refused(line, f"the value {value!r:.80}")
        if not isinstance(value, str) and abs(value) > LARGEST_INTEGER:
            raise ProgramError(f"line {line}: a number is larger than 64 bits")
        self.literals.append(Literal(line, span, value))

    def operator(self, line: int, operator: ast.AST, known: dict[type, str]) -> None:
        if type(operator) not in known:
            raise self.refused(operator, line)

    def name(self, line: int, name: str) -> None:
        if name.startswith("__"):
            raise refused(line, f"the name {name!r:.80}")

    def refused(self, node: ast.AST, line: int | None = None) -> ProgramError:
        what = _REFUSED.get(type(node), f"'{type(node).__name__.lower()}'")
        return refused(line or getattr(node, "lineno", 1), what)


def elif_of(statement: ast.stmt) -> ast.If | None:
    """The ``elif`` of an ``if``, which ``ast`` has as an ``if`` inside of its ``else``."""
    match statement:
        case ast.If(orelse=[ast.If() as inner]) if inner.col_offset == statement.col_offset:
            return inner
    return None
