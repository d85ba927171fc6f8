"""The commands, and what their failures look like."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import typer

from backcast import __version__
from backcast.cli import (
    check,
    collect,
    demo,
    diff,
    export,
    invert,
    report,
    score,
    search,
    select,
    split,
    sweep,
)
from backcast.errors import InputError

#: Typer carries a click of its own, or uses the installed one: the base of its public error tells which.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 the answer is no; 2 bad input, said in one line.",
)
for command in (demo, select, collect, score, split, search, sweep, invert, check, diff, export, report):
    app.command(command.__name__.rpartition(".")[2], cls=getattr(command, "Command", None))(command.run)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Work backwards from the score you need to the data you need."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    # Tokenizers' threads and the data loaders' forks warn about each other.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # as our own progress: no bars in a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("backcast").setLevel(logging.INFO)
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error), 2)
    except UsageError as error:
        _fail(f"{error.format_message()} (see --help)", 2)
    except OSError as error:
        _fail(f"{error.filename2 or error.filename or 'a file'}: {error.strerror or error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # which Typer makes of a KeyboardInterrupt
        _fail("interrupted; the same command resumes where it stopped", code)
    sys.exit(code)


def _fail(message: str, code: int) -> None:
    print(f"backcast: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)
