"""The engine's checks of itself: a patch that silently does nothing, or does it elsewhere, is this field's classic bug.

Four measurements, on every causal run, through the code path of its component:

- *identity*: a forward pass patched with its own activations must not change.
- *full patch*: a forward pass of which nothing of its own is left must be its source; without the patch it must not be.
- *localized*: the squares of the map at which a redirection would show most, again by :func:`plain_logits`: plain torch
  hooks on the plain model, whole prompts, no nnsight, no cache, no packing. A patch that lands one layer, head,
  position or row beside its place differs from them.
- *read-back* (:class:`ReadBack`): what the modules of the model were really given in the batches, at the places that
  some of their interventions wrote to and beside them.

How much rounding may do is measured on the model itself, see :func:`rounding`. Knows interventions and forward passes;
no pair, no map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debug.engine.forward import patched_logits
from debug.engine.interventions import Cut, Intervention, Site
from debug.engine.plain_hooks import rounding
from debug.engine.read_back import READ_BACK, ReadBack
from debug.engine.unpatched import ForwardPasses, SelfCheckError, unembedded
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS

CHECK_STRIDE = 4  # a pair is checked at every so many layers, the next pair at the layers behind them


@dataclass(frozen=True)
class SelfChecks:
    """What the engine measured of itself, as largest differences of a logit, through the code path of the component.

    The last two are None where there was no intervention that they could be asked of.
    """

    identity_max_abs: float
    """A forward pass patched with its own activations, layer by layer, against the same one unpatched."""
    full_patch_max_abs: float
    """A forward pass patched with so much that nothing of its own is left, against the counterfactual's."""
    full_patch_without: float
    """The same comparison with the patch left out: it must exceed the tolerance twice, or the second proves nothing."""
    tolerance: float
    """What rounding may do, measured on this model: see :func:`rounding`."""
    localized_max_abs: float | None = None
    """Squares of the map against the same interventions with plain torch hooks on the plain model."""
    read_back_max_rel: float | None = None
    """What modules were given at the places that interventions wrote to, and beside them, against what they
    should have been given; as a share of the largest number of the token's activation."""
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
            f"a forward pass patched with itself moves a logit by {self.identity_max_abs:.2g}; patched with all "
            f"of the counterfactual it is {self.full_patch_max_abs:.2g} from the counterfactual's (unpatched "
            f"{self.full_patch_without:.3g}); squares run again the plain way differ by {localized}; rounding may "
            f"do {self.tolerance:.2g}; what was written differs from what the model read by {read_back}"
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
    """An intervention whose logits must be those of an unpatched forward pass, of another intervention, or these; and
    its field of SelfChecks."""

    field: str
    intervention: Intervention
    expected: int | Intervention | Float[Tensor, "vocabulary"]


def checks_of(
    model: LoadedModel,
    passes: ForwardPasses,
    component: str,
    pairs: Sequence[tuple[int, int]],
    changed: Sequence[tuple[int, ...]],
    read: Callable[[LoadedModel, Tensor], Tensor] = unembedded,
) -> list[Check]:
    """The interventions that check the engine on these pairs: at every CHECK_STRIDE-th layer, the first and the last.

    A full patch of the residual stream is all positions from the first difference on (before it both forward passes are
    the same) at one layer. One of the other components is, at the last token, whatever layers l and up add to the
    residual stream there: from layer 0 on that gives the counterfactual's logits, from a later one those of the clean
    stream going into l plus what the counterfactual's gains from there on. The first pair is patched fully at all these
    layers, the others at one each. For ``attention_knockout`` identity cuts no edge, and with all edges to the changed
    tokens cut in all layers the two programs must give the same logits.

    Args:
        pairs: rows of the clean and of the counterfactual forward pass.
        changed: for each pair the positions of the tokens that differ.
        read: hidden states -> logits.
    """
    layers, last = range(model.n_layers), passes.length - 1
    checks = []
    for number, ((clean, counterfactual), differing) in enumerate(zip(pairs, changed, strict=True)):
        first = differing[0]
        if component == "attention_knockout":
            later = [p for p in range(first + 1, last + 1) if p not in differing]  # one between them sees them too
            edges = tuple((query, key) for query, key in product(later, differing) if key < query)
            blind = [Intervention(run, tuple(Cut(layer, edges) for layer in layers)) for run in (clean, counterfactual)]
            no_edge = tuple(Cut(layer, ((last, last),), heads=()) for layer in layers)
            checks += [
                Check("identity_max_abs", Intervention(clean, no_edge), clean),
                Check("full_patch_max_abs", blind[0], blind[1]),
                Check("full_patch_without", Intervention(clean, no_edge), counterfactual),
            ]
            continue
        rows = range(len(model.hook_point(component)))
        some = sorted({*rows[number % CHECK_STRIDE :: CHECK_STRIDE], rows[0], rows[-1]})
        chosen = some if number == 0 else [number % len(rows)]
        for layer in some:
            position = first + (number + 7 * layer) % (passes.length - first)
            heads = (layer % model.n_heads,) if COMPONENTS[component].per_head else None
            own = Intervention(clean, (Site(component, layer, (position,), heads, source=clean),))
            checks.append(Check("identity_max_abs", own, clean))
        if COMPONENTS[component].whole:
            everything = tuple(range(first, passes.length))
            places = [(layer, everything) for layer in chosen] + [(0, tuple(differing))]  # the input is all it is
            full = [Intervention(clean, (Site(component, *at, source=counterfactual),)) for at in places]
            expected: Sequence[int | Tensor] = [counterfactual] * len(full)
        elif not passes.activations:  # of a model that is elsewhere; from layer 0 on it is all that there is
            parts = product(range(model.n_layers), COMPONENTS[component].full_patch)
            full = [Intervention(clean, tuple(Site(part, at, (last,), source=counterfactual) for at, part in parts))]
            expected = [counterfactual]
        else:
            stream = torch.stack([at[[clean, counterfactual], last] for at in passes.activations["residual_stream"]])
            dtype, stream = stream.dtype, stream.float()
            full, gains = [], []
            for layer in chosen:
                parts = product(range(layer, model.n_layers), COMPONENTS[component].full_patch)
                sites = tuple(Site(part, at, (last,), source=counterfactual) for at, part in parts)
                full.append(Intervention(clean, sites))
                gains.append((stream[layer, 0] + (stream[-1, 1] - stream[layer, 1])).to(dtype))
            expected = list(read(model, torch.stack(gains)))
        checks += [Check("full_patch_max_abs", *both) for both in zip(full, expected, strict=True)]
        without = Intervention(clean, tuple(replace(site, source=clean) for site in full[0].patched))
        checks.append(Check("full_patch_without", without, expected[0]))
    return checks


def measured(
    model: LoadedModel,
    passes: ForwardPasses,
    checks: Sequence[Check],
    logits: dict[Intervention, Float[Tensor, "vocabulary"]],
    asked: Asked,
) -> SelfChecks:
    """What the checks say, given the logits of their interventions and what was asked of the map's."""
    worst: dict[str, float] = dict.fromkeys(("identity_max_abs", "full_patch_max_abs", "full_patch_without"), 0.0)
    for check in checks:
        expected = check.expected
        if not isinstance(expected, Tensor):
            expected = passes.logits[expected] if isinstance(expected, int) else logits[expected]
        distance = (logits[check.intervention] - expected).abs().max().item()
        worst[check.field] = float(np.maximum(worst[check.field], distance))
    return SelfChecks(
        **worst,
        tolerance=asked.tolerance,
        localized_max_abs=asked.localized,
        read_back_max_rel=asked.read_back,
        read_back_tolerance=READ_BACK[model.dtype],
    )


def self_checks(model: LoadedModel, passes: ForwardPasses, checks: Sequence[Check]) -> SelfChecks:
    """Run the interventions of the checks and measure them."""
    interventions = list(
        dict.fromkeys(
            intervention
            for c in checks
            for intervention in (c.intervention, c.expected)
            if isinstance(intervention, Intervention)
        )
    )
    logits, read_back = {}, ReadBack(model, passes)
    for indices, batch in patched_logits(model, passes, interventions, listen=read_back):
        logits |= {interventions[index]: row for index, row in zip(indices, batch, strict=True)}
    tolerance, _ = rounding(model, passes, [checks[0].intervention.base])
    return measured(model, passes, checks, logits, Asked(tolerance, None, read_back.worst))


@dataclass(frozen=True)
class Asked:
    """What was asked of the interventions of the maps themselves."""

    tolerance: float
    localized: float | None
    read_back: float | None


def telling(
    z: Float[np.ndarray, "*grid answer"], ran: Collection[tuple[int, ...]], most_axes: int = 3
) -> list[tuple[int, ...]]:
    """The squares of a grid at which a redirection would show most: both sides of the largest step, by each axis.

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
