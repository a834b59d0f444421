"""Processes beside this one that carry out the same study: on this machine, on a cluster through submitit, or Ray.

Each is told the same command, joins the study in the store, and takes cells until none is left. What places them, gives
them GPUs and memory, and starts them again is submitit's and Ray's affair.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated

from debug.errors import InputError
from debug.kinds import Argument, Json
from debug.options import OneOf
from debug.provenance import without_passwords

EXECUTORS = ("local", "submitit", "ray")
_OWN = ("executor", "workers", "executor_args")
_ENVIRONMENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "DEBUG_SPOOL")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Who carries out a study.

    Args:
        command, options: of :mod:`debug.commands`, that each worker is given.
        executor: "local": this process and others of this machine; "submitit" and "ray": jobs and tasks, while this
            process waits, and ends the study.
        number: how many.
        settings: what submitit's ``update_parameters`` takes (with ``cluster`` and ``folder`` of its executor), or what
            Ray's tasks do (``num_gpus``, ``memory``; ``address`` of its cluster).

    Raises:
        InputError: no such executor, or it is not installed.
    """

    command: str = ""
    options: Mapping[str, Json] = field(default_factory=dict)
    executor: Annotated[str, OneOf(EXECUTORS)] = "local"
    number: int = 1
    settings: Mapping[str, Argument] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise InputError(f"executor is {self.executor!r}; expected one of {', '.join(EXECUTORS)}")
        if self.number < 1:
            raise InputError(f"workers is {self.number}; expected 1 or more")
        if self.executor != "local":
            try:
                import_module(self.executor)
            except ImportError as error:
                raise InputError(
                    f"executor {self.executor!r} is not installed: pip install debug-lm[{self.executor}]"
                ) from error
        elif self.settings:
            raise InputError(f"executor_args are {dict(self.settings)}; those are of submitit or ray")

    @property
    def computes(self) -> bool:
        """Whether this process carries out cells, too."""
        return self.executor == "local"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it lasts they are at work; it ends when they have ended. What ended one is logged: its cells are left
        to the others."""
        begin = {"local": self._local, "submitit": self._submitit, "ray": self._ray}[self.executor]
        ended = begin()
        try:
            yield
        except BaseException:
            ended(True)
            raise
        ended(False)

    def _local(self) -> Callable[[bool], None]:
        told = json.dumps([self.command, self.options])
        code = "import json, sys; from debug.executors import work; work(*json.load(sys.stdin))"
        begin = [sys.executable, "-c", code]
        processes = [subprocess.Popen(begin, stdin=subprocess.PIPE, text=True) for _ in range(self.number - 1)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(told)
            process.stdin.close()

        def ended(stopped: bool) -> None:
            for process in processes:
                if stopped:
                    process.terminate()
                if process.wait() and not stopped:
                    logger.error("worker %d has ended with exit status %d", process.pid, process.returncode)

        return ended

    def _submitit(self) -> Callable[[bool], None]:
        import submitit

        settings = dict(self.settings)
        folder = settings.pop("folder", "submitit")
        executor = submitit.AutoExecutor(folder=folder, cluster=settings.pop("cluster", None))
        executor.update_parameters(name=f"debug-{self.command}", **settings)
        with executor.batch():
            jobs = [executor.submit(_Job(self.command, dict(self.options))) for _ in range(self.number)]
        logger.info("%d jobs: %s; their logs are in %s", len(jobs), ", ".join(job.job_id for job in jobs), folder)

        def ended(stopped: bool) -> None:
            for job in jobs:
                if stopped:
                    job.cancel()
                elif (error := job.exception()) is not None:
                    logger.error("job %s has failed: %s", job.job_id, without_passwords(str(error))[-2000:])

        return ended

    def _ray(self) -> Callable[[bool], None]:
        import ray
        from ray.exceptions import RayError

        settings = dict(self.settings)
        address = settings.pop("address", None)
        if not ray.is_initialized():
            variables = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            ray.init(
                address=address, runtime_env={"env_vars": variables}, logging_level=logging.WARNING, log_to_driver=False
            )
        task = ray.remote(**{"num_cpus": 1, "max_retries": 3, **settings})(work)
        tasks = [task.remote(self.command, dict(self.options)) for _ in range(self.number)]

        def ended(stopped: bool) -> None:
            for each in tasks:
                if stopped:
                    ray.cancel(each)
                    continue
                try:
                    ray.get(each)
                except RayError as error:
                    logger.error("a task has failed: %s", without_passwords(str(error))[-2000:])
            ray.shutdown()

        return ended


class _Job:
    """A job of submitit's: one that is preempted is queued again, and takes up what it left."""

    def __init__(self, command: str, options: dict[str, Json]) -> None:
        self.told = (command, options)

    def __call__(self) -> None:
        work(*self.told)

    def checkpoint(self) -> object:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def work(command: str, options: dict[str, Json]) -> None:
    """Carry out a command's studies beside others, until no cell of them is left to take."""
    from debug import cli, tracking

    def main(arguments: argparse.Namespace) -> None:
        try:
            import_module(f"debug.commands.{command}").main(arguments)
        except tracking.LeftToOthers as left:
            logger.info("%s", left)

    own = {"is_worker": True, "fresh": False, "executor": "local", "workers": 1, "executor_args": []}
    cli.run(main, argparse.Namespace(**{**options, **own}))


def chosen(command: str, options: argparse.Namespace) -> Workers:
    """What the options of :func:`debug.commands.study.going_on` say."""
    told = {name: value for name, value in vars(options).items() if name not in _OWN}
    return Workers(command, told, options.executor, options.workers, dict(options.executor_args))
