"""Making containers, starting them, and waiting beside them: what ``run`` is put together from."""

from __future__ import annotations

import os

from bench.errors import HostError, InstanceError, IsomarkError, UsageError
from runtimes.engine import images, monitor, wire
from runtimes.engine.attach import ENDED, Attachment, mask_signals
from runtimes.engine.clock import now
from runtimes.engine.config import build
from runtimes.engine.container import LIVE, Container, cannot_write
from runtimes.engine.containers import add, is_half_made, new_id
from runtimes.engine.failure import StartFailed
from runtimes.engine.removal import erase, settle
from runtimes.engine.terminal import size
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.journal import Journal
    from runtimes.engine.options import Options
    from runtimes.engine.place import Place


def create(place: Place, options: Options, journal: Journal, doing: Steps | None = None) -> Container:
    """Make a container of what a command line asks for; it does not run. ``doing`` learns what is done.

    Raises:
        UsageError: an option is malformed, or the image's name is missing.
        ImageError: the image cannot be had.
        InstanceError: the name is taken.
        HostError: the disk does not take it.
    """
    doing = doing or Steps(trace=False)
    doing.begin("find the image")
    if not options.rest:
        raise UsageError("the image's name is missing", hint="isomark container run IMAGE [COMMAND …]")
    cidfile = options.text("cidfile")
    if cidfile is not None and os.path.exists(cidfile):
        raise UsageError(f"option --cidfile: {cidfile} exists already", hint="remove it, or choose another one")
    try:
        place.ensure()
    except OSError as error:
        raise cannot_write(place.state, error) from error
    image, held = images.resolve(place.state, options.rest[0], options.text("pull") or "missing")
    try:
        doing.begin("write the container")
        ident = new_id()
        config = build(options, image, ident=ident, created=now(), environment=os.environ)
        if config["ports"] or config["publish_all"]:
            from runtimes.engine.networks import ports_of  # not on the way of who publishes none

            ports_of(config)
        entry = journal.own("container", state=place.state, id=ident)
        try:
            container = add(place, ident, config)
        except IsomarkError:
            if not is_half_made(place, ident):
                journal.gone(entry)
            raise
    finally:
        os.close(held)
    if not config["auto_remove"]:  # it is whole, and stays until somebody removes it
        journal.gone(entry)
    if cidfile is not None:
        _write_id(cidfile, ident)
    return container


def _write_id(path: str, ident: str) -> None:
    try:
        with open(path, "x", encoding="ascii") as file:
            file.write(ident)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def start(
    container: Container,
    *,
    attached: bool,
    gives_input: bool = False,
    keys: bytes = b"",
    pass_signals: bool = False,
    quiet: bool = False,
    doing: Steps | None = None,
) -> Attachment:
    """Start a container; with ``attached`` relay until it ends or is left, else return when its command runs.

    ``doing`` learns what is done here; with its ``trace`` the attachment gets the ``times`` of what is done elsewhere.

    Raises:
        StartFailed: it did not start.
        InstanceError: it runs already, or is gone.
    """
    doing = doing or Steps(trace=False)
    doing.begin("lock the container")
    config = container.config
    tty = bool(config["tty"])
    lock = container.lock()
    try:
        monitor_lock = _ready_to_start(container, lock)
        try:
            connection, far = wire.pair()
        except OSError:
            os.close(monitor_lock)
            raise
        request: dict[str, Any] = {"do": "start"}
        if attached:
            request = {"do": "attach", "input": gives_input, "size": size(0) if tty else None}
        request["trace"] = doing.trace
        doing.begin("fork its monitor")
        former = mask_signals()
        monitor.fork(container, far, connection, monitor_lock, request)
        doing.begin("wait for its monitor")
        os.close(monitor_lock)
        far.close()
        attachment = Attachment(
            connection,
            gives_input=attached and gives_input,
            tty=tty,
            keys=keys,
            pass_signals=attached and pass_signals,
            quiet=quiet,
        )
        attachment.watch_signals(former)
    finally:
        os.close(lock)
    if attached:
        attachment.run()
    else:
        attachment.await_start()
    if attachment.failed:
        answer = attachment.answer
        raise StartFailed(answer["message"], answer["hint"], answer["code"])
    if not attached and not attachment.started:
        raise InstanceError("the container's monitor died", hint=f"see {container.path}/crash")
    return attachment


def discard_unstarted(container: Container, journal: Journal) -> None:
    """After a failed start: a container with --rm has no monitor that would remove it, if it never had one."""
    if not os.path.isdir(container.path) or container.is_monitored():
        journal.leave()
        return
    if container.config["auto_remove"]:
        erase(container, journal, volumes=True)
    journal.leave()


def _ready_to_start(container: Container, lock: int) -> int:
    """The monitor's lock of a container that does not run.

    Raises:
        InstanceError: it runs, or it was removed for having been started with --rm.
    """
    state = settle(container, lock)
    if state is None:
        raise InstanceError(f"container {container.id[:12]} was removed, because it was started with --rm")
    held = container.lock_monitor()
    if held is None:
        running = f"container {container.name} runs already" if state["status"] in LIVE else "it is just being stopped"
        raise InstanceError(running, hint=f"isomark container stop {container.name}")
    return held


def exit_status(attachment: Attachment) -> int:
    """What the command should exit with, once the attachment is over."""
    return int(attachment.answer["exit_code"]) if attachment.outcome == ENDED else 0
