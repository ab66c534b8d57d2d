"""What passes between trial and container: two pipes, as the built-in container has them, and the init as a file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.resources import files
from typing import Self

from bench.channel import Channel
from bench.driver import Launch
from vms.initramfs import child_script, trial_script


class Pipes:
    """A context manager that closes them: the container has its own by then, and its end is that of the pipe.

    ``theirs`` are the descriptors that libvirt hands to process 1, in the order that init.sh knows; ``inode`` is that
    of the pipe it prints to.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
    """

    def __init__(self, launch: Launch) -> None:
        script = trial_script(launch, root=None).encode("utf-8", "surrogateescape")
        script += child_script() + files("vms.lxc").joinpath("init.sh").read_bytes()
        self._open: set[int] = set()
        try:
            reads, self._commands = self._pipe()
            self._lines, prints = self._pipe()
            init = os.memfd_create("isomark-init")
            self._open.add(init)
            with open(init, "wb", closefd=False) as file:
                file.write(script)
        except BaseException:
            self.close()
            raise
        self.theirs = [reads, prints, init]
        self.inode = os.fstat(prints).st_ino

    def channel(self, undo: ExitStack) -> Channel:
        """Return the trial's ends, which ``undo`` closes."""
        self._open -= {self._lines, self._commands}
        channel = Channel(self._lines, self._commands)
        undo.callback(channel.close)
        return channel

    def close(self) -> None:
        """Close what nobody has taken over; idempotent."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open.update(ends)
        return ends
