"""What the tests of ``runtimes.birth`` share: a small tree, specs on an overlay of it, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from small_tree import make_tree

from runtimes import libc
from runtimes.birth import Newborn, Ready, bear, plain
from runtimes.devices import device_tree
from runtimes.mounts import NOTHING_EXECUTABLE
from runtimes.spec import Spec

NAMESPACES = (
    libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)  # fmt: skip
MOUNTS: Sequence[list[Any]] = (
    ["mount", "/proc", "proc", NOTHING_EXECUTABLE, None],
    ["mount", "/sys", "sysfs", NOTHING_EXECUTABLE | libc.MS_RDONLY, None],
    *device_tree(1 << 26, bind=False, rootless=False),
)
PATH = {"PATH": "/bin"}


class House:
    """A directory with an image in it, and room for overlays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = make_tree(directory / "tree")
        self._number = 0

    def overlay(self) -> list[Any]:
        """A fresh root."""
        self._number += 1
        own = self.directory / f"own-{self._number}"
        for name in ("upper", "work", "root"):
            (own / name).mkdir(parents=True)
        return ["overlay", [str(self.tree)], str(own / "upper"), str(own / "work"), str(own / "root")]

    def spec(self, *command: str, **more: Any) -> Spec:
        """A container's, with ``more`` in place."""
        spec = plain()
        spec["user"] |= {"uid": 0, "gid": 0}
        spec.update(  # type: ignore[typeddict-item]
            {"command": list(command), "environment": dict(PATH), "namespaces": NAMESPACES, "mounts": [*MOUNTS]} | more
        )
        if "root" not in more:
            spec["root"] = self.overlay()
        return spec

    def shell(self, script: str, **more: Any) -> Spec:
        """The same for a shell script."""
        return self.spec("/bin/sh", "-c", script, **more)


class Born:
    """An instance whose output is read; a context manager that ends it."""

    def __init__(self, spec: Spec, at_last: Callable[[], None] | None = None) -> None:
        self._read, write = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.newborn: Newborn = bear(spec, (null, write, write), at_last=at_last)
        except BaseException:
            os.close(self._read)
            raise
        finally:
            os.close(write)
            os.close(null)
        self.ready: Ready | None = None

    def go(self) -> Born:
        """Let it run."""
        self.newborn.provide()
        self.ready = self.newborn.await_ready()
        return self

    def line(self) -> str:
        """The next line of its output."""
        text = b""
        while not text.endswith(b"\n"):
            part = os.read(self._read, 1)
            if not part:
                break
            text += part
        return text.decode().rstrip("\n")

    def rest(self) -> list[str]:
        """All lines until its end."""
        text = b""
        while part := os.read(self._read, 65536):
            text += part
        return text.decode(errors="replace").splitlines()

    def status(self) -> int:
        """Its exit status, when it has ended."""
        _, status = os.waitpid(self.newborn.pid, 0)
        self.newborn.close()
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Born:
        return self

    def __exit__(self, *_: object) -> None:
        self.newborn.abandon()
        os.close(self._read)


def output(spec: Spec, *, at_last: Callable[[], None] | None = None) -> list[str]:
    """Everything it prints until it ends."""
    with Born(spec, at_last) as born:
        born.go()
        return born.rest()
