"""The weights in the package: loaded as anybody would, they answer programs that they were not trained on."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from debug import models, training
from debug.generators import make_variable_binding_program, search
from debug.models import CHECKPOINTS

TINY = CHECKPOINTS / "tiny"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY)


def test_it_is_a_small_float32_qwen3_in_safetensors(model) -> None:
    assert model.config.model_type == "qwen3"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (TINY / "model.safetensors").stat().st_size <= 16 * 2**20
    assert {path.suffix for path in TINY.iterdir()} == {".json", ".safetensors", ".md"}


def test_plain_auto_tokenizer_is_the_trained_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer.get_vocab() == training.make_tokenizer().get_vocab()
    assert len(tokenizer) == 41
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("left", 0, 0)
    assert tokenizer("a = 4\n#a: ")["input_ids"] == training.make_tokenizer()("a = 4\n#a: ")["input_ids"]


@pytest.mark.parametrize(("cell", "bar"), [((None, 5), 0.99), ((None, 17), 0.99)])
def test_it_answers_held_out_programs(model, cell: training.Shape, bar: float) -> None:
    """A small sample; the model card has the measurement, with intervals."""
    programs, pairs = training.evaluate(model, training.first_pairs({cell: 150}))[cell]
    assert programs.estimate >= bar
    assert pairs.estimate >= bar


def test_it_answers_the_published_programs_and_their_counterfactuals(model) -> None:
    for cell, (_, pairs) in training.evaluate(model, training.published_pairs()).items():
        assert pairs.estimate == 1, cell


def test_greedy_generation_stops_after_the_answer_in_a_left_padded_batch(model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    pairs = [pair for members in training.first_pairs({(1, 2): 3, (2, 5): 3, (3, 9): 3}).values() for pair in members]
    prompts = tokenizer([pair.original.text for pair in pairs], padding=True, return_tensors="pt")
    generated = model.generate(**prompts, max_new_tokens=5)[:, prompts["input_ids"].shape[1] :]
    assert generated.shape[1] == 2
    assert tokenizer.batch_decode(generated, skip_special_tokens=True) == [
        str(pair.expected_original) for pair in pairs
    ]


def test_1000_programs_have_the_same_answers_through_plain_transformers_and_nnsight(model) -> None:
    """test_vllm has the third way."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(TINY), models.load("tiny")
    for seq_len in (2, 5, 9, 13, 17):
        programs = [made.program for made in islice(search(make_variable_binding_program, seq_len, 7000), 200)]
        ids = tokenizer(programs, return_tensors="pt")["input_ids"]
        plain = model.generate(ids, max_new_tokens=2)[:, ids.shape[1]]
        with loaded.trace(ids, logits_to_keep=1):
            logits = loaded.nnsight.output.logits.save()
        traced = logits[:, -1].argmax(-1)
        assert len(programs) == 200
        assert torch.equal(plain, traced), [p for p, a, b in zip(programs, plain, traced, strict=True) if a != b]


RUN_TINY = """
import debug, json, sys
from debug import ExperimentRunner, generators, prompts, quick_experiment
config = quick_experiment("wheel", prompts.MINIMAL, generators.make_variable_binding_program, ["tiny"], 20, [5])
result = ExperimentRunner(sys.argv[1]).run(config)
print(json.dumps([debug.__file__, result.summary["cells"][0]["correct"]]))
"""


def test_the_wheel_has_the_weights_the_command_and_the_dashboard(tmp_path: Path, uri: str) -> None:
    """Built and installed outside the repository, beside this environment's other packages, and run from elsewhere."""
    uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None, "uv builds the wheel: pip install uv"

    def run(*command: object, cwd: Path = tmp_path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(uv, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    run(uv, "venv", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(uv, "pip", "install", "--python", python, "--no-deps", "--no-index", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path that a .pth file names comes last, and .pth files in it (this project's own, where it is installed in
    # development) are not read.
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "elsewhere").mkdir()
    module, correct = json.loads(run(python, "-c", RUN_TINY, uri, cwd=tmp_path / "elsewhere").splitlines()[-1])
    assert Path(module).is_relative_to(packages)
    assert correct == 20
    command = python.with_name("debug")
    assert "debug demo" in run(command, cwd=tmp_path / "elsewhere")
    app = Path(run(python, "-c", "from debug.commands import dashboard; print(dashboard.app())").strip())
    assert app.is_relative_to(packages)
    there, here = (
        {path.name for path in folder.rglob("*") if path.suffix in (".py", ".toml")}
        for folder in (app.parent, ROOT / "dashboard")
    )
    assert there == here
