"""The commands of the program but ``container`` and ``volume``, which ``bench.cli`` hands on before this is imported.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bench.cli.images import app as image_app
from bench.cli.vm import app as vm_app
from bench.errors import IsomarkError, UsageError

TYPER_INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt."""

app = typer.Typer(
    name="isomark",
    help="What does it cost to run this as a virtual server rather than as a container?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the framed help costs 70 ms of imports
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(image_app)
app.add_typer(vm_app)


def main() -> None:
    """Run the command line: exit 0, 1 (the work failed) or 2 (asked wrongly)."""
    process = os.getpid()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # a library's forked helper inherits this; were it to unwind, it would remove what the run owns
        if os.getpid() != process:
            os._exit(1)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        app()
    except SystemExit as ended:
        if ended.code != TYPER_INTERRUPTED:
            raise
        _say("interrupted", "")
        sys.exit(1)
    except IsomarkError as error:
        _say(error.message, error.hint)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        _say(f"the host refused: {error}", "isomark doctor looks for the usual reasons")
        sys.exit(1)


def _say(message: str, hint: str) -> None:
    """Print an error and its remedy to standard error."""
    sys.stderr.write(f"isomark: {message}\n")
    if hint:
        sys.stderr.write(f"  hint: {hint}\n")


def _list(text: str | None) -> list[str] | None:
    """Split a comma-separated option; ``None`` stays ``None``."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("an empty list of names", hint="write them like native,container")
    return names


_HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_HANDED_ON, add_help_option=False)
def container(context: typer.Context) -> None:
    """Start containers and look after them."""
    raise typer.Exit(_engine(context.args, "container"))


@app.command(context_settings=_HANDED_ON, add_help_option=False)
def volume(context: typer.Context) -> None:
    """Keep data that outlives containers."""
    raise typer.Exit(_engine(context.args, "volume"))


def _engine(arguments: list[str], group: str) -> int:
    from runtimes.engine.cli import main as engine

    return engine(arguments, group)


@app.command()
def doctor(
    engine: Annotated[bool, typer.Option("--engine", help="Try each feature of the built-in engine instead.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if there is any problem.")] = False,
) -> None:
    """Say what is wrong with this host, and the remedy.

    It looks for what keeps drivers from running and for what makes figures doubtful. The first time it boots a
    kernel to prove KVM, at most 20 s.
    """
    from bench.cli import show

    problems = show.doctor_engine() if engine else show.doctor()
    if strict and problems:
        raise typer.Exit(1)


@app.command()
def drivers() -> None:
    """List the drivers, and whether they run here."""
    from bench.cli import show

    show.drivers()


@app.command()
def workloads() -> None:
    """List the workloads, their metrics, the suites."""
    from bench.cli import show

    show.workloads()


@app.command()
def run(
    suite: Annotated[str | None, typer.Argument(help="A shipped suite's name, or the path of a TOML file.")] = None,
    drivers: Annotated[str | None, typer.Option(help="Only these, like native,container or kvm|qemu.")] = None,
    workloads: Annotated[str | None, typer.Option(help="Only these, like boot,cpu.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of each case.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the schedule.")] = None,
    out: Annotated[Path | None, typer.Option(help="The result folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Finish the run that left this result folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print schedule and requests, start nothing.")] = False,
) -> None:
    """Run a suite and write its report.

    The same image is started under each driver, measured and destroyed, in randomised blocks.
    """
    from bench.cli import running

    if (suite is None) == (resume is None):
        raise UsageError("run takes either a suite or --resume RESULT", hint="for instance: isomark run quick")
    if resume is not None:
        if any(option is not None for option in (drivers, workloads, trials, seed, out)) or dry_run:
            raise UsageError("--resume takes everything from the result", hint="leave the other options out")
        failed = running.resume(resume)
    else:
        assert suite is not None
        request = running.Request(suite, _list(drivers), _list(workloads), trials, seed, out)
        failed = running.preview(request) if dry_run else running.run(request)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A result folder.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; the result folder by default.")] = None,
) -> None:
    """Write the report of a result again.

    That is report.html, report.md, and samples.csv, summary.csv, steps.csv and footprints.csv; the same result gives
    the same bytes.
    """
    from bench.cli import running

    running.report(result, out or result)


@app.command()
def clean(
    gone: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="A libvirt whose host is no more, and all it ran; repeatable."),
    ] = None,
) -> None:
    """Remove what killed runs left on this host, and on others that they started domains on.

    Processes, cgroups, mounts, namespaces, domains and disks, from the journals of runs that are dead.
    """
    from bench.cli import show

    if show.clean(gone or []):
        raise typer.Exit(1)
