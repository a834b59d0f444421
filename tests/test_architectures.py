"""The table of architectures in docs/architectures.md is what is found here; `python tests/test_architectures.py` or
DEBUG_WRITE_ARCHITECTURES=1 writes it."""

import os
import re
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch

import families
from debug import models
from debug.engine import Intervention, SelfCheckError, Site
from debug.engine.self_checks import checks_of, self_checks
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from debug.models.validation import why_unpatchable
from reference import fast, passes_of, slow, strongest

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
WRITE = "DEBUG_WRITE_ARCHITECTURES"
HEADER = """# Architectures

Families whose models can be asked and patched, with what `tests/test_architectures.py` found in a small model of each
with random weights. It fails where this page is not what it would write, the versions aside, and writes it with
`python tests/test_architectures.py`.

- **hook points**: what validation at load (`models/validation.py`) finds right: shapes, and a write that changes the
  logits.
- **engine = slow trace**: patched logits of the engine are those of one nnsight trace for each cell, within 1e-4; every
  component, in every layer. `tests/test_engine.py` compares every cell.
- **self-checks**: what every run checks, for every component and for the attention knockout (`engine/self_checks.py`).

A family that is not here is one line in `debug.models.ARCHITECTURES`: where its layers, attention and MLP are. Hook
points have the same names and shapes in all of them:

| name | component | TransformerLens | shape |
| --- | --- | --- | --- |
"""
NOTES = """
Notes:

- Of a model that also sees pictures (`gemma3`) the text model is patched, and prompts are text.
- Of a mixture of experts (`mixtral`, `qwen3_moe`) the MLP is the block as a whole: router and experts. The choice of
  experts is discrete: where two experts' scores differ by less than rounding, a token may go to another expert in the
  engine's packed pass than in a plain one, and its logits jump. Run such models in float32: there the tests' models
  pass with the tolerance of other families (below 1e-3). In bfloat16 a random model of 8 layers and 8 experts had cells
  6 logits away from the plain pass, where the median cell was 0.1 away. The self-checks see that: the tolerance is
  measured on passes that differ by rounding, so that it grew beyond the whole effect, and the run ended with an error.
  A jump at a cell that no check looks at, in a run whose tolerance is small, would not be seen. Estimates by
  attribution see no change of expert.
- OPT with norms behind its layers (opt-350m), and attention to later tokens, are for accuracy runs alone.
"""


def row(name: str) -> str:
    """A line of the table: what is found in one family, in words."""
    model = families.family(name)
    given = strongest(model, 2)
    reason = why_unpatchable(model)
    return (
        f"| {name} | {model.hf.config.model_type} | {', '.join(COMPONENTS) if reason is None else reason} | "
        f"{compared(model, given)} | {checked(model, given)} |"
    )


def compared(model: LoadedModel, given: list) -> str:
    passes, last = passes_of(model, given), len(given[0].original.token_ids) - 1
    interventions = [
        Intervention(0, (Site(name, layer, (position,), (1,) if component.per_head else None, source=2),))
        for name, component in COMPONENTS.items()
        for layer, position in product(range(len(model.hook_point(name))), (given[0].first_difference, last))
    ]
    difference = (fast(model, passes, interventions) - slow(model, passes, interventions)).abs().max().item()
    return "yes" if difference < 1e-4 else f"no: {difference:.1g}"


def checked(model: LoadedModel, given: list) -> str:
    passes, rows = passes_of(model, given), [(number, len(given) + number) for number in range(len(given))]
    for name in (*COMPONENTS, "attention_knockout"):
        checks = checks_of(model, passes, name, rows, [pair.differing for pair in given])
        try:
            self_checks(model, passes, checks).require()
        except SelfCheckError as error:
            return f"no: {name}: {error}"
    return "pass"


def versions() -> str:
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("torch", "transformers", "nnsight"))


def page() -> str:
    torch.manual_seed(0)
    llama = families.family("llama")
    points = {point.name: name for name in dir(type(llama)) if (point := _point(llama, name)) is not None}
    lines = [
        f"| `model.{points[name]}[layer]` | `{name}`: {component.title} | `{component.transformer_lens}` | "
        f"row, token, {'head, width of a head' if component.per_head else 'width'} |"
        for name, component in COMPONENTS.items()
    ]
    table = [
        "",
        f"With {versions()}:",
        "",
        "| family | model_type | hook points | engine = slow trace | self-checks |",
        "| --- | --- | --- | --- | --- |",
        *map(row, families.CONFIGS),
    ]
    return HEADER + "\n".join([*lines, *table]) + "\n" + NOTES


def _point(model: LoadedModel, name: str) -> models.hook_points.HookPoint | None:
    if not isinstance(getattr(type(model), name), property) or name == "logits":
        return None
    value = getattr(model, name)
    return value if isinstance(value, models.hook_points.HookPoint) else None


def without_versions(text: str) -> str:
    return re.sub(r"^With torch .*:$", "", text, flags=re.MULTILINE)


def test_the_page_is_what_is_found() -> None:
    found = page()
    if os.environ.get(WRITE):
        PAGE.write_text(found, "utf-8")
    assert without_versions(PAGE.read_text("utf-8")) == without_versions(found), f"{WRITE}=1 writes it"


def test_every_listed_family_is_tested() -> None:
    assert {config.model_type for config in families.CONFIGS.values()} == set(models.ARCHITECTURES)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
