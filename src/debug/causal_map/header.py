"""What a causal map says of itself beside its arrays. Imports pydantic: for whoever reads a file of maps."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from debug.causal_map.sources import DIRECTIONS, SCORED_BY, SOURCES
from debug.records import Entries, Expected, Int32, List, Text, one_of

_Two = Annotated[tuple[Int32, Int32], Expected("two integers of 32 bits")]
_Token = Annotated[int, Field(ge=-(2**31), lt=2**31), Expected("an integer of 32 bits")]  # JSON's keys are texts


class Header(TypedDict):
    intervention_type: Text
    pair: Int32
    tokens: List[Text]
    layers: List[Int32]
    positions: List[Int32]
    columns: List[List[Int32]]
    targets: Entries[Text, List[Int32]]
    n_layers: Int32
    first_difference: Int32
    answer_tokens: _Two
    top_tokens: _Two
    min_effect: Annotated[float, Field(strict=True, ge=0, lt=2**31), Expected("a number, 0 or more")]
    vocabulary: Entries[_Token, Text]
    target_columns: Entries[Text, Int32]
    differing: NotRequired[List[Int32]]
    candidates: NotRequired[Entries[Text, Int32]]
    layer_window: NotRequired[Int32]  # what the first maps did not say, from here on
    heads: NotRequired[List[List[Int32]]]
    top_k_columns: NotRequired[List[Int32]]
    source: NotRequired[Annotated[str, one_of(*SOURCES, "knockout")]]
    scored_by: NotRequired[Annotated[str, one_of(*SCORED_BY)]]
    direction: NotRequired[Annotated[str, one_of(*DIRECTIONS)]]
    method: NotRequired[Annotated[str, one_of("patching", "attribution", "imported")]]
