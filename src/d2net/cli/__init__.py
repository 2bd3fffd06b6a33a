"""The command line. Each command reads its options, calls one function and prints the result.

Exit codes: 0 success, 1 some photos or pairs failed or nothing was found, 2 wrong input or output,
130 stopped by Ctrl-C. torch is imported only by the commands that need it, so `--help` is fast.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer

import d2net
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

app = options.app("Match photos across day and night, seasons and years.")
for _command in (
    *(match.match, extract.extract, pairs.pairs, reconstruct.reconstruct, localize.localize),
    *(show.show, serve.serve),
    *(train.train, train.distill, info.weights, info.info),
):
    options.add_command(app, _command)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")

# Click's ClickException. Typer may contain a copy of click, and gives it no public name.
_UsageError: Any = typer.BadParameter.__mro__[2]


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"d2net {d2net.__version__}")
        raise typer.Exit


@app.callback()
def _options_without_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `d2net` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error
    logging.getLogger("d2net").handlers = [console.WarningHandler(logging.WARNING)]
    warnings.filterwarnings("ignore", module=r"(PIL|filelock)\.")  # of metadata
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="d2net", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "d2net"
        message = " ".join(error.format_message().split()).rstrip(".")
        see = " See" if message.endswith("?") else "; see"
        code = _failed(f"{message}{see} {command} --help")
    except D2NetError as error:
        code = _failed(str(error))
    except OSError as error:  # one that no module turns into a D2NetError
        named = f"{error.filename}: " if error.filename else ""
        code = _failed(f"{named}{error.strerror or error}")
    except typer.Abort:
        code = console.INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        # After Ctrl-C, NumPy's zip files raise a ValueError.
        cause: BaseException | None = error
        while not isinstance(cause, KeyboardInterrupt):
            if cause is None:
                raise
            cause = cause.__cause__ or cause.__context__
        code = console.INTERRUPTED
    if code == console.INTERRUPTED:
        _failed("stopped by Ctrl-C; run the same command again to resume")
    sys.exit(code)


def _failed(message: str) -> int:
    console.error(message)
    if "--json" in sys.argv:
        with suppress(OSError):  # the disk is full, for example
            console.print_json({"error": message})
    return console.BAD_INPUT
