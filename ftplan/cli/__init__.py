"""The command line: parse, call a workflow, print, exit. A module a command; heavy imports inside commands."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Final

import typer

from ftplan import __version__
from ftplan.cli import helping
from ftplan.cli.completing import command_word, is_asked
from ftplan.errors import FtplanError

NAME: Final = "ftplan"
COMMANDS: Final = {
    "plan": ("plan", "Choose what fits and is fastest, and say why."),
    "check": ("check", "Whether another tool's configuration fits, and what would mend it."),
    "estimate": ("estimate", "Memory and time of one exact configuration."),
    "need": ("need", "Which cards a model needs, by method."),
    "max": ("max_command", "Longest sequence, largest micro-batch, highest rank that fit."),
    "tune": ("tune", "Measure the best plans here, and take the fastest."),
    "doctor": ("doctor", "Whether this machine can do a run now, and what to mend."),
    "run": ("run_command", "Train a plan, or resume what stopped."),
    "report": ("report", "What a run's folder tells, finished or not."),
    "merge": ("merge", "Add a trained adapter to its base."),
    "predict": ("predict", "What a trained model makes of a data set, beside its base."),
    "calibrate": ("calibrate", "Measure this machine, so that later plans go by it."),
    "ui": ("ui_command", "A local page to plan, check, launch and watch on."),
    "models": ("models", "Search the catalogue of models."),
    "gpus": ("gpus", "Search the catalogue of GPUs."),
}
"""Each command's module in this package, and what it does in a few words."""

OF_PATHS: Final = frozenset({errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP})
"""What a path that a user named may be at fault for, wherever it is looked at."""
SHOWN_CHARACTERS: Final = 80
HELP: Final = "Plan and launch fine-tuning of language models: what fits your GPUs, how fast, and why."
EXAMPLES: Final = """
# what fits two cards of 24 GB, how fast, and why
ftplan plan --model Qwen-7B --gpus 2x24GB
# a small real training, offline, on this machine's CPU
ftplan run --demo
# all that a command takes
ftplan plan --help
"""


def build_app(only: str | None = None) -> typer.Typer:
    """The application with every command, or with the one that is about to run: building the others costs time."""
    app = typer.Typer(
        name=NAME,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: boxes cut long option names
        help=HELP,
        epilog=EXAMPLES,
        cls=helping.Group,
        context_settings=helping.context_settings(),
    )
    app.callback()(_root)
    for name, (module, short_help) in COMMANDS.items():
        if only in (None, name):
            helping.register(app, name, import_module(f"ftplan.cli.{module}"), short_help)
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ftplan {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


def _root(version: Version = False) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (default: the process's) and return the exit code."""
    if arguments is None and is_asked():
        return _complete()
    return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(given: list[str]) -> int:
    _never_fail_to_encode()
    only = given[0] if given and given[0] in COMMANDS else None
    try:
        result = build_app(only)(args=given, prog_name=NAME, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except FtplanError as error:
        return _report(error.message, error.hint, error.exit_code)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _report("stopped", "", 130)
    except BrokenPipeError:
        # The reader of a pipe has left (`ftplan … | head`): nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _report(f"cannot write the output: {error.strerror}", "free some space, or write elsewhere", 2)
        if isinstance(error, OSError) and error.errno in OF_PATHS and error.filename is not None:
            return _report(f"cannot use {_shortened(str(error.filename))}: {error.strerror}", "name another path", 2)
        usage = _usage_error(error)
        if usage is None:
            raise
        if not given:
            typer.echo(usage, err=True)
            return 2
        return _report(usage, f"see ftplan {only} --help" if only else "see ftplan --help", 2)


def _complete() -> int:
    """Answer a shell. Nothing that fails is told: it would land in the line that is being typed."""
    try:
        word = command_word(os.environ)
        build_app(word if word in COMMANDS else None)(args=[], prog_name=NAME, standalone_mode=False)
    except Exception:
        return 1
    return 0


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _never_fail_to_encode() -> None:
    """A terminal that cannot show a character gets it spelled out, and bars in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_errors(stream.encoding))


def _errors(encoding: str) -> str:
    if encoding.lower().replace("-", "") == "utf8":
        return "backslashreplace"  # of lone surrogates in names of files
    from ftplan.render.spelling import register

    return register()


def _usage_error(error: Exception) -> str | None:
    """The message of a command-line parsing error, whichever click typer carries; None for anything else."""
    show = getattr(error, "format_message", None)
    return str(show()) if callable(show) and hasattr(error, "exit_code") else None


def _report(message: str, hint: str, code: int) -> int:
    from ftplan.render.console import print_error

    print_error(message, hint)
    return code
