"""What every command does alike: options of store and model, and an end without a traceback.

A mistake of the caller's prints one message and exits 2; Ctrl-C, a terminate signal and a terminal that is closed leave
a valid store and exit 130. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from debug.errors import DebugError, InputError, did_you_mean
from debug.kinds import Argument, Json
from debug.provenance import without_passwords


class Parser(argparse.ArgumentParser):
    """Reads options by their whole names; a mistake in them is one sentence, without the usage of every option."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith(_UNKNOWN):
            unknown = [text.partition("=")[0] for text in message.removeprefix(_UNKNOWN).split() if text[:1] == "-"]
            message += did_you_mean(unknown[0], flags) if unknown else ""
        self.exit(2, f"error: {message}; --help lists the options\n")


TP = "tp"  # as debug.models has it, which imports torch
_UNKNOWN = "unrecognized arguments: "


def store_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the command's docstring, with the option that names the store."""
    made = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else mlruns/mlflow.db)")
    return made


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The same with the options of commands that run a model."""
    made = store_parser(doc)
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32; bfloat16 on a GPU")
    made.add_argument(
        "--device",
        help="as torch names it; auto: layers over all GPUs; tp: weights over what torchrun has started; ndif: as "
        "--remote (default: the first GPU, else cpu)",
    )
    return made


def remote_options(made: argparse.ArgumentParser) -> None:
    """Options of commands that patch a model which may be elsewhere; they say what --device says."""
    made.add_argument(
        "--remote",
        dest="device",
        action="store_const",
        const="ndif",
        help="the model is on NDIF, and traces run there (key: NDIF_API_KEY); answers' logits alone come back",
    )
    made.add_argument(
        "--ndif-host",
        dest="device",
        type=lambda host: f"ndif:{host}",
        metavar="URL",
        help='the same on an NDIF server of one\'s own; "local" simulates one in this process',
    )


def backend_options(made: argparse.ArgumentParser) -> None:
    """Options of commands that ask models and look at nothing inside."""
    made.add_argument("--backend", help="transformers, vllm, openai, or auto (default); where it is named, it says why")
    made.add_argument("--quantization", choices=["4bit", "8bit"], help="weights through bitsandbytes, on a GPU")
    made.add_argument(
        *("--engine-args", "--engine-arg"),
        nargs="+",
        type=setting,
        default=[],
        help="vLLM's own: tensor_parallel_size=2 max_model_len=4096 quantization=awq gpu_memory_utilization=0.4; with "
        "--backend openai fields of each request: repetition_penalty=1",
    )
    made.add_argument(
        "--base-url",
        help="of --backend openai: where the server's API begins, such as http://localhost:8000/v1 (default: "
        "OPENAI_BASE_URL); its key is read from OPENAI_API_KEY",
    )
    made.add_argument(
        "--price",
        nargs=2,
        type=float,
        metavar=("PROMPT", "COMPLETION"),
        help="of --backend openai: what a million tokens of each cost, for the metric cost",
    )
    made.add_argument(
        "--batch-size",
        type=int,
        default=32,
        help="prompts completed, or requests made, at once (default 32; vLLM: all)",
    )


def how(options: argparse.Namespace) -> dict[str, Argument]:
    """What those options and the shared ones say about how models are run."""
    named = ("dtype", "device", "backend", "quantization", "base_url", "price")
    return {name: getattr(options, name) for name in named} | {"engine_args": dict(options.engine_args)}


def setting(text: str) -> tuple[str, Json]:
    """Option type: ``name=value``, the value as JSON where it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, such as max_model_len=4096")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def where_to_look(link: str) -> str:
    """How a run that was logged is looked at: in the dashboard, and at its address in the MLflow UI."""
    made = (Path(__file__).parents[2] / "Makefile").is_file()  # a checkout, whose commands are not on the PATH
    dashboard, ui = (f"{'make' if made else 'debug'} {name}" for name in ("dashboard", "mlflow"))
    return f"look: {dashboard}; or {ui}, then {link}"


def hops(text: str) -> int | None:
    """Option type: a number of hops, or ``any`` for the generator's own draw."""
    return None if text == "any" else int(text)


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Run a command's main function and end as all of them do."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("debug").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, _stop)  # also where it is ignored, as in a shell script's `command &`
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        on_terminal = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]
        signal.signal(signal.SIGHUP, lambda *_: _hang_up(on_terminal))
    signal.signal(signal.SIGALRM, _stop_unless_heard)
    try:
        if getattr(arguments, "device", None) == TP:
            _take_part(arguments)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked where a worker has just forked this one
        main(arguments)
    except KeyboardInterrupt:
        writing = sys.modules.get("debug.tracking.writing")  # not imported: then no run was begun
        kept = " The runs so far are in the store; the one that was stopped is marked KILLED."
        print(f"\nStopped.{kept if writing and writing.Heart.begun else ' No run had begun.'}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if not isinstance(error, DebugError) and not no_room:
            # a bug; what a user can act on says what to do, a traceback would bury it
            print(without_passwords("".join(traceback.format_exception(error))), file=sys.stderr)
            sys.exit(1)
        print(without_passwords(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _take_part(arguments: argparse.Namespace) -> None:
    """One of several processes that torchrun has started runs the same forward passes as the first, which logs them.

    All begin anew: a study that the first went on with would ask the others for forward passes that they do not make.

    Raises:
        InputError: more is asked of the first process than the others know.
    """
    reads = [name for name in ("run_id", "source_run") if getattr(arguments, name, None)]
    if reads or getattr(arguments, "workers", 1) != 1 or getattr(arguments, "executor", "local") != "local":
        raise InputError(
            f"--device {TP}: the processes that torchrun has started carry out new studies, by themselves; they have "
            "no other workers, repeat no logged run and patch from none"
        )
    arguments.fresh = True
    if int(os.environ.get("RANK", "0")) == 0:
        return
    folder = tempfile.TemporaryDirectory(prefix="debug-rank-")
    atexit.register(folder.cleanup)
    arguments.tracking_uri = f"sqlite:///{folder.name}/mlflow.db"
    os.environ["DEBUG_SPOOL"] = f"{folder.name}/spool"
    _say_nothing([sys.stdout.fileno(), sys.stderr.fileno()])


def _stop(*_: object) -> None:
    """Ctrl-C, said again until it is heard: numpy's ``RandomState.choice`` and callbacks of weak references drop it."""
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    raise KeyboardInterrupt


def _hang_up(on_terminal: Sequence[int]) -> None:
    """The terminal is gone: what is written there would raise an error where the run is being ended."""
    _say_nothing(on_terminal)
    signal.raise_signal(signal.SIGINT)


def _say_nothing(descriptors: Sequence[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)


def _stop_unless_heard(*_: object) -> None:
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    if error is None:
        signal.raise_signal(signal.SIGINT)
