"""``isomark container …`` and ``isomark volume …``: finding the command, and saying what went wrong.

Nothing here imports more than it must: a container is started in less time than typer is imported in.
"""

from __future__ import annotations

import _signal
import os
import sys

from bench.errors import IsomarkError, UsageError
from runtimes.engine.options import HelpAsked, parse, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from runtimes.engine.command import Command

FAILED = 1
WRONG = 2
ENGINE_FAILED = 125
INTERRUPTED = 130

COMMANDS = {
    "attach": "cli_run",
    "cp": "cli_files",
    "create": "cli_run",
    "exec": "cli_exec",
    "inspect": "cli_show",
    "kill": "cli_manage",
    "logs": "cli_logs",
    "ls": "cli_show",
    "pause": "cli_manage",
    "port": "cli_show",
    "prune": "cli_manage",
    "ps": "cli_show",
    "restart": "cli_manage",
    "rm": "cli_manage",
    "run": "cli_run",
    "start": "cli_run",
    "stats": "cli_stats",
    "stop": "cli_manage",
    "top": "cli_stats",
    "unpause": "cli_manage",
    "wait": "cli_manage",
}
VOLUME_COMMANDS = dict.fromkeys(("create", "inspect", "ls", "prune", "rm"), "cli_volume")
_ABOUT = {
    "container": "Start containers and look after them; the options are Docker's.",
    "volume": "Keep data that outlives containers.",
}


def main(argv: list[str], group: str = "container") -> int:
    """Run ``isomark container ARGV…`` (or ``volume``) and return the exit status.

    As Docker's: the container's own for run, exec and start --attach; 125 if the engine failed, 126 if the command
    cannot be executed, 127 if it is not there. Other commands: 1 if something failed, 2 if asked wrongly.
    """
    commands = COMMANDS if group == "container" else VOLUME_COMMANDS
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(_overview(group, commands))
        return 0 if argv else WRONG
    name = argv[0]
    if name not in commands:
        return _complain(UsageError(f"there is no command {name!r}{_meant(name, commands)}"), WRONG)
    command = _load(name, commands[name])
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _interrupt)
    engine_failed = ENGINE_FAILED if command.runs else FAILED
    try:
        options = parse(command.table, argv[1:], interspersed=not command.runs or name == "start")
        return command.work(options)
    except HelpAsked:
        sys.stdout.write(usage(f"{group} {name} {command.arguments}", command.about, command.table))
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("isomark: interrupted\n")
        return INTERRUPTED
    except UsageError as error:
        return _complain(error, ENGINE_FAILED if command.runs else WRONG)
    except IsomarkError as error:
        return _complain(error, getattr(error, "code", engine_failed))
    except BrokenPipeError:
        _leave_stdout()
        return FAILED
    except OSError as error:
        sys.stderr.write(f"isomark: the host refused: {error}\n")
        return engine_failed


def _load(name: str, module: str) -> Command:
    """The command, from its module."""
    package = f"{__package__}.{module}"
    __import__(package)
    found: Command = sys.modules[package].COMMANDS[name]
    return found


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _leave_stdout() -> None:
    """Nobody reads what is printed: let the interpreter's last flush go nowhere."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _complain(error: IsomarkError, status: int) -> int:
    sys.stderr.write(f"isomark: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")
    return status


def _meant(name: str, known: dict[str, str]) -> str:
    from difflib import get_close_matches  # only for a mistake

    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _overview(group: str, commands: dict[str, str]) -> str:
    rows = [f"  {name:10} {_load(name, module).about}" for name, module in commands.items()]
    return "\n".join([f"Usage: isomark {group} COMMAND …", "", _ABOUT[group], "", "Commands:", *rows, ""])
