"""Pictures: they show the map's own numbers, in the order of the text, and take all text for data."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug.causal_map import mean_over_pairs
from debug.causal_visualization import (
    METRICS,
    accuracy_chart,
    causal_heatmap,
    cells,
    head_heatmap,
    mean_heatmap,
    save_chart,
    success_by_layer,
    visible,
)
from debug.statistics import Interval
from synthetic import make_map

NASTY = ["<s>", "<script>alert(1)</script>", "$x$", '"', "\n", "'", "🐙", "\x00", "datum.x", "\ud800", "a" * 10_000]
NASTY += ["</script>", "\u202e", "{{x}}", "%s", "\\", "\ufffe"]


def coloured(chart) -> list[dict]:
    """The rows behind the coloured cells of a heatmap."""
    spec = chart.to_dict()
    return spec["datasets"][(spec["layer"][0].get("data") or spec["data"])["name"]]


def scale(chart) -> dict:
    return chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]


def tokens_drawn(chart) -> list[str]:
    spec = chart.to_dict()
    layer = next(layer for layer in spec["layer"] if layer["encoding"].get("text", {}).get("field") == "label")
    return [row["label"] for row in spec["datasets"][layer["data"]["name"]]]


@pytest.mark.parametrize("metric", METRICS)
def test_a_heatmap_shows_the_maps_own_values(metric):
    causal_map = make_map()
    grid = getattr(causal_map, metric).astype(float)
    rows = coloured(causal_heatmap(causal_map, metric))
    assert len(rows) == grid.size
    for row in rows:
        assert row[metric] == grid[row["layer"], row["position"]]
    assert {row["top_token"] for row in rows} == {"7", "8"}


def test_tokens_stand_in_order_with_duplicates_apart_and_spaces_visible():
    causal_map = make_map()
    assert tokens_drawn(causal_heatmap(causal_map)) == [visible(token) for token in causal_map.tokens]
    assert causal_heatmap(causal_map).to_dict()["layer"][0]["encoding"]["x"]["scale"]["domain"] == causal_map.positions
    assert visible(" = ") == "·=·"
    assert visible("\n") == "⏎"


def test_the_cells_of_a_target_name_it():
    rows = cells(make_map())
    assert rows.filter(pl.col("target") == "ref_depth_2_rhs")["position"].unique().to_list() == [6]
    assert rows.filter(pl.col("position") == 3)["target"].unique().to_list() == [None]


def test_signed_scales_are_symmetric_around_zero():
    causal_map = make_map()
    assert scale(causal_heatmap(causal_map))["domain"] == [-1, 1]
    largest = float(np.abs(causal_map.logit_diff).max())
    assert scale(causal_heatmap(causal_map, "logit_diff"))["domain"] == [-largest, largest]
    assert scale(causal_heatmap(causal_map, "success"))["domain"] == [0, 1]


def test_what_lies_beyond_the_scale_is_told_and_kept():
    causal_map = make_map()
    z = causal_map.z_patched.copy()
    z[3, 4] += 20
    chart = causal_heatmap(replace(causal_map, z_patched=z))
    assert "1 of 161 cells" in chart.to_dict()["title"]["subtitle"][0]
    assert max(row["normalized_logit_diff"] for row in coloured(chart)) > 2
    assert "subtitle" not in causal_heatmap(causal_map).to_dict()["title"]


def test_a_cell_without_a_value_is_not_a_zero():
    chart = causal_heatmap(make_map(min_effect=100))
    assert {row["normalized_logit_diff"] for row in coloured(chart)} == {None}
    spec = chart.to_dict()
    assert spec["layer"][0]["transform"] == [{"filter": "isValid(datum.normalized_logit_diff)"}]
    assert spec["layer"][1]["mark"]["text"] == "×"
    assert "no value" in spec["title"]["subtitle"][0]


def test_cells_before_the_first_difference_are_zeros():
    before = [row for row in coloured(causal_heatmap(make_map())) if row["position"] < 2]
    assert len(before) == 14
    assert {row["normalized_logit_diff"] for row in before} == {0}


def test_a_map_of_some_positions_and_layers_is_drawn():
    whole = make_map()
    some = replace(
        whole,
        layers=[0, 3],
        positions=[2, 22],
        columns=[[2], [22]],
        z_patched=whole.z_patched[[0, 3]][:, [2, 22]],
        top=whole.top[[0, 3]][:, [2, 22]],
    )
    assert {(row["layer"], row["position"]) for row in coloured(causal_heatmap(some))} == {
        (layer, position) for layer in (0, 3) for position in (2, 22)
    }


def test_a_map_without_targets_is_drawn():
    chart = causal_heatmap(replace(make_map(), targets={}))
    assert len(coloured(chart)) == 161
    assert {row["target"] for row in coloured(chart)} == {None}


def test_heads_are_drawn_as_layers_by_heads_at_a_target():
    causal_map = make_map(heads=4)
    values = causal_map.at_target("ref_depth_2_rhs", "normalized_logit_diff")
    for row in coloured(head_heatmap(causal_map, "ref_depth_2_rhs")):
        assert row["normalized_logit_diff"] == pytest.approx(values[row["layer"], row["head"]])
    with pytest.raises(ValueError, match="its targets: ref_depth_1_rhs"):
        head_heatmap(causal_map, "query_hash")
    with pytest.raises(ValueError, match="head_heatmap"):
        causal_heatmap(causal_map)
    with pytest.raises(ValueError, match="causal_heatmap"):
        head_heatmap(make_map(), "final")


def test_the_mean_shows_each_targets_rate_and_n_in_the_order_of_the_text():
    mean = mean_over_pairs([make_map(pair) for pair in range(8)])
    chart = mean_heatmap(mean)
    labels = chart.to_dict()["layer"][0]["encoding"]["x"]["sort"]
    assert labels == [f"{t} (n=8)" for t in ("ref_depth_1_rhs", "ref_depth_2_rhs", "ref_depth_3_rhs", "final")]
    for row in coloured(chart):
        assert row["success"] == mean[row["target"]].success[row["layer"]].estimate
    assert scale(mean_heatmap(mean, "normalized_logit_diff"))["domain"] == [-1, 1]


def test_curves_mark_the_hand_over_layers():
    mean = mean_over_pairs([make_map(pair) for pair in range(3)])
    spec = success_by_layer(mean).to_dict()
    rules = spec["datasets"][spec["layer"][0]["data"]["name"]]
    assert rules == [
        {"layer": 2, "hand_over": "ref_depth_1_rhs → ref_depth_2_rhs"},
        {"layer": 4, "hand_over": "ref_depth_2_rhs → ref_depth_3_rhs"},
        {"layer": 5, "hand_over": "ref_depth_3_rhs → final"},
    ]


def test_of_more_targets_than_colours_those_that_matter_are_drawn():
    mean = mean_over_pairs([make_map()])
    flat = replace(mean.curves[0], success=[Interval(0.0, 0.0, 0.1, 1, is_rate=True)] * len(mean.layers))
    crowd = [replace(flat, target=f"position_{number}") for number in range(9)]
    chart = success_by_layer(replace(mean, curves=[*crowd, *mean.curves])).to_dict()
    domain = next(layer for layer in chart["layer"] if "color" in layer["encoding"])["encoding"]["color"]["scale"][
        "domain"
    ]
    assert not any(label.startswith("position_") for label in domain)
    assert "not drawn: " in " ".join(chart["title"]["subtitle"])


def accuracies(**columns) -> pl.DataFrame:
    row = {"model": "tiny", "hops": 3, "seq_len": 5, "accuracy": 0.9, "ci_low": 0.8, "ci_high": 0.95, "n": 100}
    height = len(next(iter(columns.values())))
    return pl.DataFrame({name: columns.get(name, [value] * height) for name, value in row.items()})


def axis_of(chart) -> str:
    return chart.to_dict()["layer"][0]["encoding"]["x"]["field"]


def test_accuracy_is_drawn_by_hops_where_there_are_several_else_by_length():
    assert axis_of(accuracy_chart(accuracies(hops=[1, 2, None]))) == "hops"
    assert axis_of(accuracy_chart(accuracies(hops=[None, None], seq_len=[5, 17]))) == "seq_len"
    both = accuracy_chart(accuracies(hops=[1, 2, 1, 2], seq_len=[17, 17, 5, 5])).to_dict()
    assert both["facet"]["sort"] == ["5 lines", "17 lines"]


def test_accuracy_without_an_interval_has_no_bar_for_it():
    spec = accuracy_chart(accuracies(ci_low=[None], ci_high=[None])).to_dict()
    assert "isValid(datum.ci_low)" in spec["layer"][1]["transform"][0]["filter"]


def test_files_need_no_network_and_no_token_gets_out_of_its_script(tmp_path):
    causal_map = make_map(tokens=NASTY)
    causal_map = replace(causal_map, vocabulary={17: "</script><b>", 18: "<img src=x>"})
    html, png = save_chart(causal_heatmap(causal_map), tmp_path, "map")
    page = html.read_text("utf-8")
    assert (html.name, png.name) == ("map.html", "map.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    spec = page[page.index("const spec = ") :]
    assert "<" not in spec[: spec.index("const embedOpt")]
    assert spec.count("</script>") == 1


def test_nothing_from_data_becomes_an_expression():
    """Expressions and formats are the same whatever the tokens, the targets and the vocabulary say."""

    def code(value, key="") -> list:
        if isinstance(value, dict):
            return [found for name, item in value.items() if name != "datasets" for found in code(item, name)]
        if isinstance(value, list):
            return [found for item in value for found in code(item, key)]
        return (
            [value] if key in {"expr", "signal", "labelExpr", "filter", "test", "calculate", "format", "field"} else []
        )

    plain, nasty = make_map(tokens=["a"] * len(NASTY)), make_map(tokens=NASTY)
    nasty = replace(nasty, targets={"datum.x": [2], "{{x}}": [4]}, vocabulary={17: "datum.x"}, intervention_type="%s")
    assert code(causal_heatmap(plain).to_dict()) == code(causal_heatmap(nasty).to_dict())


@given(st.text())
def test_visible_text_prints_on_one_line_and_stays_short(text):
    shown = visible(text)
    assert shown.isprintable()
    assert " " not in shown
    assert len(shown) <= 40
    json.dumps(shown).encode()


def test_a_large_map_is_drawn_in_a_second():
    causal_map = make_map(tokens=["a", " = ", "1", "\n"] * 50, n_layers=64)
    started = time.perf_counter()
    chart = causal_heatmap(causal_map)
    assert len(coloured(chart)) == 65 * 200
    assert time.perf_counter() - started < 1.5
