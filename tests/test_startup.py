"""What a command does not import, and that whoever wants it has it all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from debug.causal_visualization import drawing
from debug.tracking import Store, load_run

SPARED = ("sklearn", "pandas", "torch.distributed.tensor", "torch._inductor", "scipy.stats", "altair.vegalite")
AFTER = f"""
import json, sys
from debug.commands import main
sys.argv = ["debug", "trace", "--num-seqs", "1", "--name", "spared"]
main()
spared = {{name: name in sys.modules for name in {SPARED}}}
spared["compiler"] = hasattr(sys.modules["torch._dynamo"], "__file__")
import pandas, sklearn.metrics, scipy.stats, torch, torch.distributed.tensor, transformers.utils, mlflow
import torch._dynamo.config
torch._dynamo.reset()
later = [
    pandas.DataFrame({{"a": [1]}}).shape == (1, 1),
    sklearn.metrics.accuracy_score([1], [1]) == 1,
    torch.distributed.tensor.DTensor.__name__ == "DTensor",
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2,
    transformers.utils.is_sklearn_available() and transformers.utils.is_torch_distributed_available(),
    torch._dynamo.__file__ == sys.modules["torch._dynamo"].__file__,
    mlflow.MlflowClient is not None,
]
print(json.dumps([spared, later]))
"""


def test_a_trace_imports_neither_sklearn_nor_pandas_nor_the_compiler_and_they_are_there_afterwards(uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTER],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    spared, later = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name, imported in spared.items() if imported]
    assert all(later), later
    [cell] = Store(uri).find_runs(experiment="spared", role="cell")["run_id"]
    drawn = {Path(name).name for name in load_run(cell, uri).artifacts()}
    assert {"causal_map_mean.png", "causal_map_mean.html", "curves_by_layer.png"} <= drawn


def test_rules_in_the_place_of_a_model_import_no_torch(uri: str) -> None:
    code = "import sys; from debug.commands import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    words = ["accuracy", "--models", "heuristic:any-number", "--num-seqs", "3", "--tracking-uri", uri]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("False\n"), done.stderr


def made_here(folder: str) -> dict:
    return {"pid": _Chart(os.getpid())}


def failing() -> dict:
    raise ValueError("no chart of this")


class _Chart:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def to_html(self, **_: object) -> str:
        return str(self.pid)

    def save(self, path: Path, **_: object) -> None:
        path.write_bytes(b"")


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr(drawing, "_beside", None)
    drawing.begin()
    made = drawing._beside
    assert made is not None
    yield made
    made.shutdown()


def test_charts_are_drawn_beside_and_what_goes_wrong_is_raised_here(beside, tmp_path: Path) -> None:
    assert drawing.draw(f"{__name__}:made_here", tmp_path, "x")() == ["pid"]
    assert int((tmp_path / "pid.html").read_text()) != os.getpid()
    with pytest.raises(ValueError, match="no chart of this"):
        drawing.draw(f"{__name__}:failing", tmp_path)()


def test_charts_are_drawn_here_where_the_other_process_has_died(beside, tmp_path: Path) -> None:
    for _ in range(2):  # while it draws, and before it is asked to
        finish = drawing.draw(f"{__name__}:made_here", tmp_path, "x")
        for process in list((beside._processes or {}).values()):
            process.kill()
            process.join()
        assert finish() == ["pid"]
    assert int((tmp_path / "pid.html").read_text()) == os.getpid()


def test_a_new_store_is_laid_out_without_waiting_for_the_disk_and_others_are_left_alone(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    asked = store.client._tracking_client.store.engine
    with asked.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # as SQLite has it: FULL
    assert store.find_runs().is_empty()
