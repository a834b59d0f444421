"""Artifacts that are not what they should be: thousands, each read as what it says or refused with run, file and field.

Nothing is executed, nothing outside the run's folder is opened, memory stays bounded.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from debug.causal_map import CausalMapError, mean_over_pairs, save_maps, save_tensors
from debug.counterfactual import make_pair
from debug.kinds import Json
from debug.tracking import LoggedRun, Store, TrackingError
from debug.tracking.export import cells
from present import present
from synthetic import PROGRAM, make_map, make_samples, with_likeliest

WRONG: list[Json] = [None, True, -1, 0, 3, 2**40, 10**30, 1.5, "", "x", "\ud800", [], [[]], [None], {}, {"a": 1}]
MEGABYTES = 2**10  # in the units of ru_maxrss
_watched: list[tuple[str, object]] = []
_watching = False


def _watch(event: str, arguments: tuple) -> None:
    if _watching and event in ("open", "exec", "pickle.find_class", "subprocess.Popen", "os.system", "socket.connect"):
        _watched.append((event, arguments[0] if arguments else None))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, empty_database) -> LoggedRun:
    """A run with every artifact that is read back."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder / "mlflow.db")
    store = Store(f"sqlite:///{folder}/mlflow.db")
    with store.start("fuzzed", "r", kind="causal_tracing") as run:
        run.log_json("config.json", {"plan": {"layers": [0, 1]}, "wanted": 2})
        run.log_json("summary.json", {"metrics": {"accuracy": 0.5}})
        run.log_programs([make_pair(PROGRAM, seed) for seed in range(2)])
        run.append_jsonl("samples.jsonl", make_samples(2))
        save_maps(
            run.folder / "causal_maps" / "00000.safetensors", [with_likeliest(make_map(pair)) for pair in range(2)]
        )
        weights = {"0/weights": np.full((2, 3, 2, 4), 0.25, np.float16), "0/queries": np.array([1, 3])}
        save_tensors(run.folder / "attention" / "00000.safetensors", weights)
        (run.folder / "activations").mkdir()
        arrays = {"0/clean/mlp": np.ones((2, 3, 4), np.float32), "0/positions": np.arange(3)}
        save_file(arrays, run.folder / "activations" / "00000.safetensors")
    loaded = store.load_run(run.run_id)
    for read in READERS.values():
        read(loaded)  # what Python imports when it is first needed is none of the files' doing
    return loaded


def read_maps(run: LoggedRun) -> None:
    maps = list(run.maps)
    for one in maps:
        for metric in one.metrics:
            one.grid(metric)
        for target in one.targets:
            one.at_target(target, one.metrics[0])
        cells(one)
    mean_over_pairs(maps)


READERS: dict[str, Callable[[LoggedRun], object]] = {
    "config.json": lambda run: run.config,
    "summary.json": lambda run: run.summary,
    "programs.json": lambda run: (run.pairs, run.programs),
    "samples.jsonl": lambda run: run.samples,
    "causal_maps/00000.safetensors": read_maps,
    "attention/00000.safetensors": lambda run: [each.of(each.queries) for each in run.attention.values()],
    "activations/00000.safetensors": lambda run: [array.sum() for array in run.activations.values()],
}


def refused(run: LoggedRun, name: str, content: bytes) -> str | None:
    """Read an artifact with this content; the error where there is one, which names run and file."""
    global _watching
    path = present(run._root) / name
    whole = path.read_bytes()
    path.write_bytes(content)
    fresh = LoggedRun(run.store, run._run, run.experiment)
    _watched.clear()
    _watching, told = True, None
    try:
        READERS[name](fresh)
    except TrackingError as error:
        told = str(error)
    except CausalMapError as error:  # maps that are read, and cannot be averaged
        told = f"{error}; run {run.run_id}, {name}" if name.startswith("causal_maps") else ""
    finally:
        _watching = False
        path.write_bytes(whole)
    assert told is None or (run.run_id in told and name in told), (told, content[:300])
    for event, what in _watched:
        assert event == "open", (event, what)
        assert Path(str(what)).resolve().is_relative_to(present(run._root)), what
    return told


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * MEGABYTES


def content_of(run: LoggedRun, name: str) -> bytes:
    return run.artifact(name).read_bytes()


@pytest.mark.parametrize("name", READERS)
def test_truncated_and_bit_flipped_files(logged, name):
    whole, rng = content_of(logged, name), random.Random(name)
    for _ in range(150):
        refused(logged, name, whole[: rng.randrange(len(whole))])
    for _ in range(450):
        flipped = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            # Most of a safetensors file is numbers, in which any bit may stand: flip its header.
            flipped[rng.randrange(min(len(whole), 4000))] ^= 1 << rng.randrange(8)
        refused(logged, name, bytes(flipped))
    assert refused(logged, name, whole) is None


def places(value: Json) -> Iterator[tuple]:
    """The path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (key,)
        yield from ((key, *path) for path in places(each))


def changed(value: Json, path: tuple, new: Json, missing: bool = False) -> Json:
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if missing:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return value


def few(paths: Iterator[tuple], most: int) -> list[tuple]:
    every = list(paths)
    return random.Random(0).sample(every, min(most, len(every)))


@pytest.mark.parametrize("name", ["programs.json", "samples.jsonl", "config.json", "summary.json"])
def test_wrong_types_and_missing_keys_in_json(logged, name):
    lines = content_of(logged, name).splitlines() if name.endswith("l") else [content_of(logged, name)]
    value = json.loads(lines[0])
    for path in few(places(value), 40):
        for new in WRONG:
            refused(logged, name, b"\n".join([json.dumps(changed(value, path, new)).encode(), *lines[1:]]))
        refused(logged, name, json.dumps(changed(value, path, None, missing=True)).encode())
    field = next(iter(value))
    if name in ("programs.json", "samples.jsonl"):
        error = refused(logged, name, json.dumps(changed(value, (field,), [1.5])).encode())
        assert error is not None
        assert repr(field) in error


def safetensors(header: Json, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def parts(content: bytes) -> tuple[dict[str, Json], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize(
    "name", [f"{folder}/00000.safetensors" for folder in ("causal_maps", "activations", "attention")]
)
def test_safetensors_headers_that_lie(logged, name):
    header, data = parts(content_of(logged, name))
    lies: list[Json] = [
        *([2**40], [-1], [2**63], [2**32, 2**32], [0], [1.5], ["3"]),
        *([0, 2**60], [-4, 4], [8, 0], [0, 1]),
        *("F64", "BF16", "F8_E4M3", "I8", "BOOL", "x"),
    ]
    for path in few((path for path in places(header) if path[0] != "__metadata__"), 60):
        for lie in [*WRONG, *lies]:
            refused(logged, name, safetensors(changed(header, path, lie), data))
        refused(logged, name, safetensors(changed(header, path, None, missing=True), data))
    for length in (0, 1, 2**20, 2**40, 2**63 - 1, 2**64 - 1):
        assert refused(logged, name, safetensors(header, data, length))
    for more in (b"x" * 100, b""):
        assert refused(logged, name, safetensors(header, data[:-1] if not more else data + more))
    for text in (
        b"[" * 10_000,
        b"{" * 10_000,
        b'{"a":' * 10_000,
        b"9" * 10_000,
        b"null",
        b'{"__metadata__": {"a": 1}}',
    ):
        assert refused(logged, name, safetensors(text, data))


def test_every_field_of_a_map_and_wrong_values_of_it(logged):
    name = "causal_maps/00000.safetensors"
    header, data = parts(content_of(logged, name))
    maps = json.loads(header["__metadata__"]["causal_maps"])

    def read(new: Json) -> str | None:
        text = new if isinstance(new, str) else json.dumps(new)
        return refused(logged, name, safetensors(header | {"__metadata__": {"causal_maps": text}}, data))

    assert read(maps) is None
    for path in few(places(maps), 80):
        for wrong in WRONG:
            read(changed(maps, path, wrong))
    for field in maps[1]:
        for wrong in ([None], 10**30, {"a": {}}):
            error = read(changed(maps, (1, field), wrong))
            assert error is not None, (field, wrong)
            assert "map 1" in error
            assert field in error or "columns" in error
    for bomb in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 100_000,
        "[" + "{}," * 100_000 + "{}]",
        '"' + "x" * 2**25 + '"',
    ):
        assert read(bomb)


def test_json_bombs(logged):
    for name in ("config.json", "summary.json", "programs.json", "samples.jsonl"):
        for bomb in (b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6, b'{"a": 1e9999999}'[:-1], b'{"a": -Infinity}'):
            assert refused(logged, name, bomb + b"\n")  # of samples a whole line: half a last one is left out
    path = present(logged._root) / "huge"
    for name in ("config.json", "samples.jsonl"):
        whole = content_of(logged, name)
        artifact = logged.artifact(name)
        artifact.unlink()
        with path.open("wb") as sparse:
            sparse.truncate(2**36)  # 64 GiB that are not on the disk
        path.rename(artifact)
        with pytest.raises(TrackingError, match=f"{name}: .*bytes"):
            READERS[name](LoggedRun(logged.store, logged._run, logged.experiment))
        artifact.unlink()
        artifact.write_bytes(whole)


def test_older_schemas_are_read_and_newer_ones_refused(logged):
    value = json.loads(content_of(logged, "programs.json"))
    assert refused(logged, "programs.json", json.dumps(value | {"schema": 0}).encode()) is None
    assert "this version reads up to 1" in (
        refused(logged, "programs.json", json.dumps(value | {"schema": 2}).encode()) or ""
    )
    for schema, ok in (("0", True), ("2", False)):
        logged.store.set_tags(logged.run_id, {"debug.schema": schema})
        if ok:
            assert len(logged.store.load_run(logged.run_id).pairs) == 2
        else:
            with pytest.raises(TrackingError, match="written in schema 2"):
                logged.store.load_run(logged.run_id)
