"""Runs a program of the subset in bounded steps and sizes, and keeps the variables after every line."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from debug.interpreter.syntax import BINARY, BUILTINS, COMPARISONS, LARGEST_INTEGER, Function, Syntax, elif_of, refused
from debug.kinds import Interpreted
from debug.programs import ProgramError

Value = int | bool | str | None | list[Interpreted] | tuple[Interpreted, ...] | dict[Interpreted, Interpreted] | range

MOST_STEPS = 10_000  # lines that run
LARGEST_VALUE = 10_000  # elements of a list with all that is in it, characters of a text
DEEPEST_VALUE = 20
DEEPEST_CALL = 8
LONGEST_OUTPUT = 10_000  # characters
MOST_WORK = 2_000_000  # values that are copied, compared or counted in all

_RAISED = (ZeroDivisionError, IndexError, KeyError, ValueError, TypeError)
_OPERATORS: dict[str, Callable[[Interpreted, Interpreted], Interpreted]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}
_CALLED: dict[str, Callable[..., Interpreted]] = {
    **{"len": len, "sum": sum, "min": min, "max": max, "abs": abs, "int": int, "str": str, "bool": bool},
    "range": range,
}


@dataclass(frozen=True)
class State:
    """What a line left behind, in the order in which lines end: a line that calls comes after the lines it called.

    ``variables`` are the local ones (copies, so that later lines do not change them) at call depth ``depth``, 0 for the
    program itself. ``taken``: whether a condition held, a loop went on, an ``except`` matched; None for other lines.
    """

    line: int
    variables: dict[str, Value]
    taken: bool | None = None
    depth: int = 0

    def to_record(self) -> dict[str, Interpreted]:
        return {"line": self.line, "variables": self.variables, "taken": self.taken, "depth": self.depth}


@dataclass(frozen=True)
class Execution:
    """``last`` are the values that the last print had."""

    variables: dict[str, Value]
    states: tuple[State, ...]
    printed: str
    last: tuple[Value, ...] = ()


class _Raised(Exception):
    """An exception of the program, which it may catch."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.name = type(error).__name__


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Return(Exception):
    def __init__(self, value: Value) -> None:
        self.value = value


def run(syntax: Syntax, max_steps: int = MOST_STEPS) -> Execution:
    """Run a program.

    Raises:
        ProgramError: it does not end within the bounds, or raises what it does not catch.
    """
    machine = _Machine(syntax, max_steps)
    try:
        machine.block(syntax.body)
    except _Raised as raised:
        raise ProgramError(f"line {machine.line}: {raised.name}: {str(raised)[:200]}") from raised
    except RecursionError as error:  # of a caller that is deep itself
        raise ProgramError(f"line {machine.line}: calls and expressions are nested too deep") from error
    return Execution(machine.variables, tuple(machine.states), "".join(machine.output), machine.last)


class _Machine:
    """One run: the variables of the call that runs, and what is used up of each bound."""

    def __init__(self, syntax: Syntax, max_steps: int) -> None:
        self.functions: dict[str, Function] = {}
        self.known = syntax.functions
        self.max_steps = max_steps
        self.variables: dict[str, Value] = {}
        self.globals = self.variables
        self.local: frozenset[str] = frozenset()
        """Names that are local to the function that runs."""
        self.depth = 0
        self.line = 1
        self.states: list[State] = []
        self.steps = self.work = self.written = 0
        self.output: list[str] = []
        self.last: tuple[Value, ...] = ()

    # --- bounds ------------------------------------------------------------------------------------------------------

    def too_much(self, what: str) -> ProgramError:
        return ProgramError(f"line {self.line}: {what}")

    def step(self) -> None:
        self.steps += 1
        if self.steps > self.max_steps:
            raise self.too_much(f"the program has not ended after {self.max_steps:,} steps")

    def state(self, line: int, taken: bool | None = None) -> None:
        self.line = line
        copies = {name: self.copy(value) for name, value in self.variables.items()}
        self.states.append(State(line, copies, taken, self.depth))

    def copy(self, value: Interpreted) -> Interpreted:
        """A deep copy, which counts what it copies."""
        kind = type(value)
        if kind is int or kind is str or kind is bool or value is None:
            self.work += 1
            if self.work > MOST_WORK:
                raise self.too_much(f"the program copies and compares more than {MOST_WORK:,} values")
            return value
        self.measure(value)
        return _copy(value)

    def measure(self, *values: Interpreted) -> None:
        """Refuse values that are too large or too deep (as those are that hold themselves), and count the others."""
        counted = 0
        waiting = [(value, 0) for value in values]
        while waiting:
            value, depth = waiting.pop()
            counted += 1 + (len(value) if isinstance(value, str) else 0)
            if counted > LARGEST_VALUE:
                raise self.too_much(f"a value has more than {LARGEST_VALUE:,} elements or characters")
            if isinstance(value, list | tuple | dict):
                parts = [*value, *value.values()] if isinstance(value, dict) else value
                if len(parts) > LARGEST_VALUE:
                    raise self.too_much(f"a value has more than {LARGEST_VALUE:,} elements or characters")
                if depth == DEEPEST_VALUE:
                    raise self.too_much(f"a value is nested deeper than {DEEPEST_VALUE}")
                waiting += [(part, depth + 1) for part in parts]
        self.work += counted
        if self.work > MOST_WORK:
            raise self.too_much(f"the program copies and compares more than {MOST_WORK:,} values")

    def bounded(self, value: Interpreted) -> Interpreted:
        """A number or text that was computed."""
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise self.too_much("a number grows larger than 64 bits")
        if isinstance(value, str) and len(value) > LARGEST_VALUE:
            raise self.too_much(f"a text has more than {LARGEST_VALUE:,} characters")
        return value

    # --- statements --------------------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, statement: ast.stmt) -> None:
        line = self.line = statement.lineno
        self.step()
        match statement:
            case ast.If():
                self.branch(statement)
            case ast.While(test=test, body=body):
                while self.condition(line, test):
                    if not self.iteration(body):
                        break
                    self.line = line
                    self.step()
            case ast.For():
                self.loop(statement)
            case ast.Try(body=body, handlers=handlers):
                self.state(line)
                try:
                    self.block(body)
                except _Raised as raised:
                    self.handle(raised, handlers)
            case ast.Return(value=value):
                returned = None if value is None else self.simple(line, lambda: self.evaluate(value))
                self.state(line)
                raise _Return(returned)
            case ast.Break():
                self.state(line)
                raise _Break
            case ast.Continue():
                self.state(line)
                raise _Continue
            case ast.FunctionDef(name=name):
                self.functions[name] = self.known[name]
                self.state(line)
            case _:
                self.simple(line, lambda: self.execute(statement))
                self.state(line)

    def simple(self, line: int, act: Callable[[], Interpreted]) -> Interpreted:
        """Do what one line says; a line that raises has a state too."""
        try:
            return act()
        except _Raised:
            self.state(line)
            raise

    def execute(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.evaluate(value))
            case ast.AugAssign(target=ast.Name(id=name) as target, op=sign, value=value):
                before = self.load(name)
                self.assign(target, self.binary(BINARY[type(sign)], before, self.evaluate(value), in_place=True))
            case ast.AugAssign(target=ast.Subscript(value=owner, slice=index), op=sign, value=value):
                container, key = self.evaluate(owner), self.evaluate(index)
                before = self.item(container, key)
                self.store(container, key, self.binary(BINARY[type(sign)], before, self.evaluate(value), in_place=True))
            case ast.Expr(value=value):
                self.evaluate(value)

    def branch(self, statement: ast.If) -> None:
        while True:
            if self.condition(statement.lineno, statement.test):
                return self.block(statement.body)
            if (following := elif_of(statement)) is None:
                return self.block(statement.orelse)
            statement = following
            self.line = statement.lineno
            self.step()

    def condition(self, line: int, test: ast.expr) -> bool:
        taken = bool(self.simple(line, lambda: self.evaluate(test)))
        self.state(line, taken)
        return taken

    def iteration(self, body: list[ast.stmt]) -> bool:
        """Run a loop's body once; whether the loop goes on."""
        try:
            self.block(body)
        except _Break:
            return False
        except _Continue:
            pass
        return True

    def loop(self, statement: ast.For) -> None:
        line = statement.lineno
        values = self.simple(line, lambda: self.iterator(self.evaluate(statement.iter)))
        for value in values:
            self.simple(line, lambda value=value: self.assign(statement.target, value))
            self.state(line, True)
            if not self.iteration(statement.body):
                return
            self.line = line
            self.step()
        self.state(line, False)

    def iterator(self, value: Interpreted) -> Iterator[Interpreted]:
        if isinstance(value, dict):
            raise refused(self.line, "a loop over a dict")
        if not isinstance(value, list | tuple | str | range):
            raise _Raised(TypeError(f"{type(value).__name__!r} object is not iterable"))
        return iter(value)

    def handle(self, raised: _Raised, handlers: list[ast.ExceptHandler]) -> None:
        for handler in handlers:
            self.line = handler.lineno
            self.step()
            taken = isinstance(handler.type, ast.Name) and handler.type.id == raised.name
            self.state(handler.lineno, taken)
            if taken:
                return self.block(handler.body)
        raise raised

    def assign(self, target: ast.expr, value: Interpreted) -> None:
        match target:
            case ast.Name(id=name):
                self.variables[name] = value
            case ast.Subscript(value=owner, slice=index):
                container = self.evaluate(owner)
                self.store(container, self.evaluate(index), value)
            case ast.Tuple(elts=targets):
                if isinstance(value, dict):
                    raise refused(self.line, "the unpacking of a dict")
                if not isinstance(value, list | tuple | str):
                    raise _Raised(TypeError(f"cannot unpack {type(value).__name__}"))
                if len(value) != len(targets):
                    raise _Raised(ValueError(f"{len(value)} values for {len(targets)} names"))
                for part, item in zip(targets, list(value), strict=True):
                    self.assign(part, item)

    def store(self, container: Interpreted, key: Interpreted, value: Interpreted) -> None:
        self.measure(key)
        self.native(operator.setitem, container, key, value)

    # --- expressions -------------------------------------------------------------------------------------------------

    def native(self, function: Callable[..., Interpreted], *arguments: Interpreted) -> Interpreted:
        """Python's own operation on values that are small enough; what it raises is the program's."""
        try:
            return function(*arguments)
        except _RAISED as error:
            raise _Raised(error) from None

    def evaluate(self, node: ast.expr) -> Interpreted:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.load(name)
            case ast.BinOp(left=left, op=sign, right=right):
                return self.binary(BINARY[type(sign)], self.evaluate(left), self.evaluate(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.evaluate(operand)
            case ast.UnaryOp(op=sign, operand=operand):
                function = operator.neg if isinstance(sign, ast.USub) else operator.pos
                return self.bounded(self.native(function, self.evaluate(operand)))
            case ast.BoolOp(op=sign, values=values):
                value: Interpreted = None
                for part in values:
                    value = self.evaluate(part)
                    if bool(value) is isinstance(sign, ast.Or):
                        break
                return value
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
            case ast.List(elts=parts):
                return [self.evaluate(part) for part in parts]
            case ast.Tuple(elts=parts):
                return tuple([self.evaluate(part) for part in parts])
            case ast.Dict(keys=keys, values=values):
                found: dict[Interpreted, Interpreted] = {}
                for key, value in zip(keys, values, strict=True):
                    evaluated = self.evaluate(key) if key else None
                    self.store(found, evaluated, self.evaluate(value))
                return found
            case ast.Subscript(value=owner, slice=index):
                container = self.evaluate(owner)
                return self.item(container, self.evaluate(index))
        raise refused(node.lineno, f"'{type(node).__name__.lower()}'")  # what the reader let pass

    def load(self, name: str) -> Interpreted:
        if name in self.variables:
            return self.variables[name]
        if name not in self.local and name in self.globals:
            return self.globals[name]
        raise self.too_much(f"the variable {name!r:.80} has no value yet")

    def item(self, container: Interpreted, key: Interpreted) -> Interpreted:
        self.measure(key)
        return self.native(operator.getitem, container, key)

    def comparison(self, node: ast.Compare) -> Interpreted:
        left = self.evaluate(node.left)
        result: Interpreted = True
        for sign, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(comparator)
            if not (isinstance(left, int | str) and isinstance(right, int | str)):
                self.measure(left, right)
            result = self.native(_OPERATORS[COMPARISONS[type(sign)]], left, right)
            if not result:
                break
            left = right
        return result

    def binary(self, sign: str, left: Interpreted, right: Interpreted, in_place: bool = False) -> Interpreted:
        if isinstance(left, int) and isinstance(right, int):
            if sign == "**" and (right < 0 or (abs(left) > 1 and right > 64)):
                raise self.too_much(
                    "a negative exponent gives no whole number" if right < 0 else "a number grows larger than 64 bits"
                )
            return self.bounded(self.native(_OPERATORS[sign], left, right))
        if isinstance(left, str) and sign == "%":
            raise refused(self.line, "'%' behind a text")
        if isinstance(left, dict) and sign == "|":
            raise refused(self.line, "'|' behind a dict")
        size = 0
        if sign == "+":
            size = _length(left) + _length(right)
        elif sign == "*" and (isinstance(left, int) or isinstance(right, int)):
            size = left * _length(right) if isinstance(left, int) else _length(left) * right
        if size > LARGEST_VALUE:
            raise self.too_much(f"a value has more than {LARGEST_VALUE:,} elements or characters")
        self.work += max(size, 0)
        if in_place and isinstance(left, list) and sign in "+*":
            return self.native(operator.iadd if sign == "+" else operator.imul, left, right)
        return self.native(_OPERATORS[sign], left, right)

    def call(self, node: ast.Call) -> Interpreted:
        if isinstance(node.func, ast.Attribute):
            owner = self.evaluate(node.func.value)
            if not isinstance(owner, list):
                raise refused(node.lineno, f"{node.func.attr!r} of what is no list")
            arguments = [self.evaluate(argument) for argument in node.args]
            if len(owner) >= LARGEST_VALUE:
                raise self.too_much(f"a value has more than {LARGEST_VALUE:,} elements")
            return self.native(owner.append if node.func.attr == "append" else owner.pop, *arguments)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in self.variables or name in self.local or name in self.globals:
            raise self.too_much(f"{name!r:.80} is a variable and no function here")
        arguments = [self.evaluate(argument) for argument in node.args]
        if name in self.functions:
            return self.call_function(name, self.functions[name], arguments)
        if name not in BUILTINS:
            raise self.too_much(f"the function {name!r:.80} is not defined yet")
        return self.call_builtin(name, arguments)

    def call_builtin(self, name: str, arguments: list[Interpreted]) -> Interpreted:
        if name == "print":
            return self.write(arguments)
        if name == "range" and all(isinstance(argument, int) for argument in arguments):
            return self.range(arguments)
        for argument in arguments:
            if not isinstance(argument, int):
                self.measure(argument)
        if name == "int" and isinstance(arguments[0], str) and len(arguments[0]) > 100:
            raise self.too_much("a number grows larger than 64 bits")
        return self.bounded(self.native(_CALLED[name], *arguments))

    def range(self, arguments: list[int]) -> range:
        numbers = self.native(range, *arguments)
        if abs(numbers.stop - numbers.start) // abs(numbers.step) > LARGEST_VALUE:
            raise self.too_much(f"a range has more than {LARGEST_VALUE:,} numbers")
        return numbers

    def write(self, arguments: list[Interpreted]) -> None:
        self.measure(*arguments)
        text = " ".join(map(str, arguments)) + "\n"
        self.written += len(text)
        if self.written > LONGEST_OUTPUT:
            raise self.too_much(f"the program prints more than {LONGEST_OUTPUT:,} characters")
        self.output.append(text)
        self.last = tuple(arguments)

    def call_function(self, name: str, function: Function, arguments: list[Interpreted]) -> Interpreted:
        if len(arguments) != len(function.parameters):
            raise _Raised(TypeError(f"{name} has {len(arguments)} arguments; expected {len(function.parameters)}"))
        if self.depth == DEEPEST_CALL:
            raise self.too_much(f"calls are nested deeper than {DEEPEST_CALL}")
        caller = self.variables, self.local, self.line
        self.variables = dict(zip(function.parameters, arguments, strict=True))
        self.local, self.depth = function.names, self.depth + 1
        try:
            self.block(function.definition.body)
        except _Return as returned:
            return returned.value
        finally:
            (self.variables, self.local, self.line), self.depth = caller, self.depth - 1
        return None


def _length(value: Interpreted) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 0


def _copy(value: Interpreted) -> Interpreted:
    if isinstance(value, list):
        return [_copy(part) for part in value]
    if isinstance(value, tuple):
        return tuple([_copy(part) for part in value])
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return value
