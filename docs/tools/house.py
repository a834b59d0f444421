"""Draws the house: the packages of src/debug and who imports whom, as docs/assets/house.svg, and their table in
docs/architecture.md. Both are computed from the import statements; tests/test_docs.py compares them.

python docs/tools/house.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SVG = ROOT / "docs" / "assets" / "house.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- house: begins -->\n", "<!-- house: ends -->\n"

GROUPS = {
    "scripts and screens": ("runs", "dashboard", "commands", "report", "site"),
    "runs": ("runner", "causal_experiment_runner", "rerun", "robust_seeds", "paper", "training", "legacy"),
    "method": ("plan", "attention_knockout", "causal_tracing", "engine", "hypotheses", "models"),
    "programs and prompts": (
        *("core", "counterfactual", "generators", "interpreter", "programs", "prompts", "token_analyzer"),
    ),
    "results": ("causal_map", "causal_visualization", "statistics", "tracking"),
}
"""Colours of the drawing; a package that is not named here is drawn in the last one."""
REST = "shared"
FACES = {"__init__", "__main__"}
NOT_DRAWN = ("errors", "kinds", "lazy", "cli")
"""What nearly all import, or all scripts; the table has them."""
COLOURS = {  # light fill, dark fill, line
    "scripts and screens": ("#eceff1", "#37474f", "#78909c"),
    "runs": ("#fff3e0", "#4a3113", "#e08214"),
    "method": ("#fde7d9", "#522a14", "#b35806"),
    "programs and prompts": ("#e3f2fd", "#12314a", "#0072b2"),
    "results": ("#ede7f6", "#33294d", "#7e57c2"),
    REST: ("#f5f5f5", "#2e2e2e", "#8a8a8a"),
}
Imports = Mapping[str, frozenset[str]]


def imports_of(root: Path = ROOT) -> dict[str, frozenset[str]]:
    """Package or module of src/debug, and ``runs``, ``dashboard`` -> those of src/debug that it imports.

    Imports for type checkers alone do not count; those inside of functions do.
    """
    package = root / "src" / "debug"
    names = {path.name.removesuffix(".py") for path in package.iterdir() if path.suffix == ".py" or _is_package(path)}
    homes = {
        name: [package / f"{name}.py", *(package / name).rglob("*.py")] for name in names - {"__init__", "__main__"}
    }
    homes |= {name: [*(root / name).rglob("*.py")] for name in ("runs", "dashboard")}
    found = {}
    for name, files in homes.items():
        trees = (ast.parse(file.read_text("utf-8")) for file in files if file.is_file())
        found[name] = frozenset({part for tree in trees for part in _imported(tree, names)} - {name})
    return found


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def _imported(tree: ast.AST, names: set[str]) -> Iterable[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "debug":
            inside = node.module.split(".")[1:2] or [_home(alias.name) for alias in node.names]
            yield from (name for name in inside if name in names)
        yield from _imported(node, names)


@cache
def _home(name: str) -> str:
    """Where ``from debug import name`` finds a name that is no module."""
    face = ast.parse((ROOT / "src" / "debug" / "__init__.py").read_text("utf-8"))
    for node in ast.walk(face):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return ((node.module or "").split(".")[1:2] or [name])[0]
    return name


def summary_of(name: str) -> str:
    """The first sentence of a package's docstring."""
    package = ROOT / "src" / "debug"
    file = next(file for file in (package / name / "__init__.py", package / f"{name}.py") if file.is_file())
    text = " ".join((ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


def levels(imports: Imports) -> dict[str, int]:
    """0 for those that import nothing; else one more than the highest that is imported.

    Raises:
        graphlib.CycleError: some import each other.
    """
    height: dict[str, int] = {}
    for name in TopologicalSorter(imports).static_order():
        height[name] = max((height[other] + 1 for other in imports.get(name, ())), default=0)
    return height


def arrows(imports: Imports) -> list[tuple[str, str]]:
    """The imports that no chain of other imports implies (the transitive reduction): few enough to read."""

    def below(name: str) -> set[str]:
        return {deep for other in imports.get(name, ()) for deep in (other, *below(other))}

    reach = {name: below(name) for name in imports}
    return sorted(
        (name, other)
        for name, others in imports.items()
        for other in others
        if not any(other in reach[between] for between in others - {other})
    )


def table(imports: Imports) -> str:
    """Every package, from the top down: what it is for, and what it imports."""
    height = levels(imports)
    rows = ["| package | what it is for | imports |", "| --- | --- | --- |"]
    for name in sorted(height, key=lambda name: (-height[name], name)):
        if name in ("runs", "dashboard"):
            continue
        others = ", ".join(sorted(imports[name])) or "nothing of this project"
        rows.append(f"| `{name}` | {summary_of(name)} | {others} |")
    return "\n".join(rows) + "\n"


def svg(imports: Imports) -> str:
    """The drawing: one row for each level, arrows down."""
    imports = {name: others - {*NOT_DRAWN} for name, others in imports.items() if name not in NOT_DRAWN}
    height, drawn = levels(imports), arrows(imports)
    height["dashboard"] = max(height.values())
    rows: dict[int, list[str]] = {}
    for name in sorted(height):
        rows.setdefault(height[name], []).append(name)
    place = _places(rows, drawn)
    legend = 16 + sum(48 + 7.6 * len(kind) for kind in COLOURS)
    width = max(legend, *(x + _width(name) / 2 + 16 for name, (x, _) in place.items()))
    bottom = max(y for _, y in place.values()) + 90
    group = {name: kind for kind, names in GROUPS.items() for name in names}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {bottom:.0f}" role="img" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>The packages of src/debug; an arrow points to what is imported</title>",
        f"<style>{_style()}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
    ]
    for name, other in drawn:
        (x1, y1), (x2, y2) = place[name], place[other]
        y1, y2 = y1 + 17, y2 - 18
        bend = (y2 - y1) / 2
        path = f"M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
        parts.append(f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>')
    for name, (x, y) in place.items():
        kind, wide = group.get(name, REST), _width(name)
        box = f'x="{x - wide / 2:.0f}" y="{y - 17:.0f}" width="{wide:.0f}" height="34" rx="6"'
        parts.append(f'<rect class="{_css(kind)}" {box}/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{name}</text>')
    x = 16.0
    for kind in COLOURS:
        parts.append(f'<rect class="{_css(kind)}" x="{x:.0f}" y="{bottom - 34:.0f}" width="18" height="18" rx="4"/>')
        parts.append(f'<text x="{x + 25:.0f}" y="{bottom - 20:.0f}">{kind}</text>')
        x += 48 + 7.6 * len(kind)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _width(name: str) -> float:
    return 24 + 7.8 * len(name)


def _css(kind: str) -> str:
    return kind.replace(" ", "-")


def _style() -> str:
    light = "".join(f".{_css(k)}{{fill:{a};stroke:{c}}}" for k, (a, _, c) in COLOURS.items())
    dark = "".join(f".{_css(k)}{{fill:{b}}}" for k, (_, b, _) in COLOURS.items())
    return (
        f"text{{fill:#22222a}}.arrow{{fill:none;stroke:#8a8a8a;stroke-width:1.2}}.tip{{fill:#8a8a8a}}{light}"
        f"@media (prefers-color-scheme: dark){{text{{fill:#e6e6ea}}{dark}}}"
    )


def _places(rows: Mapping[int, list[str]], drawn: Iterable[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Centres of the boxes: rows from the top down, within a row near what they are joined to."""
    joined: dict[str, list[str]] = {}
    for name, other in drawn:
        joined.setdefault(name, []).append(other)
        joined.setdefault(other, []).append(name)
    gap, whole = 26, max(sum(_width(name) + 26 for name in row) for row in rows.values())
    x: dict[str, float] = {}
    for row in rows.values():
        _spread(row, x, whole, gap)
    for _ in range(24):
        for level in sorted(rows, reverse=True):
            wish = {n: sum(x[o] for o in joined.get(n, [n])) / len(joined.get(n, [n])) for n in rows[level]}
            rows[level].sort(key=lambda name: (wish[name], name))
            _spread(rows[level], x, whole, gap, wish)
    top = max(rows)
    left = min(x[name] - _width(name) / 2 for name in x)
    return {name: (16 + x[name] - left, 30 + 84 * (top - level)) for level, row in rows.items() for name in row}


def _spread(
    row: list[str], x: dict[str, float], whole: float, gap: int, wish: Mapping[str, float] | None = None
) -> None:
    """Where each would be, pushed apart, within the drawing's width."""
    free = whole - sum(_width(name) + gap for name in row)
    at, edge = [], 0.0
    for number, name in enumerate(row):
        wide = _width(name)
        even = edge + free * (number + 1) / (len(row) + 1) - free * number / (len(row) + 1)
        left = (wish[name] - wide / 2) if wish else even
        at.append(max(edge, left))
        edge = at[-1] + wide + gap
    over, limit = 0.0, whole
    for number in range(len(row) - 1, -1, -1):
        over = min(at[number], limit - _width(row[number]))
        at[number], limit = over, over - gap
    for number, name in enumerate(row):
        x[name] = max(at[number], 0.0) + _width(name) / 2


def page_with_table(imports: Imports) -> str:
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table(imports) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    found = imports_of()
    SVG.write_text(svg(found), "utf-8")
    PAGE.write_text(page_with_table(found), "utf-8")
    print(f"{SVG.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}: {len(found)} packages, {len(arrows(found))} arrows")
