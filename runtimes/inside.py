"""Becoming an instance: what a fresh copy of a process of ours does to itself before it executes the command.

The order is the point of this module. What needs the host (paths, /proc, privilege) comes before the root is entered or
the privilege is gone; what takes privilege away comes last; and no container can see this process before it is set up,
or, where it joins one, look into it (PR_SET_DUMPABLE). What needs neither root directory nor cgroup comes first, while
the parent makes those.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import os
import select

from runtimes import detached, identity, interface, kernel_files, libc, mounts, program, rootfs, steps
from runtimes.security import capabilities as caps
from runtimes.security import seccomp
from runtimes.steps import Steps
from runtimes.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    from runtimes.identity import Identity
    from runtimes.program import Program
    from runtimes.spec import Network, Spec

NOT_FOUND: Final = 127
"""Exit status of an instance that could not be set up or executed, as a shell's."""
NOT_EXECUTABLE: Final = 126
"""That of one whose command is there, and no program that it may execute."""
_EVERYTHING: Final = 0x7FFF_FFFF


class Nursery:
    """What the copy needs from its parent: descriptors, all closed on exec, ``-1`` where there is none.

    ``alive`` hangs up when the parent is dead; ``mapped`` tells by a byte that the user namespace has its maps;
    ``filter`` is the one that ``Spec`` names; ``at_last`` is called before the execution.
    """

    __slots__ = ("alive", "at_last", "filter", "mapped", "proc", "setup", "stdio")

    def __init__(self, setup: _socket.socket, stdio: Sequence[int], proc: int, alive: int) -> None:
        self.setup = setup
        self.stdio = stdio
        self.proc = proc
        self.alive = alive
        self.mapped = -1
        self.at_last: Callable[[], None] | None = None
        self.filter: seccomp.Program | None = None


def become(spec: Spec, nursery: Nursery) -> NoReturn:
    """Become the instance; never returns, whatever happens."""
    doing = Steps(trace=spec["trace"], ahead=(spec["time_offsets"] or {}).get("monotonic", 0))
    code = NOT_FOUND
    try:
        _Becoming(spec, nursery, doing).run()
    except Exception as error:  # noqa: BLE001 - nobody else is here to tell
        failed = doing.failed(error)
        if failed.step.startswith("run ") and failed.errno in (errno.EACCES, errno.ENOEXEC):
            code = NOT_EXECUTABLE
        if nursery.setup.fileno() == -1:  # it was held, and nobody listens any more
            os.write(2, os.fsencode(f"cannot {failed.step}: {failed.reason}\n"))
        else:
            steps.send_error(nursery.setup, failed)
    finally:
        os._exit(code)


class _Becoming:
    """The steps, in their order."""

    def __init__(self, spec: Spec, nursery: Nursery, doing: Steps) -> None:
        self._spec = spec
        self._nursery = nursery
        self._setup = nursery.setup
        self._doing = doing
        self._terminal: Terminal | None = None
        self._gate = -1
        self._root: int | None = None
        self._detached: list[int | None] = []

    def run(self) -> None:
        """Do everything; return only if there is no command."""
        self._begin()
        self._await_users()
        self._name()
        self._set_up_loopback()
        self._make_mounts()
        self._enter_cgroups()
        self._make_root()
        if self._spec["wait"]:
            self._doing.begin("wait for its network")
            self._await_word()
        self._set_up_network()
        self._set_kernel_settings()
        user = self._find_user()
        self._attach()
        self._set_own_limits()
        self._find_place(user)
        self._execute(self._drop(user))

    def _begin(self) -> None:
        self._doing.begin("tie its life to its parent's")
        for number in range(1, _signal.NSIG):
            if _signal.getsignal(number) not in (_signal.SIG_DFL, None):  # Python ignores SIGPIPE, and nohup more
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        self._tie()
        os.setsid()
        if self._spec["hold"] is not None:
            self._doing.begin(f"open {self._spec['hold']}")
            self._gate = os.open(self._spec["hold"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if self._spec["oom_score_adj"] is not None and not self._spec["join"]:
            self._doing.begin("set its score for the out-of-memory killer")
            kernel_files.write_own(self._nursery.proc, "oom_score_adj", str(self._spec["oom_score_adj"]))

    def _tie(self) -> None:
        if not self._spec["tie"]:
            return
        libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
        poll = select.poll()
        poll.register(self._nursery.alive, 0)
        if poll.poll(0):  # the parent died before the kernel knew that it matters
            os._exit(NOT_FOUND)

    def _await_word(self) -> list[int]:
        """Wait until the parent says go on; descriptors may come along."""
        word, fds = steps.receive(self._setup)
        if word == steps.GO_WITH_ROOT:
            self._root = fds.pop()
        elif word != steps.GO:
            os._exit(NOT_FOUND)
        return fds

    def _name(self) -> None:
        if self._spec["hostname"] is not None:
            self._doing.begin("set its host name")
            libc.sethostname(self._spec["hostname"])
        if self._spec["domainname"] is not None:
            self._doing.begin("set its domain name")
            libc.setdomainname(self._spec["domainname"])

    def _set_up_loopback(self) -> None:
        if self._spec["namespaces"] & libc.CLONE_NEWNET:
            self._doing.begin("set up its loopback interface")
            control = interface.open_control()
            interface.bring_up("lo", control)
            control.close()

    def _make_mounts(self) -> None:
        """Make what needs no place yet: its parent is busy with directories and cgroups meanwhile."""
        if self._spec["root"][0] == "joined":
            return
        self._doing.begin("detach its mounts from the host's")
        rootfs.detach_from_host(self._spec["propagation"])
        for operation in self._spec["mounts"]:
            if operation[0] in detached.MADE:
                self._doing.begin(mounts.describe(operation))
            self._detached.append(detached.make_for(operation))

    def _enter_cgroups(self) -> None:
        """Enter version 1 cgroups by the ``tasks`` files that are handed over.

        A single thread that moves itself this way spares the kernel the lock over all thread groups, whose first
        taker waits for a grace period: 0.06 ms instead of 7 (Linux 5.3, "cgroup: optimize single thread migration").
        """
        self._doing.begin("wait for its directories and cgroups")
        fds = self._await_word()
        self._doing.begin("enter its cgroups")
        for fd in fds:
            os.write(fd, b"0")
            os.close(fd)
        if self._spec["namespaces"] & libc.CLONE_NEWCGROUP:
            libc.unshare(libc.CLONE_NEWCGROUP)  # not earlier: the cgroups it is in now become its root

    def _await_users(self) -> None:
        if self._spec["uid_map"] is not None:
            self._doing.begin("become root of its user namespace")
            if self._nursery.mapped != -1 and not os.read(self._nursery.mapped, 1):
                os._exit(NOT_FOUND)
            identity.become_root()
            self._tie()  # a change of user unties
        elif not self._spec["namespaces"] & libc.CLONE_NEWPID:
            libc.prctl(libc.PR_SET_DUMPABLE, 0)  # somebody else may see it
        os.umask(0)

    def _make_root(self) -> None:
        kind, *arguments = self._spec["root"]
        propagation = self._spec["propagation"]
        if kind == "joined":
            if self._spec["terminal"]:
                self._doing.begin("make its terminal")
                root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                self._terminal = Terminal(root, self._spec["terminal_size"])
            return
        self._doing.begin(f"mount its root ({kind} of {_first(arguments[0])})")
        own_users = self._spec["uid_map"] is not None
        root = rootfs.open_root(kind, arguments, propagation, own_users=own_users, ahead=self._root)
        for operation, mounted in zip(self._spec["mounts"], self._detached, strict=True):
            self._doing.begin(mounts.describe(operation))
            mounts.perform(root, operation, mounted)
        if self._spec["terminal"]:
            self._doing.begin("make its terminal")
            self._terminal = Terminal(root, self._spec["terminal_size"])
            self._terminal.bind_console(root)
        if self._spec["root_readonly"]:
            self._doing.begin("make its root read-only")
            rootfs.make_read_only(root)
        self._doing.begin("enter its root")
        rootfs.enter_root(root, propagation)
        os.close(root)

    def _set_up_network(self) -> None:
        network: Network | None = self._spec["network"]
        if network is None:
            return
        self._doing.begin("set up its network interface")
        control = interface.open_control()
        interface.set_address("eth0", network["address"], network["netmask"], control)
        interface.bring_up("eth0", control)
        interface.set_default_route(network["gateway"], control)
        control.close()

    def _set_kernel_settings(self) -> None:
        for name, value in self._spec["sysctls"].items():
            self._doing.begin(f"set the sysctl {name}")
            kernel_files.write(self._nursery.proc, kernel_files.sysctl_path(name), value)
        if self._spec["apparmor"] is not None:
            self._doing.begin(f"change to the AppArmor profile {self._spec['apparmor']}")
            kernel_files.write_own(self._nursery.proc, "attr/exec", f"exec {self._spec['apparmor']}")

    def _find_user(self) -> Identity:
        user = self._spec["user"]
        self._doing.begin(f"find the user {user['name']}")
        return identity.look_up(user)

    def _attach(self) -> None:
        """Make the console descriptors 0, 1 and 2; everything else closes on exec."""
        self._doing.begin("attach its console")
        if self._terminal is not None:
            self._terminal.control()
            steps.send(self._setup, b"terminal", [self._terminal.master])
            stdio: Sequence[int] = [self._terminal.slave] * 3
        else:
            stdio = [os.dup(fd) if fd < 3 else fd for fd in self._nursery.stdio]
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        libc.close_range(3 + self._spec["preserve"], _EVERYTHING, libc.CLOSE_RANGE_CLOEXEC)

    def _set_own_limits(self) -> None:
        self._doing.begin("set its limits")
        for resource, soft, hard in self._spec["rlimits"]:
            libc.setrlimit(resource, soft, hard)
        if self._spec["cpus"] is not None:
            os.sched_setaffinity(0, self._spec["cpus"])

    def _find_place(self, user: Identity) -> None:
        """Enter the working directory, and see that it is below the root: it may be a link to what is open here."""
        cwd = self._spec["cwd"]
        self._doing.begin(f"enter the working directory {cwd}")
        if cwd == "/":
            os.chdir("/")  # where it has no root of its own it is elsewhere still
        else:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._spec["root"][0] == "joined":  # somebody else's: nothing is made there
                place = libc.openat2(root, cwd, os.O_PATH | os.O_DIRECTORY, mounts.FOLLOWING)
            else:
                place = mounts.make_target(root, cwd, directory=True)
            os.fchdir(place)
            os.close(place)
            os.close(root)
            if not os.getcwd().startswith("/"):
                raise ValueError("it is outside the root")
        identity.own_standard_streams(user)

    def _find_command(self, user: Identity) -> Program | None:
        command, environment = self._spec["command"], self._spec["environment"]
        if not command:
            return None
        self._doing.begin(f"run {command[0]}")
        if user.home is not None:
            environment.setdefault("HOME", user.home)
        return program.prepare(command, environment, alone=_is_alone(self._spec))

    def _drop(self, user: Identity) -> Program | None:
        """Give up what is special, in the one order that works (capabilities(7), seccomp(2)); return the command.

        Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go; else it comes last.
        """
        spec, capabilities = self._spec, self._spec["capabilities"]
        self._doing.begin("leave the host's keys")
        _leave_keyring()
        if capabilities is not None:
            self._doing.begin("limit what it may gain")
            caps.limit_bounding(capabilities["bounding"])
        libc.prctl(libc.PR_SET_KEEPCAPS, 1)
        self._doing.begin("change to its user")
        own_users = spec["uid_map"] is not None or bool(spec["join"])
        identity.change(user, spec["user"]["umask"], own_users=own_users, asked=spec["user"]["groups"])
        self._tie()  # a change of user unties
        command = self._find_command(user)
        if spec["no_new_privileges"]:
            libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        elif self._nursery.filter is not None:
            _, permitted, inheritable = libc.capget()
            libc.capset(permitted, permitted, inheritable)  # a change of user made them ineffective
            self._install_filter()
        self._doing.begin("drop its capabilities")
        if capabilities is not None:
            caps.apply(capabilities)
        elif user.uid != 0:
            libc.capset(0, 0, 0)
        if spec["no_new_privileges"]:
            self._install_filter()
        return command

    def _install_filter(self) -> None:
        if self._nursery.filter is not None:
            self._doing.begin("filter its system calls")
            seccomp.install(self._nursery.filter)

    def _execute(self, command: Program | None) -> None:
        """Say that all is done, wait to be let go, and execute. A filter may be in force: few system calls are used."""
        ready = steps.encode_ready(self._doing)
        if command is not None:
            self._doing.begin(f"run {self._spec['command'][0]}")
            ready = steps.encode_ready(self._doing)
        os.write(self._setup.fileno(), ready)
        if command is None:
            os._exit(0)
        if self._gate != -1:
            self._setup.close()
            poll = select.poll()
            poll.register(self._gate, select.POLLIN)
            poll.poll()  # data, or the writer has gone again
        if self._nursery.at_last is not None:
            self._nursery.at_last()
        command.execute()


def _is_alone(spec: Spec) -> bool:
    """Whether nobody but this process can alter the root file system, volumes aside."""
    return not spec["join"] and spec["root"][0] in ("bind", "overlay")


def _leave_keyring() -> None:
    """Have a session keyring of its own, as under runc: the host's session's keys are not the container's."""
    try:
        libc.join_session_keyring(None)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # a kernel without keys, or a filter around us
            raise


def _first(source: str | Sequence[str]) -> str:
    return source if isinstance(source, str) else source[0]
