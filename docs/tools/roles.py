"""For mkdocstrings: what the docstrings of src/debug say in Sphinx's words becomes links, and lazy packages show names.

A role such as ``:class:`Plan` `` becomes a link to where the name is described, or code where no page describes it.
A package whose names are imported when they are first used (``debug.lazy``) lists them under ``if TYPE_CHECKING``:
these are its public names.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([^`]+)`")


class SphinxRoles(griffe.Extension):
    """Rewrites docstrings after a package is loaded, before a page shows them."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        seen: set[str] = set()
        self._module(pkg, seen)

    def _module(self, module: griffe.Module, seen: set[str]) -> None:
        if module.path in seen:
            return
        seen.add(module.path)
        if "names_of" in getattr(module, "source", "") and module.is_init_module:
            lazy = [name for name, member in module.members.items() if member.is_alias and not member.runtime]
            module.exports = [name for name in lazy if name != "annotations"]
        self._object(module)
        for member in module.modules.values():
            if not member.is_alias:
                self._module(member, seen)

    def _object(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda found: link(obj, found[1]), obj.docstring.value)
        for member in obj.members.values():
            if not member.is_alias and not member.is_module:
                self._object(member)  # type: ignore[arg-type]


def link(obj: griffe.Object, name: str) -> str:
    """A link that becomes code where no page describes the name; what is shown is what the docstring says."""
    path = found(obj, name.lstrip("."))
    shown = f"<code>{name.lstrip('.').removeprefix('debug.')}</code>"
    return f'<autoref optional identifier="{path}">{shown}</autoref>' if path else shown


def found(obj: griffe.Object, name: str) -> str | None:
    """The full path of a name as a reader of the docstring understands it: in the class, the module, or the package."""
    if name.startswith("debug."):
        return name
    first, _, rest = name.partition(".")
    scope: griffe.Object | None = obj
    while scope is not None:
        if first in scope.members:
            member = scope.members[first]
            path = member.target_path if member.is_alias else member.path
            return f"{path}.{rest}" if rest else path
        scope = scope.parent
    return None
