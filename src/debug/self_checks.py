"""The engine's checks of itself: a patch that silently does nothing, or does it elsewhere, is this field's classic bug.

Four measurements, on every run, through the code path of the run's component:

- *identity*: a run patched with its own activations must not change.
- *full patch*: a run of which nothing of its own is left must be its source; without the patch it must not be.
- *localized*: the cells of the map at which a redirection would show most, run again by :func:`plain_logits`: plain
  torch hooks on the plain model, whole prompts, no nnsight, no cache, no packing. A patch that lands one layer, head,
  position or row beside its place differs from them.
- *read-back* (:class:`ReadBack`): what the modules of the model were really given in the batches of the run, at the
  places that some of their cells wrote to and beside them.

How much rounding may do is measured on the model itself, see :func:`rounding`. Knows cells and runs; no pair, no map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from debug.engine import COMPONENTS, Cell, Cut, Packed, Runs, SelfCheckError, Site, Tail, patched_logits, unembedded
from debug.models import DTYPES, LoadedModel

CHECK_STRIDE = 4  # a pair is checked at every so many layers, the next pair at the layers behind them
READ_BACK = {"float32": 3e-5, "bfloat16": 0.125, "float16": 0.016}
"""How far rounding may take an activation from the recorded one, as a share of its size: some last places."""
SAFETY = 16  # the packed forward pass sums in another order than the two that rounding is measured on
SAFETY_OF_NOISE = 5  # of eleven families' cells none was farther from the plain way than 0.9 times what noise does
NOISE_DRAWS = 2  # of each of two programs


@dataclass(frozen=True)
class SelfChecks:
    """What the engine measured of itself, as largest differences of a logit, through the code path of the component.

    The last two are None where no cell was run that they could be asked of.
    """

    identity_max_abs: float
    """A run patched with its own activations, layer by layer, against the same run unpatched."""
    full_patch_max_abs: float
    """A run patched with so much that nothing of its own is left, against the counterfactual's."""
    full_patch_without: float
    """The same comparison with the patch left out: it must exceed the tolerance twice, or the second proves nothing."""
    tolerance: float
    """What rounding may do, measured on this model: see :func:`rounding`."""
    localized_max_abs: float | None = None
    """Cells of the map against the same cells run with plain torch hooks on the plain model."""
    read_back_max_rel: float | None = None
    """What modules were given at the places that cells wrote to, and beside them, against what they should have been
    given; as a share of the largest number of the token's activation."""
    read_back_tolerance: float = 0.0

    def __or__(self, other: SelfChecks) -> SelfChecks:
        """The worst of both; what is not a number stays so."""

        def worst(name: str) -> float | None:
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            return float(np.max(known)) if known else None  # NaN is the worst

        return replace(self, **{each.name: worst(each.name) for each in fields(self)})

    def metrics(self) -> dict[str, float | None]:
        return {
            "check_identity_max_abs": self.identity_max_abs,
            "check_full_patch_max_abs": self.full_patch_max_abs,
            "check_full_patch_without": self.full_patch_without,
            "check_localized_max_abs": self.localized_max_abs,
            "check_read_back_max_rel": self.read_back_max_rel,
            "check_tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        localized, read_back = (
            "nothing to ask" if value is None else f"{value:.2g}"
            for value in (self.localized_max_abs, self.read_back_max_rel)
        )
        return (
            f"identity {self.identity_max_abs:.2g}, full patch {self.full_patch_max_abs:.2g} (without it "
            f"{self.full_patch_without:.3g}), localized {localized}, tolerance {self.tolerance:.2g}; "
            f"read-back {read_back}"
        )

    def require(self) -> None:
        """Raises SelfCheckError where a check fails."""
        if not (self.identity_max_abs <= self.tolerance and self.full_patch_max_abs <= self.tolerance):
            raise SelfCheckError(
                f"patching a run with its own activations changed a logit by {self.identity_max_abs:.3g}, and a full "
                f"patch is {self.full_patch_max_abs:.3g} away from the counterfactual's logits; {self.tolerance:.3g} "
                "is what rounding may do. The numbers of this run would not mean what they say"
            )
        if not self.full_patch_without > 2 * self.tolerance:
            raise SelfCheckError(
                f"with no patch the logits are {self.full_patch_without:.3g} away from the counterfactual's, and "
                f"rounding may do {self.tolerance:.3g}: a patch that does nothing would pass for one that works"
            )
        if self.localized_max_abs is not None and not self.localized_max_abs <= self.tolerance:
            raise SelfCheckError(
                f"cells of the map are up to {self.localized_max_abs:.3g} away from the same cells run with plain "
                f"hooks on the plain model; {self.tolerance:.3g} is what rounding may do. A patch is at another layer, "
                "head, position or run than it says"
            )
        if self.read_back_max_rel is not None and not self.read_back_max_rel <= self.read_back_tolerance:
            raise SelfCheckError(
                f"read back where cells wrote, or beside it, an activation is {self.read_back_max_rel:.3g} of its size "
                f"away from what it should be; {self.read_back_tolerance:.3g} is what rounding may do"
            )


@dataclass(frozen=True)
class Check:
    """A cell whose logits must be those of a run, of another cell, or these; and its field of SelfChecks."""

    field: str
    cell: Cell
    expected: int | Cell | Float[Tensor, "vocabulary"]


def checks_of(
    model: LoadedModel, runs: Runs, component: str, pairs: Sequence[tuple[int, int]], changed: Sequence[tuple[int, ...]]
) -> list[Check]:
    """The cells that check the engine on these runs: at every CHECK_STRIDE-th layer, the first and the last.

    A full patch of the residual stream is all positions from the first difference on (before it both runs are the same)
    at one layer. One of the other components is, at the last token, whatever layers l and up add to the residual stream
    there: from layer 0 on that gives the counterfactual's logits, from a later one those of the run's own stream going
    into l plus what the counterfactual's gains from there on. The first pair is patched fully at all these layers, the
    others at one each. For ``attention_knockout`` identity cuts no edge, and with all edges to the changed tokens cut
    in all layers the two programs must give the same logits.

    Args:
        pairs: rows of a program's run and of its counterfactual's.
        changed: for each pair the positions of the tokens that differ.
    """
    layers, last = range(model.n_layers), runs.length - 1
    checks = []
    for number, ((clean, counterfactual), differing) in enumerate(zip(pairs, changed, strict=True)):
        first = differing[0]
        if component == "attention_knockout":
            later = [p for p in range(first + 1, last + 1) if p not in differing]  # one between them sees them too
            edges = tuple((query, key) for query, key in product(later, differing) if key < query)
            blind = [Cell(run, tuple(Cut(layer, edges) for layer in layers)) for run in (clean, counterfactual)]
            no_edge = tuple(Cut(layer, ((last, last),), heads=()) for layer in layers)
            checks += [
                Check("identity_max_abs", Cell(clean, no_edge), clean),
                Check("full_patch_max_abs", blind[0], blind[1]),
                Check("full_patch_without", Cell(clean, no_edge), counterfactual),
            ]
            continue
        rows = range(model.n_layers + (component == "residual_stream"))
        some = sorted({*rows[number % CHECK_STRIDE :: CHECK_STRIDE], rows[0], rows[-1]})
        chosen = some if number == 0 else [number % len(rows)]
        for layer in some:
            position = first + (number + 7 * layer) % (runs.length - first)
            heads = (layer % model.n_heads,) if COMPONENTS[component].per_head else None
            own = Cell(clean, (Site(component, layer, (position,), heads),), source=clean)
            checks.append(Check("identity_max_abs", own, clean))
        if component == "residual_stream":
            everything = tuple(range(first, runs.length))
            full = [Cell(clean, (Site(component, layer, everything),), counterfactual) for layer in chosen]
            full.append(Cell(clean, (Site(component, 0, tuple(differing)),), counterfactual))  # the input is all it is
            expected: Sequence[int | Tensor] = [counterfactual] * len(full)
        else:
            stream = torch.stack([at[[clean, counterfactual], last] for at in runs.activations["residual_stream"]])
            dtype, stream = stream.dtype, stream.float()
            full, gains = [], []
            for layer in chosen:
                parts = product(range(layer, model.n_layers), COMPONENTS[component].full_patch)
                sites = tuple(Site(part, at, (last,)) for at, part in parts)
                full.append(Cell(clean, sites, counterfactual))
                gains.append((stream[layer, 0] + (stream[-1, 1] - stream[layer, 1])).to(dtype))
            expected = list(unembedded(model, torch.stack(gains)))
        checks += [Check("full_patch_max_abs", *both) for both in zip(full, expected, strict=True)]
        checks.append(Check("full_patch_without", replace(full[0], source=clean), expected[0]))
    return checks


def measured(
    model: LoadedModel,
    runs: Runs,
    checks: Sequence[Check],
    logits: dict[Cell, Float[Tensor, "vocabulary"]],
    asked: Asked,
) -> SelfChecks:
    """What the checks say, given the logits of their cells and what was asked of the map's."""
    worst: dict[str, float] = dict.fromkeys(("identity_max_abs", "full_patch_max_abs", "full_patch_without"), 0.0)
    for check in checks:
        expected = check.expected
        if not isinstance(expected, Tensor):
            expected = runs.logits[expected] if isinstance(expected, int) else logits[expected]
        distance = (logits[check.cell] - expected).abs().max().item()
        worst[check.field] = float(np.maximum(worst[check.field], distance))
    return SelfChecks(
        **worst,
        tolerance=asked.tolerance,
        localized_max_abs=asked.localized,
        read_back_max_rel=asked.read_back.worst,
        read_back_tolerance=READ_BACK[model.dtype],
    )


def self_checks(model: LoadedModel, runs: Runs, checks: Sequence[Check]) -> SelfChecks:
    """Run the cells of the checks and measure them."""
    cells = list(dict.fromkeys(cell for c in checks for cell in (c.cell, c.expected) if isinstance(cell, Cell)))
    logits, read_back = {}, ReadBack(model, runs)
    for indices, batch in patched_logits(model, runs, cells, listen=read_back):
        logits |= {cells[index]: row for index, row in zip(indices, batch, strict=True)}
    return measured(model, runs, checks, logits, Asked(rounding(model, runs, [checks[0].cell.run])[0], None, read_back))


# --- The plain way: torch hooks on the plain model, whole prompts -----------------------------------------------------


@torch.no_grad()
def plain_logits(
    model: LoadedModel, runs: Runs, cells: Sequence[Cell]
) -> tuple[Float[Tensor, "cell vocabulary"], float]:
    """The cells' logits without nnsight, cache, packing or restart; and the tolerance that :func:`rounding` measures.

    Activations to patch from are recorded by hooks too, where their source is a run; a mean, zeros or a stored run are
    taken as they are. Costs a forward pass of a whole prompt for each cell and each run.
    """
    whole = sorted({row for cell in cells for row in (cell.run, cell.source) if row is not None and row < len(runs)})
    needed = {(site.component, site.layer) for cell in cells for site in cell.sites if isinstance(site, Site)}
    tolerance, heard = rounding(model, runs, whole, needed)
    rows = {row: number for number, row in enumerate(whole)}
    token_ids = runs.token_ids[[cell.run for cell in cells]]
    length, n_heads = runs.length, model.n_heads
    by_place: dict[tuple[str, int], list[tuple[int, int, Site]]] = defaultdict(list)
    cuts: dict[int, list[tuple[int, Cut]]] = defaultdict(list)
    for number, cell in enumerate(cells):
        for site in cell.sites:
            if isinstance(site, Cut):
                cuts[site.layer].append((number, site))
            elif cell.source is not None:
                by_place[site.component, site.layer].append((number, cell.source, site))

    def patched(component: str, layer: int) -> Callable[[Tensor], Tensor]:
        def edit(value: Tensor) -> Tensor:
            value = value.clone()
            tokens = value.view(len(cells), length, -1)
            for number, source, site in by_place[component, layer]:
                stored = runs.activations[component][layer][source]
                given = heard[component, layer][rows[source]] if source in rows else stored.to(value.dtype)
                width = tokens.shape[-1] // n_heads
                for position in site.positions:
                    if site.heads is None:
                        tokens[number, position] = given[position]
                    for head in site.heads or ():
                        channels = slice(head * width, (head + 1) * width)
                        tokens[number, position, channels] = given[position, channels]
            return value

        return edit

    def cut(layer: int) -> Callable[..., Any]:
        def edit(_: Any, arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            mask = keywords["attention_mask"].expand(len(cells), n_heads, -1, -1).clone()
            for number, site in cuts[layer]:
                for query, key in site.edges:
                    for head in range(n_heads) if site.heads is None else site.heads:
                        mask[number, head, query, key] = torch.finfo(mask.dtype).min
            return arguments, keywords | {"attention_mask": mask}

        return edit

    forward: dict[str, Any] = {}
    with model.evaluating(), ExitStack() as hooks:
        for component, layer in by_place:
            hooks.enter_context(_hook(model, component, layer, patched(component, layer)))
        for layer in cuts:
            handle = model.attention(layer)._module.register_forward_pre_hook(cut(layer), with_kwargs=True)
            hooks.callback(handle.remove)
        if cuts:
            position = torch.arange(length, device=token_ids.device)
            distance = (position[:, None] - position[None])[None].expand(len(cells), -1, -1)
            mask = model.attention_mask(distance >= 0, distance)
            forward = {"attention_mask": mask, "position_ids": position.expand(len(cells), -1)}
        logits = model.hf(input_ids=token_ids, use_cache=False, logits_to_keep=1, **forward).logits
    return logits[:, -1].float(), tolerance


@torch.no_grad()
def rounding(
    model: LoadedModel, runs: Runs, rows: Sequence[int], needed: Iterable[tuple[str, int]] = ()
) -> tuple[float, dict[tuple[str, int], Float[Tensor, "row token width"]]]:
    """The largest change of a logit that rounding may cause in this model; and activations of runs, by plain hooks.

    Measured: the logits of the same programs from forward passes that are equal but for the order of their sums: the
    recorded one (all runs in a batch, into a cache), a plain one, and one in two pieces; times SAFETY. Where the
    kernels of a machine sum alike in all three, that is next to nothing: no less than SAFETY_OF_NOISE times what noise
    of one last place does (:func:`_noise`), nor than one last place of the largest logit for each of the 2 x layers
    additions to the residual stream, as a random walk.
    """
    heard: dict[tuple[str, int], Tensor] = {}

    def listen(at: tuple[str, int]) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            heard[at] = value.detach().clone().view(len(rows), runs.length, -1)

        return keep

    token_ids = runs.token_ids[list(rows)]
    with model.evaluating(), ExitStack() as hooks:
        for at in needed:
            hooks.enter_context(_hook(model, *at, listen(at)))
        logits = model.hf(input_ids=token_ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    # Again in two pieces, the second behind the first one's keys and values, with an explicit mask: other kernels.
    token_ids, cache, half = token_ids[:1], DynamicCache(), runs.length // 2
    position = torch.arange(runs.length, device=token_ids.device)
    distance = (position[half:, None] - position[None])[None]
    with model.evaluating():
        model.hf(input_ids=token_ids[:, :half], past_key_values=cache, use_cache=True, logits_to_keep=1)
        pieces = model.hf(
            input_ids=token_ids[:, half:],
            past_key_values=cache,
            position_ids=position[None, half:],
            attention_mask=model.attention_mask(distance >= 0, distance),
            logits_to_keep=1,
        ).logits[:, -1]
    others = torch.cat([logits, pieces.float()]) - runs.logits[[*rows, rows[0]]]
    least = torch.finfo(DTYPES[model.dtype]).eps * logits.abs().max().item() * (2 * model.n_layers) ** 0.5
    difference = others.abs().max().item()
    return max(SAFETY * difference, SAFETY_OF_NOISE * _noise(model, runs, [rows[0], rows[-1]]), least), heard


def _noise(model: LoadedModel, runs: Runs, rows: Sequence[int]) -> float:
    """The largest change of a logit where noise of one last place is added to the residual stream at every layer.

    One last place of the token's root mean square, which is what a sum of so large numbers is rounded to. How far a
    model carries that is its own affair, and alike on all machines.
    """
    draws = torch.Generator().manual_seed(0)
    eps = torch.finfo(DTYPES[model.dtype]).eps
    rows = [*rows] * NOISE_DRAWS

    def noisy(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=draws).to(value.device)
        return (value + eps * value.float().pow(2).mean(-1, keepdim=True).sqrt() * drawn).to(value.dtype)

    with model.evaluating(), ExitStack() as hooks:
        for layer in range(model.n_layers + 1):
            hooks.enter_context(_hook(model, "residual_stream", layer, noisy))
        logits = model.hf(input_ids=runs.token_ids[rows], use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return (logits - runs.logits[rows]).abs().max().item()


def _envoy(model: LoadedModel, component: str, layer: int) -> Any:
    """The module that has a component as its input (residual stream, heads) or its output."""
    if component == "residual_stream" and layer == model.n_layers:
        return model.final_norm
    places = {"residual_stream": model.layer, "attention_heads": model.output_projection}
    return (places | {"attention": model.attention, "mlp": model.mlp})[component](layer)


@contextmanager
def _hook(model: LoadedModel, component: str, layer: int, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """A plain torch hook where a component is; what ``edit`` returns, where it returns something, is put there."""

    def into(_: Any, arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not arguments:
            new = edit(keywords["hidden_states"])
            return None if new is None else ((), keywords | {"hidden_states": new})
        new = edit(arguments[0])
        return None if new is None else ((new, *arguments[1:]), keywords)

    def out_of(_: Any, __: tuple, output: Any) -> Any:
        new = edit(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    module = _envoy(model, component, layer)._module
    if component in ("residual_stream", "attention_heads"):
        handle = module.register_forward_pre_hook(into, with_kwargs=True)
    else:
        handle = module.register_forward_hook(out_of)
    try:
        yield
    finally:
        handle.remove()


class ReadBack:
    """What the modules of a model were given in batches of cells, where some of the cells wrote and beside it.

    Heard by torch hooks of its own, at the first place that a cell writes to, where all else must be the run's own: the
    input of a layer as its first module gets it, the output of an output projection (against a projection of what its
    heads should be), of an attention block, of an MLP, of the final norm. ``worst`` is the largest difference, as a
    share of the largest number of its token's activation; None where nothing was written.
    """

    CELLS = 2  # of a batch

    def __init__(self, model: LoadedModel, runs: Runs) -> None:
        self.model, self.runs = model, runs
        self.worst: float | None = None

    @contextmanager
    def __call__(self, packed: Packed, tail: Tail | None) -> Iterator[None]:
        """The engine's ``listen``."""
        asked: list[tuple[tuple[str, int], int, Tokens]] = []
        for number in sorted({0, len(packed.cells) // 2, len(packed.cells) - 1})[-self.CELLS :]:
            cell, alone = packed.cells[number], tail if tail and packed.cells[number].layer == tail.layer else None
            first = [site for site in cell.sites if site.layer == cell.layer]
            if any(isinstance(site, Cut) for site in first):
                continue
            names = {site.component for site in first if isinstance(site, Site)}
            component = next(name for name in COMPONENTS if name in names)
            asked.append(((component, cell.layer), number, _at(packed, alone, number)))
            if alone is not None and len(first) == len(cell.sites):
                asked.append((("residual_stream", cell.layer + 1), number, _beside(packed, alone, number)))
        heard: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as hooks:
            for place in {place for place, _, _ in asked}:
                for handle in self._listen(place, heard):
                    hooks.callback(handle.remove)
            yield
        for place, number, tokens in asked:
            self._compare(packed, number, place, tokens, heard[place])

    def _listen(self, place: tuple[str, int], heard: dict[tuple[str, int], Tensor]) -> list[RemovableHandle]:
        """Keep what the module at a place is given or gives."""
        (component, layer), model = place, self.model

        def first_input(_: Any, arguments: tuple, keywords: dict[str, Any]) -> None:
            heard.setdefault(place, arguments[0] if arguments else next(iter(keywords.values())))

        def output(_: Any, __: tuple, value: Any) -> None:
            heard[place] = value[0] if isinstance(value, tuple) else value

        if component == "residual_stream" and layer < model.n_layers:
            inside = list(model.layer(layer)._module.modules())[1:]
            return [module.register_forward_pre_hook(first_input, with_kwargs=True) for module in inside]
        return [_envoy(model, component, layer)._module.register_forward_hook(output)]

    def _compare(self, packed: Packed, number: int, place: tuple[str, int], which: Tokens, value: Tensor) -> None:
        """What was heard at these tokens of a cell against what its place should have, there and nowhere else."""
        (component, layer), (shape, tokens, positions) = place, which
        model, cell = self.model, packed.cells[number]
        if shape == packed.shape and layer == model.n_layers - 1 and component != "residual_stream":
            last = positions == packed.length - 1  # the last layer runs these parts for the tokens that predict only
            tokens, positions = tokens[:, last], positions[last]
        stored = self.runs.activations[component][layer]
        expected = stored[cell.run, positions].clone()
        place_of = {position: i for i, position in enumerate(positions.tolist())}
        for site in cell.sites:
            if not isinstance(site, Site) or (site.component, site.layer) != place:
                continue
            for position in site.positions:
                if position not in place_of:
                    continue
                given = stored[cell.source, position]
                width = given.shape[-1] // model.n_heads
                for start, end in (
                    [(0, len(given))] if site.heads is None else [(h * width, (h + 1) * width) for h in site.heads]
                ):
                    expected[place_of[position], start:end] = given[start:end]
        if component == "attention_heads":
            expected = model.project_heads(layer, expected)
        elif layer == model.n_layers:
            expected = model.final_norm._module(expected)
        found = value.view(*shape, -1)[tuple(torch.as_tensor(tokens))].float()
        size = expected.float().abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
        worst = ((found - expected.float()).abs().amax(-1) / size).max().item() if len(found) else 0.0
        self.worst = worst if self.worst is None else float(np.maximum(self.worst, worst))


Tokens = tuple[tuple[int, int], Int[np.ndarray, "2 token"], Int[np.ndarray, " token"]]
"""Shape of what modules are given, less its width; (row, token) of some tokens in it; their positions in the prompt."""


def _at(packed: Packed, tail: Tail | None, number: int) -> Tokens:
    """The tokens of a cell; of those that run alone at first, where there are such. As the mask has them."""
    own = packed.segments == packed.numbers[number]
    if tail is None:
        return packed.shape, np.argwhere(own).T, packed.positions[own]
    index = [i for i, at in enumerate(zip(tail.rows, tail.tokens, strict=True)) if own[at]]
    positions = [packed.positions[tail.rows[i], tail.tokens[i]] for i in index]
    return (1, len(tail)), np.array([[0] * len(index), index]), np.array(positions)


def _beside(packed: Packed, tail: Tail, number: int) -> Tokens:
    """The tokens of a cell that do not run alone at first, behind which nothing may have changed."""
    own = packed.segments == packed.numbers[number]
    own[tail.rows, tail.tokens] = False
    return packed.shape, np.argwhere(own).T, packed.positions[own]


@dataclass(frozen=True)
class Asked:
    """What was asked of the cells of the maps themselves."""

    tolerance: float
    localized: float | None
    read_back: ReadBack


def telling(
    z: Float[np.ndarray, "*grid answer"], ran: Collection[tuple[int, ...]], most_axes: int = 3
) -> list[tuple[int, ...]]:
    """The cells of a grid at which a redirection would show most: both sides of the largest step, by each axis.

    A patch that lands one place beside its own moves the step, and one of its two sides then has the other's logits.
    """
    known = np.zeros(z.shape[:-1], dtype=bool)
    for at in ran:
        known[at] = True
    chosen: dict[tuple[int, ...], None] = {}
    for axis in range(min(known.ndim, most_axes)):
        steps = np.abs(np.diff(z, axis=axis)).max(-1)
        cut = [slice(None)] * known.ndim
        sides = [tuple(slice(n, n - 1 or None) if a == axis else s for a, s in enumerate(cut)) for n in (0, 1)]
        both = known[sides[0]] & known[sides[1]]
        if both.any():
            at = np.unravel_index(np.where(both, steps, -1).argmax(), steps.shape)
            chosen |= dict.fromkeys([tuple(map(int, at)), tuple(int(n) + (a == axis) for a, n in enumerate(at))])
    return list(chosen) or list(ran)[:1]
