"""The MLflow UI on a store of ours, in a real browser: what its first page shows; the heatmap among the artifacts."""

import sys
from pathlib import Path

from debug.causal_experiment_runner import CausalExperimentRunner
from debug.tracking import Store


def test_the_heatmap_of_a_run_in_a_moved_store_is_shown_as_an_artifact(browser, serve, tmp_path):
    original, moved = tmp_path / "cluster", tmp_path / "laptop"
    runner = CausalExperimentRunner(f"sqlite:///{original}/mlflow.db")
    result = runner.run_intervention_experiment("tiny", ["i = 8\nx = i\nh = x\n#h: "])
    run_id = result.cells[0].run_id
    original.rename(moved)
    uri = f"sqlite:///{moved}/mlflow.db"
    assert Store(uri).relocate() > 0  # as `make mlflow` does
    experiment_id = Store(uri).client.get_run(run_id).info.experiment_id

    def command(port: int) -> list[str]:
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        return [mlflow, "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]

    with serve(command, "/health") as address:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{address}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/causal_map_mean.png")
        picture = page.locator("img[src*='blob:'], img[alt*='causal_map_mean'], img[src*='causal_map_mean']").first
        picture.wait_for(timeout=90_000)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200
        assert page.get_by_text("curves_by_layer.html").is_visible()
        page.close()
        # the address that scripts print: cells, not studies, with what was run and found, and charts of it
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(Store(uri).link(run_id, address))
        page.get_by_text("tiny · 3 hops · 3 lines").first.wait_for(timeout=90_000)
        for column in ("accuracy", "hops", "model", "seq_len"):
            page.get_by_role("columnheader", name=column, exact=True).first.wait_for()
        assert page.get_by_text("1 matching run", exact=False).is_visible()
        page.goto(page.url + "&compareRunsMode=CHART")
        page.get_by_text("What was found").first.wait_for(timeout=90_000)
        page.get_by_text("accuracy").first.wait_for()
        page.goto(f"{address}/#/experiments/{experiment_id}/models?workflowType=machine_learning")
        page.get_by_text("tiny", exact=True).first.wait_for(timeout=90_000)
        page.close()
