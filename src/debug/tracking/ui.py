"""What MLflow's own UI shows of an experiment first: which columns, which charts. Kept in a tag of the experiment, and
read by the UI where an address has its key (MLflow calls it a shared view)."""

from __future__ import annotations

import json

from debug.kinds import Json

KEY = "debug"
CELLS = "tags.`debug.role` = 'cell'"
TAG = f"mlflow.sharedViewState.{KEY}"
_COLUMNS = {
    "params": ("model", "hops", "seq_len", "intervention_type"),
    "metrics": ("accuracy", "peak_patch_success_rate"),
}
_CURVES = ("ref_depth_1_rhs", "ref_depth_2_rhs", "ref_depth_3_rhs", "query_var", "final")


def _chart(kind: str, uuid: str, title: str, **own: Json) -> dict[str, Json]:
    """With every field that the UI's own form gives a chart of this kind."""
    common = {"metricSectionId": KEY, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"type": kind, "uuid": f"{KEY}-{uuid}", "displayName": title} | common | own


def _bar(metric: str, title: str) -> dict[str, Json]:
    return _chart("BAR", metric, title, metricKey=metric, runsCountToCompare=20)


def _curves() -> dict[str, Json]:
    keys = [f"patch_success_rate_by_layer/{target}" for target in _CURVES]
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "yAxisKey": "metric"}
    unset = {"range": {}, "selectedXAxisMetricKey": "", "yAxisExpressions": [], "ignoreOutliers": False}
    own = {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": False, "lineSmoothness": 0}
    chosen = {"metricKey": keys[0], "selectedMetricKeys": keys}
    return _chart("LINE", "by-layer", "patch success rate by layer (step)", **(axes | unset | own | chosen))


def view(*, cells: bool) -> str:
    """The view as the tag's value: columns of what was run and found, and charts of it; empty ones are hidden.

    ``cells``: these alone, without the studies that they are nested in, and that would hide them.
    """
    by_hops = {"xaxis": {"key": "hops", "type": "PARAM"}, "yaxis": {"key": "accuracy", "type": "METRIC"}}
    charts = [
        _curves(),
        _chart("SCATTER", "by-hops", "accuracy by hops", **by_hops),
        _bar("accuracy", "accuracy"),
        _bar("peak_patch_success_rate", "peak patch success rate"),
    ]
    section = {"uuid": KEY, "name": "What was found", "display": True, "isReordered": True}
    state: dict[str, Json] = {
        "searchFilter": CELLS if cells else "",
        "orderByKey": "attributes.end_time" if cells else "attributes.start_time",  # by start they would be nested
        "orderByAsc": False,
        "selectedColumns": [f"{group}.`{name}`" for group, names in _COLUMNS.items() for name in names],
        "compareRunCharts": charts,
        "compareRunSections": [section | {"deleted": False, "isGenerated": False}],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }
    return json.dumps(state)
