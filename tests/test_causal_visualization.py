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

from debug.causal_map import LEGACY, METRICS, CausalMap, mean_over_pairs
from debug.causal_map.names import Place
from debug.causal_visualization import (
    accuracy_chart,
    causal_heatmap,
    cells,
    curves_by_layer,
    head_heatmap,
    lens_heatmap,
    mean_heatmap,
    pictures,
    save_chart,
    visible,
)
from debug.statistics import Interval
from debug.tracking.export import cells as every_cell
from synthetic import make_estimate, make_knockout, make_map

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


def imported() -> CausalMap:
    """A map with numbers of the older format, one of which was not recorded."""
    whole = make_map()
    legacy = {name: np.random.default_rng(n).random(whole.top.shape, np.float32) for n, name in enumerate(LEGACY)}
    legacy["legacy_logit_difference"][0, 0] = np.nan
    return replace(whole, method="imported", **legacy)


@pytest.mark.parametrize(
    "causal_map", [make_map(), replace(make_map(), source="zero"), imported()], ids=["moved", "ablated", "imported"]
)
def test_a_heatmap_shows_the_maps_own_values(causal_map):
    for metric in causal_map.metrics:
        grid = causal_map.grid(metric)
        rows = coloured(causal_heatmap(causal_map, metric))
        assert len(rows) == grid.size
        for row in rows:
            value = grid[row["layer"], row["position"]]
            assert row[metric] == (None if np.isnan(value) else value)
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
    largest = float(np.abs(causal_map.logit_change).max())
    assert scale(causal_heatmap(causal_map, "logit_change"))["domain"] == [-largest, largest]
    assert scale(causal_heatmap(causal_map, "success"))["domain"] == [0, 1]


def test_what_lies_beyond_the_scale_is_told_and_kept():
    causal_map = make_map()
    z = causal_map.z_patched.copy()
    z[3, 4] += 20
    chart = causal_heatmap(replace(causal_map, z_patched=z))
    assert "1 of 161 values" in chart.to_dict()["title"]["subtitle"][0]
    assert max(row["normalized_logit_diff"] for row in coloured(chart)) > 2
    assert "subtitle" not in causal_heatmap(causal_map).to_dict()["title"]


def test_a_cell_without_a_value_is_not_a_zero():
    chart = causal_heatmap(make_map(min_effect=100), "normalized_logit_diff")
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
        targets={"ref_depth_1_rhs": [2], "final": [22]},
        target_columns={"ref_depth_1_rhs": 0, "final": 1},
        z_patched=whole.z_patched[[0, 3]][:, [2, 22]],
        top=whole.top[[0, 3]][:, [2, 22]],
    )
    assert {(row["layer"], row["position"]) for row in coloured(causal_heatmap(some))} == {
        (layer, position) for layer in (0, 3) for position in (2, 22)
    }


def test_a_map_without_targets_is_drawn():
    chart = causal_heatmap(replace(make_map(), targets={}, target_columns={}))
    assert len(coloured(chart)) == 161
    assert {row["target"] for row in coloured(chart)} == {None}


def test_heads_are_drawn_as_layers_by_heads_at_a_target():
    causal_map = make_map(heads=4)
    values = causal_map.at_target("ref_depth_2_rhs", "normalized_logit_diff")
    for row in coloured(head_heatmap(causal_map, "ref_depth_2_rhs")):
        assert row["normalized_logit_diff"] == pytest.approx(values[row["layer"], int(row["head"])])
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
    assert labels == [f"{t} (n=8)" for t in ("hop 1 · value", "hop 2 · value", "hop 3 · value", "last token")]
    for row in coloured(chart):
        assert row["success"] == mean[row["target"]].success[row["layer"]].estimate
    assert scale(mean_heatmap(mean, "normalized_logit_diff"))["domain"] == [-1, 1]


def test_curves_mark_the_hand_over_layers():
    mean = mean_over_pairs([make_map(pair) for pair in range(3)])
    spec = curves_by_layer(mean).to_dict()
    rules = spec["datasets"][spec["layer"][0]["data"]["name"]]
    assert rules == [
        {"layer": 2, "hand_over": "ref_depth_1_rhs → ref_depth_2_rhs"},
        {"layer": 4, "hand_over": "ref_depth_2_rhs → ref_depth_3_rhs"},
        {"layer": 5, "hand_over": "ref_depth_3_rhs → final"},
    ]


def test_of_more_targets_than_colours_those_that_matter_are_drawn():
    mean = mean_over_pairs([make_map()])
    nothing: list[Interval | None] = [Interval(0.0, 0.0, 0.1, 1, is_rate=True)] * len(mean.layers)
    flat = replace(mean.curves[0], values=mean.curves[0].values | {"success": nothing})
    crowd = [replace(flat, place=Place(f"position_{number}")) for number in range(9)]
    chart = curves_by_layer(replace(mean, curves=[*crowd, *mean.curves])).to_dict()
    domain = next(layer for layer in chart["layer"] if "color" in layer["encoding"])["encoding"]["color"]["scale"][
        "domain"
    ]
    assert not any(label.startswith("position_") for label in domain)
    assert "not drawn: " in " ".join(chart["title"]["subtitle"])


@pytest.mark.parametrize("usual", [-7.0, 0.0, 3.0])
def test_where_no_value_means_no_effect_those_farthest_from_the_median_are_drawn(usual):
    """A pair's logit difference without any effect is that of its clean run; most targets do nothing at most layers."""
    assert METRICS["logit_diff"].no_effect is None
    mean = mean_over_pairs([make_map()])

    def target(number: int):
        values: list[Interval | None] = [Interval(usual, None, None, 1)] * len(mean.layers)
        values[number % len(values)] = Interval(usual + number * (-1) ** number, None, None, 1)
        return replace(mean.curves[0], place=Place(f"position_{number}"), values={"logit_diff": values})

    chart = curves_by_layer(replace(mean, curves=[target(number) for number in range(1, 13)]), "logit_diff").to_dict()
    colour = next(layer["encoding"]["color"] for layer in chart["layer"] if "color" in layer["encoding"])
    assert colour["scale"]["domain"] == [f"position_{number} (n=1)" for number in range(5, 13)]
    assert len(colour["scale"]["range"]) == 8
    assert "not drawn: 4 targets whose effect is at most 4 at every layer" in chart["title"]["subtitle"]


def test_the_mean_over_heads_has_a_panel_a_target_with_its_own_values():
    mean = mean_over_pairs([make_map(pair, heads=4) for pair in range(3)])
    spec = mean_heatmap(mean).to_dict()
    assert spec["facet"]["sort"] == ["hop 1 · value", "hop 2 · value", "hop 3 · value", "last token"]
    assert not any("data" in layer for layer in spec["spec"]["layer"])  # a layer's own data would fill every panel
    rows = spec["datasets"][spec["data"]["name"]]
    assert len(rows) == 6 * 4 * 4
    for row in rows:
        curve = mean[f"{row['target']}/head_{row['head']}"]
        assert row["success"] == curve.success[row["layer"]].estimate


def test_the_control_is_drawn_beside_the_curve():
    whole = make_map()
    control = np.full((len(whole.layers), len(whole.targets)), 18)
    control[2, 1] = 17
    mean = mean_over_pairs([replace(whole, control_top=control)])
    spec = curves_by_layer(mean).to_dict()
    dotted = next(layer for layer in spec["layer"] if layer["encoding"].get("y", {}).get("field") == "control_success")
    rows = spec["datasets"][(dotted.get("data") or spec["data"])["name"]]
    found = {(row["target"], row["layer"]) for row in rows if row["control_success"] == 1}
    assert found == {("ref_depth_2_rhs", 2)}
    assert "same answer" in spec["title"]["subtitle"][0]
    assert "control_success" not in json.dumps(curves_by_layer(mean_over_pairs([whole])).to_dict())


def test_a_knockout_is_drawn_beside_its_random_control():
    mean = mean_over_pairs([make_knockout(pair) for pair in range(10)])
    compared = mean.against_random["chain_following"][0]
    assert (compared.difference.estimate, compared.only_first, compared.only_second) == (-0.5, 0, 5)
    metrics, curves = mean.to_metrics()
    assert curves == {}
    assert metrics["answer_kept_rate/direct_pointer"] == 1
    assert metrics["answer_kept_rate/chain_following"] == 0
    assert metrics["answer_kept_against_random/chain_following"] == -0.5
    assert metrics["answer_kept_rate"] == 0.5  # of the hypotheses, without their controls
    assert not any("success" in name for name in metrics)
    charts = pictures(make_knockout(0), mean)
    assert list(charts) == ["knockout"]
    spec = charts["knockout"].to_dict()
    rows = spec["datasets"][spec["data"]["name"]]
    kept = {(row["hypothesis"], row["cut"]): row["answer_kept"] for row in rows}
    assert list(kept.values()) == [1, 1, 0, 0.5]
    assert "layers 0–5" in spec["title"]["text"]


def test_the_logit_lens_shows_ranks_and_logits_of_either_answer():
    whole = make_map()
    rng = np.random.default_rng(0)
    ranks, logits = rng.integers(0, 40, (7, 23, 2)), rng.normal(size=(7, 23, 2)).astype(np.float32)
    causal_map = replace(whole, lens_ranks=ranks, lens_logits=logits)
    for row in coloured(lens_heatmap(causal_map)):
        assert row["rank"] == ranks[row["layer"], row["position"], 1]
    chart = lens_heatmap(causal_map, "counterfactual", "logit")
    assert "logit of the counterfactual answer 7" in chart.to_dict()["title"]["text"]
    for row in coloured(chart):
        assert row["logit"] == pytest.approx(logits[row["layer"], row["position"], 0])
    with pytest.raises(ValueError, match="no logit lens"):
        lens_heatmap(whole)
    with pytest.raises(ValueError, match="answer is 'mine'; expected one of counterfactual, original"):
        lens_heatmap(causal_map, "mine")


def test_what_an_ablation_does_is_drawn_as_a_loss():
    ablated = replace(make_map(), source="mean")
    assert scale(causal_heatmap(ablated, "answer_kept"))["scheme"] == {"name": "purpleorange", "extent": [0.0, 0.5]}
    assert scale(causal_heatmap(ablated, "answer_logit_drop"))["reverse"]
    assert "mean ablation, answer" in causal_heatmap(ablated).to_dict()["title"]["text"]
    metrics, curves = mean_over_pairs([ablated, ablated]).to_metrics()
    assert metrics["answer_kept_rate"] == pytest.approx(2 / 3)
    assert "answer_kept_rate_by_layer/final" in curves[0]
    assert not any("patch_success_rate" in name for name in [*metrics, *curves[0]])


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
    targets = {"targets": {"datum.x": [2], "{{x}}": [4]}, "target_columns": {"datum.x": 2, "{{x}}": 4}}
    nasty = replace(nasty, **targets, vocabulary={17: "datum.x"}, intervention_type="%s")
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


@pytest.mark.parametrize("heads", [None, 4])
def test_pictures_and_tables_of_an_attribution_say_estimated(heads):
    """In names of files, titles, legends, tooltips and columns; a map that was patched has the word nowhere."""
    estimate, exact = make_estimate(heads=heads), make_map(heads=heads)
    drawn = pictures(estimate, mean_over_pairs([estimate]))
    assert drawn
    for stem, chart in drawn.items():
        assert stem.startswith("estimated_")
        spec = chart.to_dict()
        assert "attention_heads, estimated" in spec["title"]["text"] or "stream, estimated" in spec["title"]["text"]
        named = set(re.findall(r'"title": "([^"]*logit difference)"', json.dumps(spec)))
        assert named <= {"estimated normalized logit difference", "estimated logit difference"}
    if heads:
        spec = head_heatmap(estimate, "final").to_dict()
        assert spec["layer"][0]["encoding"]["color"]["title"] == "estimated normalized logit difference"
    for table in (cells(estimate), every_cell(estimate)):
        assert {"estimated_normalized_logit_diff", "estimated_logit_change"} <= set(table.columns)
        assert "normalized_logit_diff" not in table.columns
    assert not any("estimated" in f"{stem} {chart.to_json()}" for stem, chart in pictures(exact, None).items())
    assert "estimated" not in " ".join(cells(exact).columns)
