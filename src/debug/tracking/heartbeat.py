"""A sign of life: which process carries out a run, and when it last said so. Knows no store.

It keeps two processes from carrying out one cell; a process that is suspended for long, or cut off from the store, may
lose its cell to another. A process of this machine is asked for directly, one of another is believed for LASTS; whether
that one is gone is told by watching it, since clocks of two machines differ.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from debug.checks import from_json

TAG = "debug.heartbeat"
EVERY = 30.0  # seconds
LASTS = 4 * EVERY


def own_tag() -> str:
    """The tag of this process's sign on a study, which several may carry out; that on a cell is TAG."""
    return f"{TAG}.{socket.gethostname()}.{os.getpid()}"


def is_tag(name: str) -> bool:
    return name == TAG or name.startswith(f"{TAG}.")


def signs(tags: Mapping[str, str]) -> list[str]:
    """The signs among a run's tags, the latest first."""
    return sorted((value for name, value in tags.items() if is_tag(name)), key=lambda sign: -(heard(sign) or 0.0))


def sign() -> str:
    """This process's, now."""
    return json.dumps(_who(os.getpid()) | {"at": time.time()})


def _who(pid: int) -> dict[str, object]:
    """The machine (a container counts as one), the number of a process, and when it was started: numbers come again."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else ""
    try:
        process = psutil.Process(pid)
        started = None if process.status() == psutil.STATUS_ZOMBIE else _started(process)
    except (psutil.Error, OSError):
        started = None
    return {"host": socket.gethostname(), "machine": f"{machine} {space}", "pid": pid, "started": started}


def _started(process: psutil.Process) -> float:
    """Unix seconds; on Linux clock ticks since the machine was booted, which setting its clock does not change."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return process.create_time()
    return float(stat.read_text().rpartition(")")[2].split()[19])


def read(tag: str | None) -> dict[str, object] | None:
    """What a sign says; None where there is none, or one that is not of this form."""
    try:
        said = from_json((tag or "").encode())
    except ValueError:
        return None
    right = isinstance(said, dict) and type(said.get("pid")) is int and isinstance(said.get("at"), int | float)
    return said if right else None


def heard(tag: str | None) -> float | None:
    """When a process last said so (Unix, seconds); None where it did not."""
    said = read(tag)
    return None if said is None else float(said["at"])  # type: ignore[arg-type]  (as read)


def is_mine(tag: str | None) -> bool:
    said = read(tag)
    return said is not None and said | _who(os.getpid()) == said


def of_one_process(tag: str | None, other: str | None) -> bool:
    """Whether two signs are of one process; a run that has none is anybody's."""
    one, two = (({} if said is None else said) | {"at": None} for said in (read(tag), read(other)))
    return tag is None or one == two


def alive(tag: str | None) -> str | None:
    """The process of a sign in words, where it is there; None where it is gone or nothing has been heard of it."""
    said = read(tag)
    if said is None:
        return None
    pid, age = int(said["pid"]), time.time() - (heard(tag) or 0)  # type: ignore[call-overload]  (as read)
    here = _who(pid)
    there = said | here == said and here["started"] is not None if is_here(tag) else abs(age) < LASTS
    return f"process {pid} on {said.get('host')}, last heard of {max(0, age):.0f} s ago" if there else None


def is_here(tag: str | None) -> bool:
    """Whether a sign is that of a process of this machine."""
    said, here = read(tag) or {}, _who(os.getpid())
    return all(said.get(name) == here[name] for name in ("host", "machine"))
