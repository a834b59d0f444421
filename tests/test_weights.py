"""What a loaded model is made of: all weights of its files, as they were when they were read, under that digest."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import families
from debug import models, provenance, training
from debug.models import ModelNotFound, WeightsMismatch

TINY = models.CHECKPOINTS / "tiny"
WEIGHT = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    models.unload_all()
    yield
    models.unload_all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "a" / "final"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights in the place of a folder's."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def negate(weights: dict[str, torch.Tensor]) -> None:
    weights[WEIGHT] = -weights[WEIGHT]


def weight(model: models.LoadedModel) -> torch.Tensor:
    return model.hf.get_parameter(WEIGHT)


# --- all of them, and no others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop(WEIGHT), f"1 missing, and would be random: {WEIGHT}"),
        (lambda w: w.pop("model.embed_tokens.weight"), "2 missing.*: lm_head.weight, model.embed_tokens.weight"),
        (lambda w: w.update({"model.layers.9.x.weight": torch.zeros(3)}), "1 unknown to it: model.layers.9.x.weight"),
        (lambda w: w.update({WEIGHT: torch.zeros(3, 3)}), rf"1 of another size: {WEIGHT} \[3, 3\] for \[256, 128\]"),
        (lambda w: w.update({f"module.{name}": w.pop(name) for name in list(w)}), r"69 missing.*\.\.\.; 68 unknown"),
    ],
    ids=["missing", "embedding", "unexpected", "mismatched", "prefix"],
)
def test_files_that_are_not_the_architectures_weights_are_refused_by_name(folder, change, said):
    rewrite(folder, change)
    for read in (lambda: models.load(str(folder)), lambda: training.load_weights(folder)):
        with pytest.raises(WeightsMismatch, match=said) as refused:
            read()
        assert str(folder) in str(refused.value)
    assert models.loaded() == []


def test_an_index_that_names_a_weight_which_no_file_has_is_refused(folder):
    rewrite(folder, lambda weights: weights.pop(WEIGHT))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = [*load_file(folder / "model-00001-of-00001.safetensors"), WEIGHT]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsMismatch, match=WEIGHT):
        models.load(str(folder))


@pytest.mark.parametrize("name", families.CONFIGS)
def test_what_every_family_saves_is_whole(name, tmp_path):
    """Tied weights, which are written once, and buffers are none that could be missing."""
    made = families.family(name)
    made.hf.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path))
    for name, parameter in made.hf.named_parameters():
        assert torch.equal(loaded.hf.get_parameter(name), parameter), name


def test_masks_and_frequencies_of_older_checkpoints_are_no_weights(folder, tmp_path):
    rewrite(folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))
    assert torch.equal(weight(models.load(str(folder))), weight(models.load("tiny")))
    gpt2 = families.family("gpt2")
    gpt2.hf.save_pretrained(tmp_path)
    gpt2.tokenizer.save_pretrained(tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    rewrite(tmp_path, lambda weights: weights.update(mask))
    models.load(str(tmp_path))


# --- as they were when they were read ---------------------------------------------------------------------------------


def test_a_file_that_is_written_over_later_changes_neither_the_loaded_weights_nor_their_digest(folder):
    model = models.load(str(folder))
    digest = model.weights_digest
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:  # in place: what is mapped into memory changes with it
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert torch.equal(weight(model), weight(models.load("tiny")))
    assert model.weights_digest == digest == models.load("tiny").weights_digest


def test_a_digest_that_is_asked_for_later_is_of_what_was_read(folder):
    model = models.load(str(folder))
    rewrite(folder, negate)
    assert model.weights_digest == models.load("tiny").weights_digest


@pytest.mark.parametrize("keep_time", [False, True], ids=["later", "same time and size"])
def test_a_folder_that_is_rewritten_is_loaded_again(folder, keep_time, caplog):
    first = models.load(str(folder))
    before = (folder / "model.safetensors").stat()
    rewrite(folder, negate)
    if keep_time:
        os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = models.load(str(folder))
    assert torch.equal(weight(second), -weight(first))
    assert second.weights_digest != first.weights_digest == models.load("tiny").weights_digest
    assert second.weights_digest == provenance.files_digest([folder / "config.json", folder / "model.safetensors"])
    assert "is loaded again" in caplog.text
    assert models.loaded() == [str(folder), "tiny"]


def test_a_tokenizer_that_is_rewritten_is_loaded_again_and_a_touched_folder_is_not(folder):
    first = models.load(str(folder))
    for file in folder.iterdir():
        file.touch()
    (folder / "README.md").write_text("nothing that a model is made of")
    assert models.load(str(folder)) is first
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    second = models.load(str(folder))
    assert second.weights_digest == first.weights_digest
    assert second.tokenizer_digest != first.tokenizer_digest
    assert second.encode("a = 1") != first.encode("a = 1")


def test_a_file_that_changes_while_it_is_read_is_read_again(folder, monkeypatch):
    read, times = models.from_files, []

    def slowly(*arguments, **options):
        loaded = read(*arguments, **options)
        times.append(1)
        if len(times) == 1:
            rewrite(folder, negate)
        return loaded

    monkeypatch.setattr("debug.models.loading.from_files", slowly)
    model = models.load(str(folder))
    assert len(times) == 2
    assert torch.equal(weight(model), -weight(models.load("tiny")))
    monkeypatch.setattr("debug.models.loading.from_files", lambda *a, **o: (rewrite(folder, negate), read(*a, **o))[1])
    with pytest.raises(ModelNotFound, match="are being written"):
        models.load(str(folder), dtype="bfloat16")


def test_a_digest_is_of_bytes_and_not_of_a_name(tmp_path):
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    blob.write_text("something")
    assert provenance.file_digest(blob) != "0" * 64


def test_the_digest_of_a_model_without_files_follows_its_parameters():
    tiny = models.load("tiny")
    hf = AutoModelForCausalLM.from_pretrained(TINY)
    model = models.wrap(hf, AutoTokenizer.from_pretrained(TINY), model_id="x", path=str(TINY))
    before = model.weights_digest
    with torch.no_grad():
        next(hf.parameters())[0, 0] += 1
    assert model.weights_digest != before  # a training step later
    assert tiny.weights_digest == provenance.files_digest([TINY / "config.json", TINY / "model.safetensors"])


# --- which model an id names ------------------------------------------------------------------------------------------


def test_a_relative_id_is_another_model_in_another_folder(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "b" / "final")
    rewrite(tmp_path / "b" / "final", negate)
    loaded = {}
    for parent in ("a", "b"):
        monkeypatch.chdir(tmp_path / parent)
        loaded[parent] = models.load("final")
    assert torch.equal(weight(loaded["a"]), -weight(loaded["b"]))
    assert loaded["a"].weights_digest != loaded["b"].weights_digest
    assert models.loaded() == [str(tmp_path / "a" / "final"), "final"]
    assert models.load(str(tmp_path / "a" / "final")) is loaded["a"]  # one folder, however it is written
    assert models.load("../b/final/") is loaded["b"]
    models.unload("final")
    assert models.loaded() == [str(tmp_path / "a" / "final")]
    shutil.rmtree(tmp_path / "a" / "final")
    models.unload(str(tmp_path / "a" / "final"))
    assert models.loaded() == []


def test_names_tell_folders_of_one_name_apart(tmp_path, monkeypatch):
    for place in ("a/x/final", "b/x/final", "b/final", "c/other", "d/tiny"):
        (tmp_path / place).mkdir(parents=True)
    ids = [str(tmp_path / place) for place in ("a/x/final", "b/x/final", "b/final", "c/other", "d/tiny")]
    names = models.names_of([*ids, "tiny", "someone/final"])
    assert list(names.values()) == ["a/x/final", "b/x/final", "b/final", "other", "d/tiny", "tiny", "someone/final"]
    assert models.names_of(ids[:1]) == {ids[0]: "final"}
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match=r"final, \./final are one model; name it once"):
        models.names_of(["final", "./final"])


def test_two_threads_that_load_one_model_get_it(folder):
    found: list[models.LoadedModel] = []
    threads = [threading.Thread(target=lambda: found.append(models.load(str(folder)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({model.weights_digest for model in found}) == 1
