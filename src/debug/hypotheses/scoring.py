"""How far patched runs agree with each hypothesis: by target and layer, on the pairs on which the hypotheses differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from debug.causal_map import CausalMap, CausalMapError
from debug.causal_map.names import Place, logged_name
from debug.hypotheses.models import VALUE, names_of, prediction
from debug.kinds import Json
from debug.programs import AnyPair
from debug.shown import Shown
from debug.statistics import Comparison, Interval, mcnemar, wilson
from debug.statistics.intervals import LEVEL

NOBODY, TIE = "none", "tie"


class Best(NamedTuple):
    """The hypothesis that the patched runs of a square agree with most, and those that it is not told from."""

    names: list[str]
    """It, and those that McNemar's test does not tell from it, or that predict the same of each pair."""
    agrees: bool
    """Whether it predicts more than half of the pairs."""
    compared: Comparison | None
    """It and the best of those that predict something else; None where there is none."""

    @property
    def winner(self) -> str:
        """Its name, ``tie`` of several, ``none`` where it does not agree."""
        return NOBODY if not self.agrees else TIE if len(self.names) > 1 else self.names[0]


@dataclass(frozen=True)
class PlaceScores:
    """The scores at a target (of a map with heads, a set of heads there), by layer."""

    place: Place
    n: int
    """Distinguishing pairs: those of which at least two hypotheses predict different tokens."""
    agreement: dict[str, list[Interval]]
    """Hypothesis -> by layer, the share of these pairs whose patched top token is the one that it predicts."""
    best: list[Best]


@dataclass(frozen=True, repr=False)
class HypothesisScores(Shown):
    """What became of the hypotheses over all pairs. Tests are one a square, uncorrected."""

    layers: list[int]
    n_layers: int
    n_pairs: int
    hypotheses: list[str]
    places: list[PlaceScores]
    """Those with distinguishing pairs, in the order of the text."""
    layer_window: int = 1
    beyond_success: bool = False
    """Whether they say more than success does: hypotheses other than *value* differ on some pair."""

    def _in_short(self) -> str:
        size = f"{len(self.layers)} layers x {len(self.places)} targets"
        return f"{', '.join(self.hypotheses)}; {self.n_pairs} pairs, {size}"

    def __getitem__(self, target: str) -> PlaceScores:
        return next(each for each in self.places if each.place.name == target)

    def said(self) -> list[str]:
        """Where each hypothesis alone is the best, a line for each; of one that is so nowhere, that."""
        lines = []
        for name in self.hypotheses:
            where = []
            for each in self.places:
                at = [n for n, best in zip(self.layers, each.best, strict=True) if best.winner == name]
                where += [f"{each.place.name} at {_ranges(at, self.layers)} (n = {each.n})"] if at else []
            lines.append(f"hypothesis {name} alone predicts best at layers of: {'; '.join(where) or 'no target'}")
        return lines

    def to_metrics(self) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
        """As metrics of the tracking contract: how many pairs distinguish, and by layer each agreement."""
        scalars: dict[str, float | None] = {
            f"distinguishing_pairs/{logged_name(each.place.name)}": each.n for each in self.places
        }
        curves: dict[int, dict[str, float | None]] = {layer: {} for layer in self.layers}
        for each in self.places:
            for name, by_layer in each.agreement.items():
                for layer, value in zip(self.layers, by_layer, strict=True):
                    curves[layer] |= value.metrics(f"agreement_by_layer/{logged_name(f'{name}/{each.place.name}')}")
        return scalars, {layer: values for layer, values in curves.items() if values}

    def to_record(self) -> dict[str, Json]:
        """As JSON values: every square of every hypothesis, and who is best there."""
        return {
            "layers": self.layers,
            "pairs": self.n_pairs,
            "hypotheses": self.hypotheses,
            "places": {
                each.place.name: {
                    "distinguishing_pairs": each.n,
                    "agreement": {
                        name: [[v.estimate, v.low, v.high] for v in by_layer]
                        for name, by_layer in each.agreement.items()
                    },
                    "best": [
                        {"winner": b.winner, "names": b.names, "p": b.compared and b.compared.p_value}
                        for b in each.best
                    ],
                }
                for each in self.places
            },
        }


class ScoresOverPairs:
    """Adds maps up one at a time with their pairs; :meth:`result` has the scores."""

    def __init__(self) -> None:
        self._first: CausalMap | None = None
        self._n = 0
        self._beyond = False
        self._names: list[str] = []
        self._predicted: dict[str, list[dict[str, int]]] = {}  # place -> per pair: hypothesis -> token
        self._tops: dict[str, list[Int[np.ndarray, " layer"]]] = {}
        self._places: dict[str, Place] = {}

    def add(self, causal_map: CausalMap, pair: AnyPair) -> None:
        """A map of a pair as it was run: activations of its counterfactual in its original, or the reverse.

        Raises:
            CausalMapError: the map has other layers than those before it.
        """
        self._first = self._first or causal_map
        if causal_map.layers != self._first.layers:
            raise CausalMapError(f"maps over layers {self._first.layers} and over {causal_map.layers} are no one score")
        self._n += 1
        if causal_map.z_candidates is None:  # an ablation, an estimate, or an older map
            return
        directed = pair.reversed if causal_map.direction == "into_counterfactual" else pair
        self._names = list(dict.fromkeys([*self._names, *names_of(directed)]))
        for target, column in causal_map.target_columns.items():
            said = {name: prediction(name, directed, target) for name in names_of(directed)}
            tokens = {
                name: token
                for name, answer in said.items()
                if answer is not None and (token := causal_map.answer_number(str(answer))) is not None
            }
            if len({*tokens.values()}) < 2:
                continue
            self._beyond |= len({token for name, token in tokens.items() if name != VALUE}) > 1
            top = causal_map.answered[..., column]
            by_place = {Place(target, tuple(heads)): top[:, i] for i, heads in enumerate(causal_map.heads)}
            for place, tops in (by_place or {Place(target): top}).items():
                self._places[place.name] = place
                self._predicted.setdefault(place.name, []).append(tokens)
                self._tops.setdefault(place.name, []).append(tops)

    def result(self) -> HypothesisScores | None:
        """None where no pair tells the hypotheses apart."""
        if self._first is None or not self._places:
            return None
        places = [self._scored(name) for name in sorted(self._places, key=lambda name: self._places[name].text_order)]
        known = {name for each in places for name in each.agreement}
        names = [name for name in self._names if name in known]
        first = self._first
        return HypothesisScores(first.layers, first.n_layers, self._n, names, places, first.layer_window, self._beyond)

    def _scored(self, name: str) -> PlaceScores:
        predicted, tops = self._predicted[name], np.stack(self._tops[name])  # pair, layer
        hits: dict[str, Bool[np.ndarray, "pair layer"]] = {}
        tokens: dict[str, Int[np.ndarray, " pair"]] = {}
        for hypothesis in self._names:
            of = np.array([each.get(hypothesis, -1) for each in predicted])
            if (of >= 0).any():
                tokens[hypothesis], hits[hypothesis] = of, (tops == of[:, None]) & (of >= 0)[:, None]
        n = len(tops)
        agreement = {h: [wilson(int(column.sum()), n) for column in of.T] for h, of in hits.items()}
        best = [_best(tokens, {h: of[:, row] for h, of in hits.items()}) for row in range(tops.shape[1])]
        return PlaceScores(self._places[name], n, agreement, best)


def _ranges(at: Sequence[int], layers: Sequence[int]) -> str:
    """Layers that follow one another as their first and last: 0–3, 7."""
    found: list[list[int]] = []
    for layer in at:
        if found and layers.index(layer) == layers.index(found[-1][-1]) + 1:
            found[-1] = [found[-1][0], layer]
        else:
            found.append([layer])
    return ", ".join("–".join(map(str, each)) for each in found)


def _best(tokens: dict[str, Int[np.ndarray, " pair"]], hits: dict[str, Bool[np.ndarray, " pair"]]) -> Best:
    first, *others = sorted(hits, key=lambda name: -int(hits[name].sum()))  # of equals the first in order
    compared = {
        other: mcnemar(hits[first], hits[other]) for other in others if not np.array_equal(tokens[first], tokens[other])
    }
    tied = [other for other in others if other not in compared or compared[other].p_value >= LEVEL]
    return Best([first, *tied], bool(hits[first].mean() > 0.5), next(iter(compared.values()), None))


def scores_of(maps: Iterable[CausalMap], pairs: Sequence[AnyPair]) -> HypothesisScores | None:
    """The scores of maps whose ``pair`` is an index into ``pairs``, such as those of a logged run; later hypotheses,
    too, as long as the maps have the logits of what they predict. None where no pair tells the hypotheses apart."""
    scores = ScoresOverPairs()
    for causal_map in maps:
        scores.add(causal_map, pairs[causal_map.pair])
    return scores.result()
