"""What can be done to a container by its monitor while it runs."""

from __future__ import annotations

import _signal
import os
import time

from bench.errors import HostError
from runtimes.engine.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.engine.launch import Launch
    from runtimes.engine.loop import Loop
    from runtimes.spec import Spec


class Running:
    """A container's first process, when there is one.

    Attributes:
        state: The container's, which only its monitor changes meanwhile.
        status: What the last life's first process exited with, as a shell has it; ``None`` while it runs.
    """

    def __init__(self, container: Container, loop: Loop) -> None:
        self.state: dict[str, Any] = container.state()
        self.status: int | None = None
        self._container = container
        self._config = container.config
        self._loop = loop
        self._launch: Launch | None = None
        self._killer = self._kill_now

    def begin(self, launch: Launch) -> None:
        """``launch`` has started it."""
        self._launch, self.status = launch, None
        self._loop.watch(launch.pidfd, READ, lambda _events: self._reap(launch))

    def _reap(self, launch: Launch) -> None:
        self._loop.forget(launch.pidfd)
        self._loop.cancel(self._killer)
        self._launch = None
        _, status = os.waitpid(launch.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.status = code if code >= 0 else 128 - code

    def stop(self, signal: int | None, timeout: float | None) -> None:
        """Ask for the end, and see to it after ``timeout`` seconds; ``None``: as configured, below 0: never."""
        self.state["stopped"] = True
        if self._launch is None:
            return
        if timeout is None:
            timeout = float(self._config["stop_timeout"])
        self.signal(signal or int(self._config["stop_signal"]))
        self._thaw()
        self._loop.cancel(self._killer)
        if timeout >= 0:
            self._loop.at(time.monotonic() + timeout, self._killer)

    def kill(self, signal: int) -> None:
        """Pass a signal on; one that means the end is not followed by another start.

        Raises:
            HostError: it does not run.
            OSError: there is no such signal.
        """
        self._must_run()
        if signal in (_signal.SIGKILL, self._config["stop_signal"]):
            self.state["stopped"] = True
        self.signal(signal)
        if signal == _signal.SIGKILL:
            self._thaw()

    def signal(self, number: int) -> None:
        """Send its first process a signal, if it runs."""
        if self._launch is not None:
            try:
                _signal.pidfd_send_signal(self._launch.pidfd, number)
            except ProcessLookupError:
                return

    def _kill_now(self) -> None:
        self.signal(_signal.SIGKILL)

    def freeze(self, *, pause: bool) -> None:
        """Pause it, or let it go on.

        Raises:
            HostError: it does not run, is so already, or the kernel or the disk does not do it.
        """
        launch = self._must_run()
        if pause == (self.state["status"] == "paused"):
            raise HostError(f"the container is {'already' if pause else 'not'} paused")
        launch.confinement.freeze(frozen=pause)
        self.state["status"] = "paused" if pause else "running"
        try:
            self._container.write_state(self.state)
        except HostError:
            if pause:
                launch.confinement.freeze(frozen=False)
                self.state["status"] = "running"
            raise

    def _thaw(self) -> None:
        """Thaw what shall end; what cannot be noted now is noted when it ended."""
        if self.state["status"] != "paused":
            return
        try:
            self.freeze(pause=False)
        except HostError:
            if self.state["status"] == "paused":
                raise

    def execute(self, spec: Spec) -> None:
        """Start another process in it, which nobody waits for.

        Raises:
            StartFailed: it does not start.
            HostError: the container does not run.
            OSError: descriptors are used up.
        """
        from runtimes.engine.joining import bear_within  # only if somebody asks

        self._must_run()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            newborn, _ = bear_within(self._container, spec, (null, null, null))
        finally:
            os.close(null)

        def reap(_events: int) -> None:
            self._loop.forget(newborn.pidfd)
            os.waitpid(newborn.pid, 0)
            newborn.close()

        self._loop.watch(newborn.pidfd, READ, reap)

    def _must_run(self) -> Launch:
        if self._launch is None:
            raise HostError("the container is not running", hint="isomark container ps -a")
        return self._launch
