"""What a notebook shows: short text, pictures without scripts, and nothing of a store's text as HTML."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import debug
from debug import ExperimentRunner, generators, prompts, quick_experiment
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_tracing import run_causal_tracing_experiment
from debug.programs import TextPair, TextProgram

ROOT = Path(__file__).parents[1]
PROGRAM = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "
SCREEN = 300  # characters


def check(shown: object) -> str:
    """A result's repr is short; its HTML is closed and has no script. Gives the HTML."""
    assert len(repr(shown)) < SCREEN
    assert "\n" not in repr(shown)
    html = shown._repr_html_()  # type: ignore[attr-defined]  (what IPython calls)
    assert not re.search(r"<script|onerror|http", html.partition("base64")[0])
    assert html.count("<pre") == html.count("</pre>")
    return html


@pytest.fixture(scope="module")
def in_memory():
    return run_causal_tracing_experiment("tiny", [PROGRAM])


def test_maps_pairs_and_results_in_memory(in_memory) -> None:
    causal_map, result = in_memory.maps[0], in_memory.results[0]
    for shown in (in_memory, causal_map, in_memory.mean, result):
        assert "data:image/png;base64," in check(shown)
        assert shown.plot().to_dict()
    assert repr(causal_map) == "CausalMap(residual_stream, pair 0: 7 layers x 23 positions)"
    html = check(causal_map)
    assert 'title="token 2, largest effect 1.00"' in html
    pair = check(result.pair)
    assert 'title="ref_depth_1_rhs" style="background' in pair, "the root value differs, and is marked"
    assert pair.count("background") == 2
    assert "ProgramPair('i = 8" in repr(result.pair)


def test_a_value_that_there_is_none_of_is_not_shown_as_zero(in_memory) -> None:
    logits = in_memory.maps[0].z_patched.copy()
    logits[:, 2] = np.nan
    html = replace(in_memory.maps[0], z_patched=logits)._repr_html_()
    assert "token 2, no value" in html
    assert "token 6, largest effect 0.9" in html


def test_heads_cut_edges_and_hypotheses_have_pictures() -> None:
    for component in ("attention_heads", "attention_knockout"):
        result = run_causal_tracing_experiment("tiny", [PROGRAM], component)
        assert "data:image" in check(result.maps[0])
        assert result.maps[0].plot().to_dict()


def test_text_of_others_is_never_html() -> None:
    evil = "<script>alert(1)</script>\"'&"
    pair = TextPair(TextProgram(f"{evil} 1", "a"), TextProgram(f"{evil} 2", "b"))
    assert "&lt;script&gt;" in check(pair)
    with pytest.raises(debug.InputError, match="has no picture"):
        pair.plot()


def test_runs(uri: str) -> None:
    config = quick_experiment(
        "notebook", prompts.MINIMAL, generators.make_variable_binding_program, ["tiny"], 5, [3], hops=[1, 2]
    )
    accuracy = ExperimentRunner(uri).run(config)
    html = check(accuracy)
    assert "data:image" in html
    assert accuracy.plot().to_dict()["title"]["text"].startswith("accuracy, 95% CI")
    causal = CausalExperimentRunner(uri).run(CausalConfig(models=["tiny"], num_seqs=2, name="notebook"))
    assert "data:image" in check(causal)
    assert check(causal.cells[0]).count("data:image") == 1
    assert causal.plot().to_dict() == causal.cells[0].mean.plot().to_dict()  # type: ignore[union-attr]  (has one)


def test_a_pair_that_was_skipped_says_why() -> None:
    text = "Say 1 or 2: "
    given = TextPair(TextProgram(text, "1"), TextProgram(text + "now ", "2"))
    _, result = run_causal_tracing_experiment("tiny", [PROGRAM, given]).results
    assert "skipped: " in repr(result)
    assert "skipped: " in check(result)
    with pytest.raises(debug.InputError, match="has no map"):
        result.plot()


def test_tab_completion_knows_every_package() -> None:
    for name in ("models", "tracking", "causal_tracing", "generators", "prompts", "ExperimentRunner", "load_run"):
        assert name in dir(debug)
        assert getattr(debug, name) is not None


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_an_example_notebook_runs_from_top_to_bottom(notebook: Path, uri: str, tmp_path: Path, monkeypatch) -> None:
    """In a kernel of its own, in a folder that is no project: what people see fits on a screen, pictures aside."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (dependency group dev)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (dependency group dev)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("data:image" in data.get("text/html", "") or "vegalite" in str(data.keys()) for data in shown)
    assert all(len(data.get("text/plain", "")) < 2000 for data in shown if "text/html" not in data)
    assert any("%" in output.get("text", "") for output in outputs), "a progress bar is text, and stays"
