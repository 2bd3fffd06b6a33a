"""The command line: a thin skin. A command reads its arguments, calls one function, prints.

Exit codes: 0 all well, 1 partly failed, 2 bad input. Nothing here imports torch before a command
that needs it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from d2net.cli import console, export, extract, info, match, show

app = typer.Typer(
    name="d2net",
    help="Match photos across night, season and years.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("match")(match.match)
app.command("extract")(extract.extract)
app.command("export")(export.export)
app.command("show")(show.show)
app.command("weights")(info.weights)
app.command("info")(info.info)


def main() -> None:
    """Entry point of the `d2net` command."""
    from d2net.errors import D2NetError

    try:
        app()
    except D2NetError as error:
        console.error(str(error))
        sys.exit(console.BAD_INPUT)
