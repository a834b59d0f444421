"""Options written once: command-line flags with their help, from the fields of a dataclass, and checks of choices.

A field's type, default and docstring are all there is to say of an option. A library would do the same (tyro needs half
a second for the help of a plan, which is all that the help of a script may take). Imports no numpy.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, get_args, get_origin, get_type_hints

from debug.errors import InputError
from debug.kinds import Argument


class OneOf(tuple[str, ...]):
    """``Annotated[str, OneOf(("a", "b"))]``: the values that a field may have."""


class Known(tuple[str, ...]):
    """``Annotated[str, Known(("a", "b"))]``: names that the help lists; other values may do, too."""


FLAGS: dict[str, Sequence[str]] = {
    "prompt_template": ("--prompt",),
    "program_generator": ("--task", "--generator"),
    "count": ("--num-seeds",),
}
"""Fields whose flags are not their names with dashes."""


def check_choices(given: object) -> None:
    """Raises InputError where a field of a dataclass has none of the values that its type allows."""
    for name, hint in get_type_hints(type(given), include_extras=True).items():
        options, value = named(hint, OneOf), getattr(given, name, None)
        if options and value is not None and value not in options:
            raise InputError(f"{name} is {value!r:.80}; expected one of {', '.join(options)}")


def named(hint: object, mark: type[OneOf | Known]) -> tuple[str, ...]:
    """The values that a type allows, or names; none where it does not say."""
    parts = [hint, *(part for part in get_args(hint) if get_origin(part) is Annotated)]
    return next((each for part in parts for each in get_args(part)[1:] if isinstance(each, mark)), ())


def docs_of(kind: type) -> dict[str, str]:
    """Field -> its docstring, in one line."""
    found = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        [body] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in pairwise(body.body):
            match line, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def add_flags(
    parser: argparse._ActionsContainer,
    kind: type,
    *,
    defaults: Mapping[str, object] | None = None,
    like: type | None = None,
    as_logged: bool = False,
) -> None:
    """A flag for each field of a dataclass; what is not given is not in the parsed options, see :func:`given`.

    Args:
        defaults: a script's own, in the place of the dataclass's.
        like: a dataclass with the docstrings of fields that have none here.
        as_logged: the help names no defaults: what is not given stays as it was.
    """
    hints = get_type_hints(kind, include_extras=True)
    docs = (docs_of(like) if like else {}) | docs_of(kind)
    for each in fields(kind):
        if not each.init:
            continue
        own = (defaults or {}).get(each.name)
        default = _default(each) if own is None else own
        text = docs.get(each.name, "")
        if known := named(hints[each.name], Known):
            text += f" One of: {', '.join(known)}."
        if default is not None and not as_logged:
            text += f" (default: {_shown(default)})"
        parser.add_argument(
            *flags_of(each.name),
            dest=each.name,
            default=argparse.SUPPRESS if own is None else own,
            help=text.replace("%", "%%"),
            **read_as(hints[each.name]),
        )


def flags_of(field: str) -> Sequence[str]:
    return FLAGS.get(field, ("--" + field.replace("_", "-"),))


def given(options: argparse.Namespace, kind: type) -> dict[str, Argument]:
    """The fields of a dataclass that a command line names."""
    return {each.name: getattr(options, each.name) for each in fields(kind) if hasattr(options, each.name)}


def _default(field: Field[object]) -> object:
    return None if field.default is MISSING else field.default


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    values = default if isinstance(default, list | tuple) else [default]
    return " ".join("any" if value is None else str(value) for value in values)


def read_as(hint: object) -> dict[str, Argument]:
    """How argparse reads a type: choices, yes or no, one value, or several."""
    if options := named(hint, OneOf):
        return {"choices": options}
    if bool in _parts(hint):
        return {"action": argparse.BooleanOptionalAction}
    several = any(get_origin(part) is Sequence for part in _parts(hint))
    held = {leaf for part in _parts(hint) if part is not type(None) for leaf in _leaves(part)}
    metavar = "N" if int in held and str not in held else None
    return {
        "type": int if held == {int} else _number_or_word if int in held else str,
        **({"nargs": "+"} if several else {}),
        **({"metavar": metavar} if metavar else {}),
    }


def _parts(hint: object) -> tuple[object, ...]:
    """The members of a union; of any other type itself."""
    return get_args(hint) if "Union" in type(hint).__name__ or "Union" in str(get_origin(hint)) else (hint,)


def _leaves(hint: object) -> list[object]:
    """What sequences of sequences, and unions, hold in the end; nothing of other types."""
    if isinstance(hint, type) and get_origin(hint) is None:
        return [hint]
    inner = get_args(hint) if get_origin(hint) is Sequence or len(_parts(hint)) > 1 else ()
    return [leaf for part in inner for leaf in _leaves(part)]


def _number_or_word(text: str) -> int | str:
    """A whole number where it is one; words such as ``any`` and sets such as ``3+5`` are the dataclass's to read."""
    try:
        return int(text)
    except ValueError:
        return text
