"""The command line: a thin skin. A command reads its arguments, calls one function, prints.

Exit codes: 0 all well, 1 partly failed, 2 bad input or output, 130 stopped by Ctrl-C. Nothing here
imports torch before a command that needs it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import typer

from d2net.cli import (
    console,
    data,
    evaluate,
    export,
    extract,
    info,
    localize,
    match,
    options,
    pairs,
    reconstruct,
    serve,
    show,
    train,
)
from d2net.errors import D2NetError

app = typer.Typer(
    help="Match photos across night, season and years.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    *(match.match, extract.extract, pairs.pairs, reconstruct.reconstruct, localize.localize),
    *(show.show, serve.serve),
    *(train.train, info.weights, info.info),
):
    app.command()(options.spread(_command))
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")

# Click's ClickException: typer has a copy of click, or none, and gives it no public name.
_UsageError: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Entry point of the `d2net` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error
    console.show_logged_warnings()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="d2net", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "d2net"
        code = _failed(f"{error.format_message().rstrip('.')}; see {command} --help")
    except D2NetError as error:
        code = _failed(str(error))
    except OSError as error:  # of what no module expects to fail
        code = _failed(f"{error.filename or ''}: {error.strerror or error}")
    except typer.Abort:
        code = console.INTERRUPTED
    if code == console.INTERRUPTED:
        _failed("stopped by Ctrl-C; start the same command again to go on")
    sys.exit(code)


def _failed(message: str) -> int:
    console.error(message)
    if "--json" in sys.argv:
        console.print_json({"error": message})
    return console.BAD_INPUT
