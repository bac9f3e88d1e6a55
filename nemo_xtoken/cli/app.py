"""The commands put together, and how the process ends.

0 done, 1 failed, 2 wrong use, 85 stopped by a signal with a checkpoint to go on from, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import nemo_xtoken
from nemo_xtoken.cli import align, data, doctor, evaluate, export, launch, plan, projection, report, teacher, train
from nemo_xtoken.cli.console import print_error, stderr
from nemo_xtoken.errors import StoppedError, WrongUseError, XTokenError

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, which some versions of typer keep under a private name

STOPPED = 85
"""Tells a launcher to start the same command again."""

app = typer.Typer(
    name="nemo-xtoken",
    help="Distil a language model into one with another tokenizer.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("align")(align.align)
app.add_typer(projection.app, name="projection")
app.add_typer(data.app, name="data")
app.add_typer(teacher.app, name="teacher")
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("report")(report.report)
app.add_typer(launch.app, name="launch")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nemo-xtoken {nemo_xtoken.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; what goes wrong becomes one line on stderr."""
    try:
        return app(args=list(arguments), prog_name="nemo-xtoken", standalone_mode=False) or 0
    except WrongUseError as error:
        print_error(str(error))
        return 2
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "nemo-xtoken"
        print_error(f"{error.format_message()} Try {command} --help")
        return 2
    except StoppedError as error:
        stderr.print(str(error), soft_wrap=True)
        return STOPPED
    except XTokenError as error:
        print_error(str(error))
        return 1
    except OSError as error:
        print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text, nor a terminal know every character
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
