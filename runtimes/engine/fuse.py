"""fuse-overlayfs, where an ordinary user may mount no overlay of the kernel's: the process that serves it."""

from __future__ import annotations

import _signal
import os
import time

from bench.errors import HostError
from runtimes import libc
from runtimes.detached import escape
from runtimes.network.usermode import OWNER_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

PROGRAM: Final = "fuse-overlayfs"
_LOG: Final = "fuse-overlayfs.log"
_MOUNT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.002


class FuseOverlay:
    """An overlay at ``target``, in this process's mount namespace; it ends with this process, however that ends."""

    def __init__(self, tree: str, path: str, marker: str) -> None:
        """Mount ``tree`` below the ``upper`` of the container's directory ``path`` at its ``root``.

        ``marker`` is for the process's environment: own ``process`` with it before.

        Raises:
            HostError: it does not work; with what it said.
        """
        self._target = f"{path}/root"
        before = os.stat(self._target).st_dev
        options = ",".join(
            f"{name}={escape(value)}"
            for name, value in (("lowerdir", tree), ("upperdir", f"{path}/upper"), ("workdir", f"{path}/work"))
        )
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _serve([PROGRAM, "-f", "-o", options, self._target], f"{path}/{_LOG}", marker, parent)
        deadline = time.monotonic() + _MOUNT_SECONDS
        while os.stat(self._target).st_dev == before:
            ended = os.waitpid(self._pid, os.WNOHANG)[0] != 0
            if ended or time.monotonic() > deadline:
                if not ended:
                    self._kill()
                raise _failed(f"{path}/{_LOG}")
            time.sleep(_LOOK_SECONDS)

    def end(self) -> None:
        """Unmount it and end the process."""
        libc.umount2(self._target, libc.MNT_DETACH)
        self._kill()

    def _kill(self) -> None:
        os.kill(self._pid, _signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _serve(command: list[str], log: str, marker: str, parent: int) -> NoReturn:
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew that it matters
            os._exit(1)
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number, fd in enumerate((null, said, said)):
            os.dup2(fd, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execvpe(command[0], command, {**os.environ, OWNER_VARIABLE: marker})
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(1)


def _failed(log: str) -> HostError:
    with open(log, encoding="utf-8", errors="replace") as file:
        said = " ".join(file.read()[-1000:].split())
    device = "/dev/fuse must be for everybody: chmod 0666 /dev/fuse" if "fuse" in said and "denied" in said else ""
    return HostError(
        f"an ordinary user's overlay does not work: {PROGRAM} failed: {said or 'no reason given'}",
        hint=device or "apt-get install fuse-overlayfs; or Linux 5.11 with the state directory on ext4, xfs or btrfs",
    )
