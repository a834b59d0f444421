"""What a command does not import, and that whoever wants it has it all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


BESIDE = """
import json, os, sys
from pathlib import Path
from debug.causal_visualization import drawing

class Chart:
    def __init__(self, pid):
        self.pid = pid
    def to_html(self, **_):
        return str(self.pid)
    def save(self, path, **_):
        path.write_bytes(b"")

def made_here(word):
    return {"pid": Chart(os.getpid())}

def failing():
    raise ValueError("no chart of this")

folder = Path(sys.argv[1])
drawing.begin()  # before this process has any thread, as a command does
said = {}
said["names"] = drawing.draw("__main__:made_here", folder, "x")()
said["elsewhere"] = int((folder / "pid.html").read_text()) != os.getpid()
try:
    drawing.draw("__main__:failing", folder)()
except ValueError as error:
    said["raised"] = str(error)
for _ in range(2):  # while it draws, and before it is asked to
    finish = drawing.draw("__main__:made_here", folder, "x")
    for process in list((drawing._beside._processes or {}).values()):
        process.kill()
        process.join()
    said["after"] = finish()
said["here"] = int((folder / "pid.html").read_text()) == os.getpid()
print(json.dumps(said))
"""


def test_charts_are_drawn_beside_and_here_where_the_other_process_has_died(tmp_path: Path) -> None:
    """In a process of its own: one of pytest has threads, and must not be forked."""
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "names": ["pid"],
        "elsewhere": True,
        "raised": "no chart of this",
        "after": ["pid"],
        "here": True,
    }


def test_a_new_store_is_laid_out_without_waiting_for_the_disk_and_others_are_left_alone(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    asked = store.client._tracking_client.store.engine
    with asked.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # as SQLite has it: FULL
    assert store.find_runs().is_empty()
