"""What to patch, or to cut, in every pair: the one definition of every option. Imports no torch."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from debug.attention_knockout import HYPOTHESES
from debug.causal_map import DIRECTIONS, PAIR_SOURCES, SOURCES
from debug.errors import InputError
from debug.models.hook_points import COMPONENTS
from debug.prompts import CODE, get_prompt

if TYPE_CHECKING:
    from debug.models import LoadedModel

KNOCKOUT = "attention_knockout"
INTERVENTION_TYPES = (*COMPONENTS, KNOCKOUT)
METHODS = ("patching", "attribution")


@dataclass(frozen=True)
class Plan:
    """What to patch, or to cut, in every pair.

    ``layers`` None: all. ``positions`` are the columns of the map: "all" tokens, the "targets", or names of targets and
    numbers of tokens (which are then the targets); "a+b" patches both together, ``ref_depth_2_line`` a whole line.
    ``targets`` are what means over pairs are taken at: None for the default ones, "roles" for every role from the
    root's value on, or names. Of an ``attention_knockout``, ``positions`` are hypotheses: names of presets or
    "queries->keys" of targets; by default every preset.
    """

    intervention_type: str = "residual_stream"
    layers: Sequence[int] | None = None
    positions: str | Sequence[str | int] = "all"
    targets: str | Sequence[str] | None = None
    prompt_template: str = CODE
    require_correct: bool = False
    exclude_shallow: bool = False
    save_activations: str = "none"
    """Which positions' activations come with each result: "none", "targets" or "all"."""
    source: str = "counterfactual"
    """Where patched activations come from, one of SOURCES."""
    source_run: str | None = None
    """The id of the logged run whose activations are the source, where that is "stored"."""
    direction: str = "into_original"
    """Which program is patched: "into_original", from its counterfactual, or "into_counterfactual", the reverse."""
    layer_window: int | None = None
    """Layers that a row changes together, from its own up; None: one, and of a knockout all."""
    heads: Sequence[int | Sequence[int]] | str | None = None
    """Of ``attention_heads``: None for each head alone, "together" for all of a layer, or heads and sets of heads. Of a
    knockout: the heads whose edges are cut, None for all."""
    control: bool = True
    """Patch the targets from a program of the same answer too; of a knockout, cut as many random edges too."""
    random_draws: int = 5
    """Of a knockout: how often random edges are drawn for each pair and hypothesis."""
    match_attention: bool = False
    """Of a knockout: random edges are matched by what the clean run's heads attend to them too, on the mean."""
    logit_lens: bool = True
    """Read the clean run's residual stream through the unembedding, at the single positions."""
    method: str = "patching"
    """"patching", exact; or "attribution", a linear estimate in two forwards and one backward."""
    answer_lead: str | None = None
    """White space that the model itself writes before an answer, read as part of the prompt (:mod:`.answers`);
    None: found out from the first programs, when the run begins."""

    def __post_init__(self) -> None:
        def one_of(name: str, options: Iterable[str]) -> None:
            if getattr(self, name) not in options:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")

        one_of("intervention_type", INTERVENTION_TYPES)
        one_of("save_activations", ("none", "targets", "all"))
        one_of("source", SOURCES)
        one_of("direction", DIRECTIONS)
        one_of("method", METHODS)
        if (self.source == "stored") != (self.source_run is not None):
            raise InputError(
                f"source is {self.source!r} and source_run {self.source_run!r}; 'stored' goes with a run's id"
            )
        if self.source == "stored" and self.knockout:
            raise InputError("source is 'stored', but attention_knockout patches nothing")
        object.__setattr__(self, "prompt_template", get_prompt(self.prompt_template)[1])
        if self.answer_lead is not None and self.answer_lead.strip():
            raise InputError(f"answer_lead is {self.answer_lead!r}; expected white space, or None to find it out")
        if isinstance(self.positions, str):
            if self.positions not in ("all", "targets"):
                object.__setattr__(self, "positions", [self.positions])
        elif not len(self.positions):
            raise InputError("positions is an empty list; expected 'all', 'targets', or names of targets and numbers")
        else:
            object.__setattr__(
                self, "positions", [p if isinstance(p, str) else operator.index(p) for p in self.positions]
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", [int(layer) for layer in self.layers])
            if not self.layers:
                raise InputError("layers is an empty list; expected layer numbers, or None for all")
        if self.random_draws < 1:
            raise InputError(f"random_draws is {self.random_draws}; expected 1 or more, or control=False for none")
        if self.layer_window is not None and self.layer_window < 1:
            raise InputError(f"layer_window is {self.layer_window}; expected 1 layer or more")
        if self.targets is not None and not isinstance(self.positions, str):
            raise InputError("positions names the targets already; give targets only with positions 'all' or 'targets'")
        if isinstance(self.targets, str) and self.targets != "roles":
            object.__setattr__(self, "targets", [self.targets])
        if self.heads is not None:
            self._check_heads()
        if self.method == "attribution" and (self.knockout or self.source != "counterfactual" or self.window(1) > 1):
            raise InputError(
                "method 'attribution' estimates patches of one layer from the counterfactual, nothing else"
            )
        names = [n for given in (self.positions, self.targets) if isinstance(given, list | tuple) for n in given]
        for name in names:
            self._check_name(name)

    def _check_heads(self) -> None:
        if self.intervention_type not in ("attention_heads", KNOCKOUT):
            raise InputError(f"heads is given, but {self.intervention_type} has none; attention_heads has")
        if isinstance(self.heads, str):
            if self.heads != "together" or self.knockout:
                raise InputError(f"heads is {self.heads!r}; expected None, 'together' (attention_heads), or numbers")
            return
        given: Iterable[Any] = () if self.heads is None else self.heads
        sets = [[int(head) for head in (heads if isinstance(heads, Iterable) else [heads])] for heads in given]
        if not sets or not all(sets):
            raise InputError("heads is an empty list; expected numbers of heads, or None for all")
        object.__setattr__(self, "heads", sets)

    def _check_name(self, name: str | int) -> None:
        if self.knockout and str(name) not in HYPOTHESES and "->" not in str(name):
            raise InputError(
                f"{name!r} is no hypothesis; expected {', '.join(HYPOTHESES)}, or 'queries->keys' with names of targets"
            )
        for part in re.split(r"\+|->", name) if isinstance(name, str) and name not in HYPOTHESES else ():
            if not _TARGET.fullmatch(part):
                raise InputError(
                    f"{name!r} is no target; expected 'all', 'targets', a token position, ref_depth_<k>_<lhs|equals|"
                    "rhs|newline|line>, query_<hash|var|colon> or final, or several of them joined by '+'"
                )

    @property
    def knockout(self) -> bool:
        return self.intervention_type == KNOCKOUT

    @property
    def template(self) -> str:
        """The template of the prompts as they are run: behind their last token comes the answer's."""
        return self.prompt_template + (self.answer_lead or "")

    @property
    def kind(self) -> str:
        """The kind of run that it makes in the tracking store."""
        return KNOCKOUT if self.knockout else "attribution" if self.method == "attribution" else "causal_tracing"

    @property
    def needs_reference(self) -> bool:
        """Whether activations come from other pairs' programs."""
        return not self.knockout and self.source in ("mean", "resample")

    @property
    def patches_pairs(self) -> bool:
        """Whether the counterfactual's activations are moved: only then a cell can succeed."""
        return not self.knockout and self.source in PAIR_SOURCES

    def window(self, n_layers: int) -> int:
        """Layers that a row of the map changes together."""
        return self.layer_window or (n_layers if self.knockout else 1)

    def layers_of(self, model: LoadedModel) -> list[int]:
        """The rows of the map: the first layer of each."""
        model.require_patchable()
        layers = model.n_layers + (self.intervention_type == "residual_stream")
        if (window := self.window(model.n_layers)) > layers:
            raise InputError(f"layer_window is {window}; {self.intervention_type} of {model.id!r} has {layers} layers")
        rows = layers - window + 1
        if self.layers is None:
            return list(range(rows))
        if bad := [layer for layer in self.layers if not 0 <= layer < rows]:
            raise InputError(
                f"layers {bad} are out of range; {self.intervention_type} of {model.id!r} has 0 to {rows - 1}"
                + (f", {window} together" if window > 1 else "")
            )
        return sorted(set(self.layers))

    def heads_of(self, model: LoadedModel) -> list[list[int]]:
        """The sets of heads that are patched each on its own; of a knockout, the one set that is cut."""
        every = list(range(model.n_heads))
        if self.heads is None or isinstance(self.heads, str):
            return [[head] for head in every] if self.heads is None else [every]
        sets: list[list[int]] = self.heads  # type: ignore[assignment]
        if bad := sorted({head for heads in sets for head in heads} - set(every)):
            raise InputError(f"heads {bad} are out of range; {model.id!r} has heads 0 to {model.n_heads - 1}")
        return [sorted({head for heads in sets for head in heads})] if self.knockout else sets


_TARGET = re.compile(r"ref_depth_[1-9]\d*_(lhs|equals|rhs|newline|line)|query_(hash|var|colon)|final|\d+")
