"""Result folders of the older format, read into runs of kind ``imported``.

The format: a JSON list of interventions (``intervention_results.json``, ``patch_results.json``) under
``EXPERIMENT/TIMESTAMP/MODEL/``, perhaps with ``experiment_metadata.json`` beside it, or of samples (``results.json``,
with ``summary.json``) under ``NAME_TIMESTAMP/``. What it does not record (seeds, model answers, logits) is null here.

- Its residual stream at layer l is what layer l puts out: this project's l + 1. Numbers stay as the files have them.
- Its success rate says that the top token changed at all, its normalized logit difference is the change of the new top
  token's logit over the range of the clean logits. Both keep their names under ``legacy_``.
- This project's success needs the token id of the counterfactual's answer. Byte-level vocabularies (token labels with
  ``Ġ`` and ``Ċ``) begin with the bytes, in one order, in which the digit d is token 15 + d. Where the clean run's top
  token is the original's answer under that numbering, success is derived; elsewhere it is null.

Rows that make no sense are reported with file and index, and the rest is imported. Untrusted: see ``checks``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import decoders

from debug import causal_visualization as charts
from debug import checks
from debug.causal_map import LEGACY, CausalMap, MeanCausalMap, MeanOverPairs, save_maps
from debug.checks import Check
from debug.programs import Program, ProgramError, ProgramPair
from debug.provenance import text_digest
from debug.statistics import bootstrap_mean, wilson
from debug.token_analyzer import PairError, of_texts
from debug.tracking import RunWriter, Store, TrackingError

logger = logging.getLogger(__name__)

CAUSAL_FILES = ("intervention_results.json", "patch_results.json")
ACCURACY_FILE = "results.json"
LARGEST_FILE = 2**28  # bytes
MOST_CELLS = 2_000_000  # of a map: more than any model has, and few enough to hold
LAYERS_ARE = "layer outputs: layer l here is this project's l + 1"
_TIMESTAMP = re.compile(r"(?:(?P<name>.+)_)?(?P<timestamp>\d{8}_\d{6})")
_FIRST_DIGIT = 15  # token id of "0" in byte-level vocabularies


class LegacyError(ValueError):
    """A file that is none of the older format."""


@dataclass(frozen=True)
class Problem:
    """What could not be imported: a row of a file, or all of it (``index`` None)."""

    file: str
    index: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.index is None else f', row {self.index}'}: {self.what}"


@dataclass(frozen=True)
class Imported:
    """What became of one file: its runs (none where they were in the store already), and what was left out."""

    file: str
    run_ids: list[str]
    problems: list[Problem]
    known: bool = False
    """Whether this file was imported before."""

    def __str__(self) -> str:
        what = "was imported before" if self.known else f"{len(self.run_ids)} runs"
        lines = [f"{self.file}: {what}", *(f"  {problem}" for problem in self.problems[:10])]
        return "\n".join(lines + ([f"  and {len(self.problems) - 10} more"] if len(self.problems) > 10 else []))


def import_results(folder: str | Path, tracking_uri: str | None = None) -> list[Imported]:
    """Import every result file below a folder; what the store has already is left as it is.

    Raises:
        LegacyError: there is no such folder, or no file of the format in it.
        debug.tracking.TrackingError: the store cannot be opened or written.
    """
    root = Path(folder)
    if not root.is_dir():
        raise LegacyError(f"there is no folder {str(folder)!r}; expected one with result files of the older format")
    files = sorted(path for path in root.rglob("*.json") if path.name in (*CAUSAL_FILES, ACCURACY_FILE))
    if not files:
        raise LegacyError(f"no file in {str(folder)!r} is called {', '.join(CAUSAL_FILES)} or {ACCURACY_FILE}")
    store = Store(tracking_uri)
    return [_import_file(store, root, path) for path in files]


def _import_file(store: Store, root: Path, path: Path) -> Imported:
    name = path.relative_to(root).as_posix()
    source = _Source(root, path, name)
    try:
        digest = source.digest()
        found = store.find_runs(kind="imported", tags={"debug.import_digest": digest}, role="study", limit=None)
        if "FINISHED" in found["status"].to_list():
            return Imported(name, [], [], known=True)
        read = _read_samples if path.name == ACCURACY_FILE else _read_maps
        cells = read(source)
    except (LegacyError, OSError, ValueError) as error:
        return Imported(name, [], [*source.problems, Problem(name, None, str(error))])
    title = " · ".join(["imported", source.experiment, *([source.timestamp] if source.timestamp else [])])
    tags = {
        "debug.import_digest": digest,
        "debug.imported_from": name,
        "debug.legacy_timestamp": source.timestamp or "",
    }
    run_ids = []
    try:
        with store.start(source.experiment, title, kind="imported", tags=tags) as study:
            study.log_json("config.json", {"file": name, "sha256": source.sha256(), "timestamp": source.timestamp})
            for cell in cells:
                with study.cell(cell.name, cell.params) as run:
                    cell.write(run)
                    (run.folder / "legacy").mkdir(exist_ok=True)
                    shutil.copyfile(path, run.folder / "legacy" / path.name)
                    run_ids.append(run.run_id)
            study.log_json("summary.json", {"problems": [str(problem) for problem in source.problems[:1000]]})
    except (
        ValueError,
        TrackingError,
    ) as error:  # something that a store cannot hold; the run is FAILED and says so, too
        source.problems.append(Problem(name, None, str(error)))
    return Imported(name, run_ids, source.problems)


@dataclass
class _Source:
    """A result file: its place says experiment, time and model; its problems are gathered as it is read."""

    root: Path
    path: Path
    name: str
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment, self.timestamp, self.model_folder = self.path.parent.name or "imported", None, None
        parts = self.path.resolve().parent.parts
        for place in range(len(parts) - 1, max(-1, len(parts) - 3), -1):  # the time is the last folder, or that above
            if match := _TIMESTAMP.fullmatch(parts[place]):
                self.timestamp = match["timestamp"]
                self.experiment = match["name"] or (parts[place - 1] if place else "imported")
                self.model_folder = parts[place + 1] if place + 1 < len(parts) else None
                break

    def sha256(self) -> str:
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise LegacyError("leads out of the folder; it is not read")
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def digest(self) -> str:
        """What names this file wherever it lies."""
        return text_digest(
            [self.path.name, self.experiment, self.timestamp or "", self.model_folder or "", self.sha256()]
        )

    def rows(self) -> list[Any]:
        rows = checks.read_json(self.path, constants=True, largest=LARGEST_FILE)
        if not isinstance(rows, list):
            raise LegacyError(f"is {rows!r:.80}; expected a list of records")
        if not rows:
            raise LegacyError("is an empty list")
        return rows

    def beside(self, name: str, fields: Mapping[str, Check]) -> dict[str, Any]:
        """The known fields of another file in the same folder; empty where it is not there or broken."""
        path = self.path.with_name(name)
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            return {}
        label = f"{self.name.rpartition('/')[0]}/{name}".lstrip("/")
        try:
            record = checks.read_json(path, constants=True)
            if not isinstance(record, dict):
                raise ValueError(f"is {record!r:.80}; expected a record")
        except (OSError, ValueError) as error:
            self.problems.append(Problem(label, None, str(error)))
            return {}
        found = {}
        for field_name, check in fields.items():
            if (value := record.get(field_name)) is not None:
                try:
                    check(value)
                    found[field_name] = value
                except ValueError as error:
                    self.problems.append(Problem(label, None, f"field {field_name!r} is {value!r:.80}; {error}"))
        return found

    def checked(self, fields: Mapping[str, Check], required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, record with every one of the fields, null where it lacks it) of the rows that make sense."""
        for index, row in enumerate(self.rows()):
            try:
                if not isinstance(row, dict):
                    raise ValueError(f"is {row!r:.80}; expected a record")
                record = {name: row.get(name) for name in fields}
                for name, check in fields.items():
                    if record[name] is None and name not in required:
                        continue
                    try:
                        check(record[name])
                    except ValueError as error:
                        given = f"is {record[name]!r:.80}" if name in row else "is missing"
                        raise ValueError(f"field {name!r} {given}; {error}") from error
            except ValueError as error:
                self.problems.append(Problem(self.name, index, str(error)))
            else:
                yield index, record

    def model(self, recorded: str | None) -> str | None:
        """The model's id: as recorded, else from the folder's name, in which one underscore stands for the slash."""
        name = self.model_folder
        return recorded or (name.replace("_", "/") if name and name.count("_") == 1 else name)


@dataclass(frozen=True)
class _Cell:
    name: str
    params: dict[str, Any]
    write: Callable[[RunWriter], None]


# Params of the tracking contract that the format does not record.
_NOT_RECORDED = dict.fromkeys(("seed", "generator", "prompt_template", "backend", "dtype", "device"))


# --- interventions ----------------------------------------------------------------------------------------------------


def _index(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**20:
        raise ValueError("expected an index, 0 or more")


def _token(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("expected the id of a token")


def _share(value: Any) -> None:
    checks.number(value)
    if not 0 <= value <= 1:
        raise ValueError("expected a share between 0 and 1")


_INTERVENTION: dict[str, Check] = {
    "intervention_type": checks.text,
    "layer_idx": _index,
    "head_idx": _index,
    "target_token_pos": _index,
    "token_pos": _index,  # what patch_results.json calls it
    "logit_difference": checks.number,
    "normalized_logit_difference": checks.number,
    "success_rate": _share,
    "original_top_token": _token,
    "intervened_top_token": _token,
    "program_id": checks.integer,
    "original_program": checks.text,
    "counterfactual_program": checks.text,
    "token_labels": checks.names,
    "target_name": checks.text,
}
_MEASURED = ("intervened_top_token", "success_rate", "normalized_logit_difference", "logit_difference")
_METADATA: dict[str, Check] = {"model_id": checks.text, "rng_seed": checks.integer}


@dataclass
class _Group:
    """The rows of one program: (layer, head or -1, position) -> row."""

    first: dict[str, Any]
    rows: dict[tuple[int, int, int], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    """Target as the file names it -> position."""


def _read_maps(source: _Source) -> list[_Cell]:
    """A cell for each intervention type of the file."""
    metadata = source.beside("experiment_metadata.json", _METADATA)
    groups: dict[tuple[str | None, bool], dict[tuple, _Group]] = {}
    for index, row in source.checked(_INTERVENTION, ["layer_idx"]):
        position = row["target_token_pos"] if row["target_token_pos"] is not None else row["token_pos"]
        labels = row["token_labels"]
        if position is None or (labels is not None and position >= len(labels)):
            expected = f"one of {len(labels)} tokens" if labels else "the position of a token"
            problem = f"field 'target_token_pos' is {position!r}; expected {expected}"
            source.problems.append(Problem(source.name, index, problem))
            continue
        of_type = groups.setdefault((row["intervention_type"], row["head_idx"] is not None), {})
        texts = (row["program_id"], row["original_program"], row["counterfactual_program"])
        group = of_type.setdefault((*texts, tuple(labels or ())), _Group(row))
        place = (row["layer_idx"], -1 if row["head_idx"] is None else row["head_idx"], position)
        if place in group.rows:
            before, known = group.rows[place]
            if any(known[name] != row[name] for name in _MEASURED):
                problem = f"says something else of the cell that row {before} is of; that one is kept"
                source.problems.append(Problem(source.name, index, problem))
                continue
        elif row["original_top_token"] != group.first["original_top_token"]:
            problem = f"field 'original_top_token' is {row['original_top_token']}; it was "
            problem += f"{group.first['original_top_token']} in the first row of this program"
            source.problems.append(Problem(source.name, index, problem))
            continue
        else:
            group.rows[place] = (index, row)
        target = re.sub(r"_layer_\d+(_head_\d+)?$", "", row["target_name"] or "")
        if re.fullmatch(r"\w{1,80}", target, re.ASCII) and not re.fullmatch(r"pos_\d+", target):
            group.names.setdefault(target, position)
    if not groups:
        raise LegacyError("has no row that makes sense")
    return [_maps_cell(source, kind, list(of_type.values()), metadata) for (kind, _), of_type in groups.items()]


def _maps_cell(source: _Source, kind: str | None, groups: list[_Group], metadata: dict[str, Any]) -> _Cell:
    layers, heads = (sorted({place[axis] for group in groups for place in group.rows}) for axis in (0, 1))
    pairs: list[ProgramPair] = []
    maps: list[CausalMap] = []
    for group in groups:
        first = min(index for index, _ in group.rows.values())
        positions = sorted({position for *_, position in group.rows})
        if (cells := len(layers) * len(heads) * len(positions)) > max(MOST_CELLS, 50 * len(group.rows)):
            problem = f"the program's {len(group.rows)} rows are scattered over {cells:,} cells; it is left out"
            source.problems.append(Problem(source.name, first, problem))
            continue
        pair = _pair(source, first, group.first)
        if pair is not None:
            pairs.append(pair)
        maps.append(_map(group, pair, len(pairs) - 1 if pair else -1, kind, layers, heads, positions))
    if not maps:
        raise LegacyError("has no map that can be drawn")
    shared = {name: {getattr(pair.original, name) for pair in pairs} for name in ("hops", "seq_len")}
    known = {
        name: None if not values else values.pop() if len(values) == 1 else "any" for name, values in shared.items()
    }
    whole = all(one.positions == list(range(len(one.tokens))) for one in maps)
    model = source.model(metadata.get("model_id"))
    params = _NOT_RECORDED | {
        "model": model,
        **known,
        "seed": metadata.get("rng_seed"),
        "num_seqs": len(maps),
        "intervention_type": kind,
        "positions": "all" if whole else "some",
        "layers": ",".join(map(str, layers)),
        "require_correct": None,
        "exclude_shallow": None,
    }
    if kind == "residual_stream":
        params["layers_are"] = LAYERS_ARE
    shape = [f"{known['hops']} hops" if known["hops"] else "", f"{known['seq_len']} lines" if known["seq_len"] else ""]
    name = " · ".join(filter(None, [model, *shape, kind, "imported"]))
    return _Cell(name, params, lambda run: _write_maps(run, source, maps, pairs, params))


def _pair(source: _Source, index: int, row: dict[str, Any]) -> ProgramPair | None:
    if row["original_program"] is None or row["counterfactual_program"] is None:
        return None
    try:
        return ProgramPair(Program.parse(row["original_program"]), Program.parse(row["counterfactual_program"]))
    except ProgramError as error:
        problem = f"its map is imported without its programs: {str(error).splitlines()[0]}"
        source.problems.append(Problem(source.name, index, problem))
        return None


def _map(
    group: _Group,
    pair: ProgramPair | None,
    number: int,
    kind: str | None,
    layers: list[int],
    heads: list[int],
    positions: list[int],
) -> CausalMap:
    first, has_heads = group.first, heads != [-1]
    labels: list[str] | None = first["token_labels"]
    tokens = _texts(labels) if labels else ["?"] * (positions[-1] + 1)
    shape = (len(layers), *([len(heads)] if has_heads else []), len(positions))
    arrays = {name: np.full(shape, np.nan, np.float32) for name in _MEASURED[1:]}
    top = np.full(shape, -1, np.int64)
    row_of, head_of, column_of = ({value: at for at, value in enumerate(axis)} for axis in (layers, heads, positions))
    for (layer, head, position), (_, row) in group.rows.items():
        place = (row_of[layer], *([head_of[head]] if has_heads else []), column_of[position])
        for name, array in arrays.items():
            if row[name] is not None:
                array[place] = row[name]
        if row["intervened_top_token"] is not None:
            top[place] = row["intervened_top_token"]
    targets = {name: [at] for name, at in group.names.items()}
    if pair is not None:
        try:
            roles = of_texts(pair.original, tokens).targets()
            targets = {name: at for name, at in roles.items() if len(at) == 1 and at[0] in column_of}
        except PairError:
            pass  # the texts of the tokens are not the program's: its own names stay
    answers = _answers(labels, pair, first["original_top_token"])
    values = [] if pair is None or answers is None else [pair.expected_counterfactual, pair.expected_original]
    vocabulary = {token: str(value) for token, value in zip(answers or (), values, strict=True)}
    null = np.full(2, np.nan, np.float32)
    return CausalMap(
        intervention_type=kind or "not recorded",
        pair=number,
        tokens=tokens,
        layers=layers,
        positions=positions,
        columns=[[position] for position in positions],
        targets=targets,
        target_columns={name: column_of[at[0]] for name, at in targets.items()},
        n_layers=layers[-1] + 1,
        first_difference=0,
        answer_tokens=answers or (-1, -1),
        top_tokens=(-1 if first["original_top_token"] is None else first["original_top_token"], -1),
        min_effect=0.0,
        vocabulary=vocabulary,
        z_clean=null,
        z_counterfactual=null,
        z_patched=np.full((*shape, 2), np.nan, np.float32),
        top=top,
        heads=[[head] for head in heads] if has_heads else [],
        method="imported",
        legacy_success_rate=arrays["success_rate"],
        legacy_normalized_logit_difference=arrays["normalized_logit_difference"],
        legacy_logit_difference=arrays["logit_difference"],
    )


def _byte_level(labels: Sequence[str]) -> bool:
    return any("Ġ" in label or "Ċ" in label for label in labels)


def _texts(labels: list[str]) -> list[str]:
    """The texts of tokens from a vocabulary's own names of them."""
    if not _byte_level(labels):
        return labels
    decoder = decoders.ByteLevel()
    return [decoder.decode([label]) for label in labels]


def _answers(labels: list[str] | None, pair: ProgramPair | None, original_top: int | None) -> tuple[int, int] | None:
    """Token ids of both answers where they can be told from the file; see the head of this module."""
    if pair is None or not labels or not _byte_level(labels):
        return None
    c, o = pair.expected_counterfactual, pair.expected_original
    if not (0 <= c <= 9 and 0 <= o <= 9) or original_top != _FIRST_DIGIT + o:
        return None
    return _FIRST_DIGIT + c, _FIRST_DIGIT + o


def _write_maps(
    run: RunWriter, source: _Source, maps: list[CausalMap], pairs: list[ProgramPair], params: dict[str, Any]
) -> None:
    save_maps(run.folder / "causal_maps" / "00000.safetensors", maps)
    run.log_programs(pairs)
    run.append_jsonl("samples.jsonl", map(_sample_of_pair, pairs))
    mean = None
    if any(one.targets for one in maps):
        adding = MeanOverPairs()
        for one in maps:
            adding.add(one)
        mean = adding.result()
    metrics, curves = _metrics(maps, mean)
    run.log_metrics(metrics)
    for layer, values in curves.items():
        run.log_metrics(values, step=layer)
    problems = [str(problem) for problem in source.problems[:1000]]
    run.log_json("summary.json", {"metrics": metrics, "params": params, "problems": problems})
    if pairs:
        texts = [text for pair in pairs for text in (pair.original.text, pair.counterfactual.text)]
        run.log_dataset("imported pairs", texts, {"file": source.name})
    for stem, chart in charts.pictures(maps[0], mean).items():
        charts.save_chart(chart, run.folder, stem)


def _metrics(
    maps: list[CausalMap], mean: MeanCausalMap | None
) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    rates = [one.legacy_success_rate for one in maps if one.legacy_success_rate is not None]
    known = [rate[~np.isnan(rate)] for rate in rates]
    known = [rate for rate in known if rate.size]
    metrics: dict[str, float | None] = {
        "pairs_used": len(maps),
        "interventions": sum(
            int((~np.isnan(np.stack([getattr(one, n) for n in LEGACY]))).any(0).sum()) for one in maps
        ),
    }
    if known:
        weights = [rate.size for rate in known]
        overall = bootstrap_mean([float(rate.mean()) for rate in known], is_rate=True, weights=weights)
        metrics |= overall.metrics("legacy_success_rate")
    of_mean, curves = mean.to_metrics() if mean is not None else ({}, {})
    return metrics | of_mean, curves


def _sample_of_pair(pair: ProgramPair) -> dict[str, Any]:
    """The pair as a sample of which the model's answers were not recorded."""
    record = pair.to_record()
    return {
        **dict.fromkeys(("prompt", "raw_output", "parsed", "correct", "error")),
        **{name: record[name] for name in ("seed", "seq_len", "hops", "counterfactual", "expected_counterfactual")},
        "program": record["original"],
        "expected": record["expected_original"],
        "chain": record["variable_chain"],
    }


# --- samples ----------------------------------------------------------------------------------------------------------

_SAMPLE: dict[str, Check] = {
    "experiment": checks.text,
    "model_id": checks.text,
    "seq_len": checks.integer,
    "seq_id": checks.integer,
    "program": checks.text,
    "true_answer": checks.answer,
    "predicted_answer": checks.answer,
    "correct": checks.boolean,
    "raw_output": checks.text,
    "query_hops": checks.integer,
}


def _read_samples(source: _Source) -> list[_Cell]:
    """A cell for each model, hops (where they were recorded) and length."""
    cells: dict[tuple[str, int | None, int], list[dict[str, Any]]] = {}
    required = ["model_id", "seq_len", "program", "true_answer", "correct"]
    experiments = set()
    for _, row in source.checked(_SAMPLE, required):
        cells.setdefault((row["model_id"], row["query_hops"], row["seq_len"]), []).append(row)
        experiments.add(row["experiment"])
    if not cells:
        raise LegacyError("has no row that makes sense")
    if len(experiments) == 1 and (name := experiments.pop()):
        source.experiment = name[:200]
    _check_summary(source, [row for rows in cells.values() for row in rows])
    return [_samples_cell(source, *key, rows) for key, rows in cells.items()]


def _check_summary(source: _Source, rows: list[dict[str, Any]]) -> None:
    summary = source.beside("summary.json", {"overall_accuracy": checks.number, "total_samples": checks.integer})
    accuracy = sum(row["correct"] for row in rows) / len(rows)
    for name, found in (("total_samples", len(rows)), ("overall_accuracy", accuracy)):
        if name in summary and abs(summary[name] - found) > 1e-9:
            label = f"{source.name.rpartition('/')[0]}/summary.json".lstrip("/")
            problem = f"field {name!r} is {summary[name]}; the rows that were imported give {found}"
            source.problems.append(Problem(label, None, problem))


def _samples_cell(source: _Source, model: str, hops: int | None, seq_len: int, rows: list[dict[str, Any]]) -> _Cell:
    shown = "any" if hops is None else hops
    params = _NOT_RECORDED | {"model": model, "hops": shown, "seq_len": seq_len, "num_seqs": len(rows)}
    name = f"{model} · {shown} hops · {seq_len} lines · imported"

    def write(run: RunWriter) -> None:
        run.append_jsonl("samples.jsonl", (_sample(row) for row in rows))
        accuracy = wilson(sum(row["correct"] for row in rows), len(rows))
        metrics = accuracy.metrics("accuracy") | {"num_samples": len(rows)}
        run.log_metrics(metrics)
        run.log_json("summary.json", {"model": model, "hops": hops, "seq_len": seq_len, "metrics": metrics})
        run.log_dataset("imported programs", [row["program"] for row in rows], {"file": source.name})

    return _Cell(name, params, write)


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **dict.fromkeys(("seed", "prompt", "chain", "error")),
        "seq_len": row["seq_len"],
        "hops": row["query_hops"],
        "program": row["program"],
        "expected": row["true_answer"],
        "raw_output": row["raw_output"],
        "parsed": row["predicted_answer"],
        "correct": row["correct"],
    }
