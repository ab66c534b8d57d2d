"""Running a short program with text in and its complaint out, without the weight of ``subprocess``."""

from __future__ import annotations

import os

from bench.errors import HostError


def run(command: list[str], text: str, *, package: str) -> None:
    """Run ``command`` with ``text`` as its input to its end.

    Args:
        command: The program is searched in PATH.
        text: Standard input.
        package: What to install when the program is missing.

    Raises:
        HostError: it is not installed, or it failed, with what it said.
    """
    stdin, said = os.memfd_create("in"), os.memfd_create("said")
    try:
        os.write(stdin, text.encode())
        os.lseek(stdin, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
        try:
            pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        except FileNotFoundError as error:
            raise HostError(f"the program {command[0]} is not installed", hint=f"apt-get install {package}") from error
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 0:
            complaint = os.pread(said, 4096, 0).decode(errors="replace").strip()
            raise HostError(f"{' '.join(command)} failed ({code}): {complaint}")
    finally:
        os.close(stdin)
        os.close(said)
