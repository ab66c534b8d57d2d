"""The command line. Only here is anything printed, and only here does the program exit.

This is also where the rooms are put together: it alone imports ``runtimes.oci``, ``runtimes.engine`` and ``reports``.
A container is started in less time than typer takes to be imported, so its commands are found before that.
"""

from __future__ import annotations

import os
import sys

ENGINE = ("container", "volume")
DESCRIPTORS = 60
"""How many a command needs at most beside its standard streams, but for published ports."""


def main() -> None:
    """Run the command line; see ``bench.cli.app.main`` and, for containers, ``runtimes.engine.cli.main``."""
    if not _has_descriptors():
        sys.stderr.write(f"isomark: fewer than {DESCRIPTORS} files may be opened\n  hint: raise ulimit -n\n")
        _leave(125 if sys.argv[1:2] == ["container"] else 1)
    if len(sys.argv) > 1 and sys.argv[1] in ENGINE:
        from runtimes.engine.cli import main as engine

        _leave(engine(sys.argv[2:], sys.argv[1]))
    from bench.cli.app import main as application

    application()


def _has_descriptors() -> bool:
    """Whether enough can be opened: who runs out of them half-way cannot clean up either."""
    opened: list[int] = []
    try:
        opened.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        while len(opened) < DESCRIPTORS:
            opened.append(os.dup(opened[0]))
    except OSError:
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True


def _leave(status: int) -> None:
    """End at once: taking the interpreter apart takes longer than a container to stop."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads what was printed
        status = status or 1
    sys.stderr.flush()
    os._exit(status)
