"""The files of a run: found, downloaded where they are elsewhere, and read with every array in its place."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError, safe_open

from debug.causal_map import AttentionPattern, CausalMap, CausalMapError, load_maps
from debug.checks import read_json
from debug.kinds import Json
from debug.provenance import without_passwords
from debug.tracking.connection import Connection
from debug.tracking.contract import PART, TrackingError
from debug.tracking.places import inside

_PART_OF = re.compile(r"/pair-(\d+)\.safetensors$")


def part_of(folder: str, pair: int) -> str:
    """The file of one pair's arrays, until its shard is full."""
    return f"{folder}/pair-{pair:06d}.safetensors"


class Artifacts:
    """The files of a run.

    Those in a folder of this machine are read there; others are downloaded once, into a temporary folder that lives as
    long as this object.
    """

    def __init__(self, store: Connection, run: Run, folder: Path | None = None) -> None:
        """``folder``: where the files are, of a run that this process is writing."""
        self.store, self._run, self._folder = store, run, folder
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""

    @cached_property
    def _root(self) -> Path | None:
        return self._folder or self.store.root_of(self._run)

    def artifacts(self) -> list[str]:
        """Names of the run's files, sorted; folders are separated by ``/``."""
        if self._root is None:
            with self.store.reported(f"cannot list artifacts of run {self.run_id} in"):
                return sorted(name for name, _ in self._listed(None))
        files = (path for path in self._root.rglob("*") if path.is_file() and path.suffix != PART)
        return sorted(path.relative_to(self._root).as_posix() for path in files)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each of the run's files with its bytes."""
        if self._root is None:
            with self.store.reported(f"cannot list artifacts of run {self.run_id} in"):
                yield from self._listed(None)
            return
        for name in self.artifacts():
            yield name, (self._root / name).stat().st_size

    def _listed(self, folder: str | None) -> Iterator[tuple[str, int]]:
        for entry in self.store.client.list_artifacts(self.run_id, folder):
            if entry.is_dir:
                yield from self._listed(entry.path)
            else:
                yield entry.path, entry.file_size or 0

    def artifact(self, name: str) -> Path:
        """The path of an artifact on this machine: its place in the store, or a downloaded copy.

        Raises:
            TrackingError: no such artifact, or a name that leads out of the run's folder.
        """
        path = inside(self._root or self._downloads, name, f"run {self.run_id}")
        if self._root is None and not path.exists():
            with tempfile.TemporaryDirectory(dir=self._downloads) as folder:
                try:
                    done = self.store.client.download_artifacts(self.run_id, name, folder)
                except (MlflowException, OSError) as error:
                    raise self.broken(name, f"cannot be downloaded: {without_passwords(str(error))}") from error
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(done, path)  # whole, or not there
        if not path.is_file():
            where = self._root or without_passwords(self.store.uri)
            raise self.broken(name, f"no such file in {where}; there are: {', '.join(self.artifacts()[:20]) or 'none'}")
        return path

    @cached_property
    def _downloads(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix=f"run-{self.run_id[:8]}-")
        self._keep = folder  # removed with this object
        return Path(folder.name)

    def shards(self, folder: str) -> list[str]:
        """Files of arrays; last those of single pairs (:func:`part_of`), of a shard that is not full yet."""
        found = [name for name in self.artifacts() if re.fullmatch(rf"{folder}/[^/]+\.safetensors", name)]
        return sorted(found, key=lambda name: (_PART_OF.search(name) is not None, name))

    def broken(self, name: str, problem: str) -> TrackingError:
        return TrackingError(f"run {self.run_id} ({self.name}), {name}: {problem}")

    def json_object(self, name: str) -> dict[str, Json]:
        path = self.artifact(name)
        try:
            value = read_json(path)
        except (OSError, ValueError) as error:
            raise self.broken(name, f"is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.broken(name, f"is {value!r:.80}; expected a JSON object")
        return value

    @contextmanager
    def safetensors(self, name: str) -> Iterator[safe_open]:
        path = self.artifact(name)
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise self.broken(name, f"is no safetensors file that can be read: {error}") from error


class Maps(Sequence[CausalMap]):
    def __init__(self, run: Artifacts) -> None:
        self._of = run
        self._loaded: tuple[str, list[CausalMap]] = ("", [])

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        """Of every map, its shard and its index there. Arrays are named ``<index>/<array>``: the header is enough."""
        places = []
        for shard in self._of.shards("causal_maps"):
            part = _PART_OF.search(shard)
            if part is not None and int(part[1]) != len(places):
                continue  # it is in its shard already
            with self._of.safetensors(shard) as file:
                names = file.keys()
            places += [(shard, index) for index in range(len({name.partition("/")[0] for name in names}))]
        return places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> CausalMap: ...
    @overload
    def __getitem__(self, index: slice) -> list[CausalMap]: ...
    def __getitem__(self, index: int | slice) -> CausalMap | list[CausalMap]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        shard, number = self._places[index]
        loaded, maps = self._loaded
        if loaded != shard:
            try:
                maps = load_maps(self._of.artifact(shard))
            except CausalMapError as error:
                raise self._of.broken(shard, str(error)) from error
            self._loaded = (shard, maps)
        if number >= len(maps):
            raise self._of.broken(shard, f"map {number} has arrays but no entry in the header 'causal_maps'")
        return maps[number]


class Arrays(Mapping[str, np.ndarray]):
    """Those of all shards in a folder, by name."""

    def __init__(self, run: Artifacts, folder: str) -> None:
        self._of, self._folder = run, folder

    @cached_property
    def _places(self) -> dict[str, tuple[str, int, dict[str, Json]]]:
        """Of every array: its shard, where the shard's data begin, and what the shard's header says of it."""
        places: dict[str, tuple[str, int, dict[str, Json]]] = {}
        for shard in self._of.shards(self._folder):
            # Once it opens it is whole, and no array lies outside of it or over another.
            with self._of.safetensors(shard), self._of.artifact(shard).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            for name in header.keys() - {"__metadata__"}:
                if name in places and _PART_OF.search(shard):
                    continue
                if name in places:
                    raise self._of.broken(shard, f"{name!r} is in {places[name][0]} already")
                if header[name]["dtype"] not in _NUMPY:
                    raise self._of.broken(shard, f"{name!r} is of type {header[name]['dtype']}, which numpy has not")
                places[name] = (shard, 8 + length, header[name])
        return dict(sorted(places.items()))

    def __getitem__(self, name: str) -> np.ndarray:
        shard, start, entry = self._places[name]
        path, dtype, shape = self._of.artifact(shard), _NUMPY[entry["dtype"]], tuple(entry["shape"])
        if not math.prod(shape):
            return np.empty(shape, dtype)
        try:
            return np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)
        except (OSError, ValueError) as error:
            raise self._of.broken(shard, f"{name!r} cannot be mapped: {error}") from error

    def shard(self, name: str) -> str:
        return self._places[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Patterns(Mapping[int, AttentionPattern]):
    """Attention patterns by pair, each read and checked when it is asked for."""

    def __init__(self, run: Artifacts) -> None:
        self._of, self._arrays = run, Arrays(run, "attention")

    @cached_property
    def _pairs(self) -> dict[int, str]:
        """Pair -> what its arrays' names begin with."""
        names = (name.removesuffix("/weights") for name in self._arrays if name.endswith("/weights"))
        return dict(sorted((int(name), name) for name in names if re.fullmatch("0|[1-9][0-9]{0,8}", name)))

    def __getitem__(self, pair: int) -> AttentionPattern:
        name = self._pairs[pair]
        queries = self._arrays.get(f"{name}/queries", np.zeros(0))
        try:
            return AttentionPattern(np.asarray(queries).tolist(), np.asarray(self._arrays[f"{name}/weights"]))
        except (CausalMapError, TypeError) as error:  # queries of any shape and type
            raise self._of.broken(self._arrays.shard(f"{name}/weights"), f"pair {pair}: {error}") from error

    def __iter__(self) -> Iterator[int]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
_NUMPY |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
"""Types of safetensors that numpy has."""
