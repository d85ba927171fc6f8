"""The commands, and what their failures look like."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import typer

from backcast.cli import check, collect, demo, invert, report, score, search, select, split, sweep
from backcast.errors import InputError

#: Typer carries a click of its own, or uses the installed one: the base of its public error tells which.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Work backwards from the score you need to the data you need.",
    epilog="Exit codes: 0 done; 1 the answer is no; 2 bad input, said in one line.",
)
for command in (demo, select, collect, score, split, search, sweep, invert, check, report):
    app.command(name=command.__name__.rpartition(".")[2])(command.run)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Work backwards from the score you need to the data you need."""
    if version:
        from importlib.metadata import version as installed

        print(installed("backcast"))
        raise typer.Exit


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    # Tokenizers' threads and the data loaders' forks warn about each other.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("backcast").setLevel(logging.INFO)
    try:
        sys.exit(app(standalone_mode=False))
    except InputError as error:
        _fail(str(error), 2)
    except UsageError as error:
        _fail(f"{error.format_message()} (see --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command resumes where it stopped", 130)


def _fail(message: str, code: int) -> None:
    print(f"backcast: {message}", file=sys.stderr)
    sys.exit(code)
