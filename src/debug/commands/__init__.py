"""The command `debug`: a module a command, each with a parser and a main function. The scripts in runs/ are they."""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from debug import cli

COMMANDS = {
    name: name for name in ("demo", "accuracy", "trace", "rerun", "seeds", "study", "dashboard", "mlflow", "export")
} | {"import": "importing", "paper": "paper", "train": "train", "site": "site", "store": "store"}
"""Command -> module, in the order of the help."""


def main() -> None:
    """What the shell's ``debug`` and ``python -m debug`` do."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    match sys.argv[1:]:
        case ["help", name] if name in COMMANDS:
            run(name, ["--help"])
        case [] | ["help" | "-h" | "--help"] | ["-h" | "--help", *_]:
            print(_help())
        case ["--version", *_]:
            from importlib.metadata import version

            print(f"debug-lm {version('debug-lm')}")
        case [name, *words] if name in COMMANDS:
            run(name, words)
        case ["help", name, *_] | [name, *_]:
            cli.Parser(prog="debug").error(f"there is no command {name[:40]!r}{cli.did_you_mean(name, COMMANDS)}")


def run(name: str, words: Sequence[str] | None = None, called: str | None = None) -> None:
    """Carry out a command and end the process as commands here do.

    Args:
        words: the command line behind its name (default: this process's).
        called: what people typed, for the help: ``debug trace``, or a script of a checkout.
    """
    module = import_module(f"{__name__}.{COMMANDS[name]}")
    parser = module.parser()
    parser.prog = called or f"debug {name}"
    parser.description = re.sub(rf"\bdebug {name}\b", parser.prog, parser.description or "")
    cli.run(module.main, parser.parse_args(words))


def _help() -> str:
    about = {name: _first_line(Path(__file__).with_name(f"{module}.py")) for name, module in COMMANDS.items()}
    return "\n".join(
        [
            "usage: debug COMMAND ...\n",
            "Do language models track the variables of a program, and where inside the model does that happen?\n",
            *(f"  {name:10} {line}" for name, line in about.items()),
            "\ndebug COMMAND --help has its options, with examples. Begin with: debug demo, then debug dashboard",
            'Tab completion (bash, zsh): eval "$(register-python-argcomplete debug)"',
        ]
    )


def _first_line(file: Path) -> str:
    """The first line of a module's docstring, without importing it."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def _complete() -> None:
    """Answer a shell that completes a command line: names of commands, then options and their choices."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="debug")
    there = parser.add_subparsers()
    words = os.environ.get("COMP_LINE", "").split()[1:2]
    for name, module in COMMANDS.items():
        own = [import_module(f"{__name__}.{module}").parser()] if words == [name] else []
        there.add_parser(name, parents=own, add_help=not own, conflict_handler="resolve")
    argcomplete.autocomplete(parser)
