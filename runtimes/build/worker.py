"""The process that does one step: alone in a mount namespace, of one thread, gone with its mounts when it ends.

It reads a request as a line of JSON from standard input, which its parent then holds open: when that ends, so does
the step. It answers on standard output with ``{"result": …}`` or ``{"error": …, "hint": …, "kind": …}``.
"""

from __future__ import annotations

import json
import os
import posixpath
import select
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from bench.errors import HostError, IsomarkError
from runtimes import birth, libc, mounts, usernamespace
from runtimes.build import copying
from runtimes.build.copying import Order
from runtimes.build.overlay import enter_own_mounts, mount_overlay
from runtimes.build.ownership import find_owner
from runtimes.build.placing import Placer
from runtimes.container.cgroup import group_or_none
from runtimes.container.hierarchy import detect
from runtimes.container.resources import Resources
from runtimes.engine.plan import secure
from runtimes.network import attach, names
from runtimes.network.lease import Lease
from runtimes.security import levels

Request = Mapping[str, Any]
_AS_DOCKER: Final = "no-new-privileges=false"
"""Containerfiles are written for Docker, where a step may use sudo."""


def main(parent: int) -> NoReturn:
    """Do what standard input asks for; ``parent`` is the process that asks."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew that it matters
        os._exit(1)
    os.umask(0)
    with open(0, "rb", closefd=False, buffering=0) as requests:
        request = json.loads(_line(requests.read))
    try:
        answer: dict[str, Any] = {"result": _OPERATIONS[request["do"]](request)}
    except IsomarkError as error:
        answer = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    except OSError as error:
        answer = {"error": f"the host refused a step's set-up: {error}", "hint": "isomark doctor", "kind": "HostError"}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(1, data) :]
    os._exit(0)


def _line(read: Callable[[int], bytes]) -> bytes:
    pieces: list[bytes] = []
    while not (pieces and pieces[-1].endswith(b"\n")):
        pieces.append(read(1 << 16))
        if not pieces[-1]:
            os._exit(1)
    return b"".join(pieces)


def _survey(request: Request) -> str:
    enter_own_mounts()
    mount_overlay(request["source"]["lowers"], request["source"]["at"])
    return copying.survey(Order.from_json(request["order"]), request["source"]["at"])


def _copy(request: Request) -> str:
    root = _open_root(request)
    source = request["source"]
    if source is not None and "lowers" in source:
        mount_overlay(source["lowers"], source["at"])
    try:
        return copying.copy(Order.from_json(request["order"]), source and source["at"], root)
    finally:
        os.close(root)


def _make_directory(request: Request) -> bool:
    """WORKDIR: make a directory; return whether anything was missing."""
    root = _open_root(request)
    try:
        owner = find_owner(request["owner"], root) if request["owner"] else None
        placer = Placer(root, owner, None)
        missing = not placer.is_directory(request["path"])
        if missing:
            placer.make_directories(request["path"])
        return missing
    finally:
        os.close(root)


def _run(request: Request) -> int:
    """RUN: the exit status, negative for a signal."""
    root = _open_root(request)
    stubs = _Stubs(root)
    for path, directory in request["targets"]:
        stubs.make(path, directory=directory)
    try:
        status = _Container(request).run()
    finally:
        stubs.remove()
        os.close(root)
    return status


class _Container:
    """The container of a RUN: its security, its cgroup for the sake of device rules, its network, its process."""

    def __init__(self, request: Request) -> None:
        self._name: str = request["name"]
        self._state: str = request["state"]
        self._network: str = request["network"]
        self._files: str = request["files"]
        self._output: int = request["output"]
        self._spec = request["spec"]
        self._lease: Lease | None = None

    def run(self) -> int:
        rootless = not usernamespace.privileged()
        if rootless and self._network == "bridge":
            raise HostError("a step of an ordinary user has the host's network or none", hint="--network host")
        security = levels.level("default", state=self._state, security_opt=[_AS_DOCKER], user_namespace=rootless)
        secure(self._spec, security)
        self._spec["mounts"] += [["hide", *security.masked], ["protect", *security.readonly]]
        group = group_or_none(detect(), self._name, Resources(devices=security.devices))
        far: list[int] = []
        try:
            birthplace, entrances = group.entrances()
            far += [*entrances, *([] if birthplace is None else [birthplace])]
            self._spec["born_in_cgroup"] = birthplace is not None
            self._plan_network()
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            far.append(null)
            newborn = birth.bear(self._spec, (null, self._output, self._output), birthplace=birthplace)
            return self._attend(newborn, entrances)
        finally:
            for fd in far:
                os.close(fd)
            group.remove()
            if self._lease is not None:
                attach.disconnect(self._state, self._name)

    def _plan_network(self) -> None:
        if self._network == "bridge":
            self._lease = attach.plan(self._state, self._name)
            self._spec["network"] = self._lease.network()
            self._spec["wait"] = True
        lease = self._lease
        names.write(
            self._files,
            hostname=self._spec["hostname"],
            address=lease.address if lease else None,
            gateway=lease.gateway if lease else None,
            host=self._network == "host",
        )

    def _attend(self, newborn: birth.Newborn, entrances: Sequence[int]) -> int:
        try:
            newborn.provide(entrances)
            if self._lease is not None:
                namespace = os.open(f"/proc/{newborn.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    attach.connect(self._lease, namespace)
                finally:
                    os.close(namespace)
                newborn.release()
            newborn.await_ready()
            os.close(self._output)
            return _await_end(newborn.pid, newborn.pidfd)
        except BaseException:
            newborn.abandon()
            raise


def _await_end(pid: int, pidfd: int) -> int:
    """Wait for the step, or for the end of who wants it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    while pidfd not in dict(poll.poll()):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll.unregister(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _open_root(request: Request) -> int:
    """Mount the image's tree for writing and return its descriptor."""
    enter_own_mounts()
    place = request["place"]
    if request["lowers"] is None:
        return os.open(place["upper"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _take_after(request["lowers"][0], place["upper"])
    mount_overlay(request["lowers"], place["merged"], place["upper"], place["work"])
    return os.open(place["merged"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _take_after(lower: str, upper: str) -> None:
    """An overlay's own root shows the attributes of its upper directory."""
    status = os.stat(lower)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, stat.S_IMODE(status.st_mode))
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


class _Stubs:
    """What had to be made in the image's tree so that something can be mounted there, and shall not be in the layer."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._made: list[tuple[str, bool]] = []
        self._times: list[tuple[str, int]] = []
        self._after: dict[str, int] = {}

    def make(self, path: str, *, directory: bool) -> None:
        """Make ``path`` unless it is there; links in it are followed within the tree."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            part = "/" + "/".join(parts[:depth])
            if not _exists(self._root, part):
                self._times.append((posixpath.dirname(part), self._mtime(posixpath.dirname(part))))
                is_directory = directory or depth < len(parts)
                os.close(mounts.make_target(self._root, part, directory=is_directory))
                self._made.append((part, is_directory))
                self._after[posixpath.dirname(part)] = self._mtime(posixpath.dirname(part))

    def remove(self) -> None:
        """Take away what is still as it was made, and give the directories above their time back."""
        untouched = {path for path, after in self._after.items() if self._mtime(path) == after}
        for path, is_directory in reversed(self._made):
            fd = libc.openat2(self._root, posixpath.dirname(path), os.O_PATH | os.O_DIRECTORY, mounts.FOLLOWING)
            try:
                name = posixpath.basename(path)
                if is_directory:
                    os.rmdir(name, dir_fd=fd)
                elif os.stat(name, dir_fd=fd, follow_symlinks=False).st_size == 0:
                    os.unlink(name, dir_fd=fd)
            except OSError:  # the step put something there, or a link led elsewhere: then it stays
                continue
            finally:
                os.close(fd)
        for path, before in reversed(self._times):
            if path in untouched and _exists(self._root, path):
                fd = libc.openat2(self._root, path, os.O_PATH | os.O_DIRECTORY, mounts.FOLLOWING)
                os.utime(f"/proc/self/fd/{fd}", ns=(before, before))
                os.close(fd)

    def _mtime(self, path: str) -> int:
        fd = libc.openat2(self._root, path, os.O_PATH | os.O_DIRECTORY, mounts.FOLLOWING)
        try:
            return os.fstat(fd).st_mtime_ns
        finally:
            os.close(fd)


def _exists(root: int, path: str) -> bool:
    try:
        os.close(libc.openat2(root, path, os.O_PATH, mounts.FOLLOWING))
    except FileNotFoundError:
        return False
    return True


_OPERATIONS: Final[Mapping[str, Callable[[Request], Any]]] = {
    "survey": _survey,
    "copy": _copy,
    "directory": _make_directory,
    "run": _run,
}
