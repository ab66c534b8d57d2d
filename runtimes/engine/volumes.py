"""Named and anonymous volumes: directories ``volumes/NAME/data`` that outlive containers.

``volumes/NAME/volume.json`` says when and for whom it was made. A volume is locked by whoever fills or removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from bench.errors import HostError, InstanceError
from runtimes import libc
from runtimes.engine import text
from runtimes.engine.clock import now
from runtimes.engine.container import Container, cannot_write
from runtimes.engine.containers import every
from runtimes.engine.files import read_json, remove_tree, write_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.journal import Journal
    from runtimes.engine.place import Place


def data(place: Place, name: str) -> str:
    """The directory that is mounted."""
    return f"{place.volumes}/{name}/data"


def make(
    place: Place, name: str, journal: Journal, *, anonymous: bool = False, labels: dict[str, str] | None = None
) -> bool:
    """Make the volume if it is not there; return whether it was made.

    Raises:
        HostError: the disk does not take it.
    """
    if read_json(f"{place.volumes}/{name}/volume.json") is not None:
        return False
    facts = {"name": name, "created": now(), "anonymous": anonymous, "labels": labels or {}}
    making = f"{place.volumes}/.making-{name}-{os.urandom(6).hex()}"
    entry = journal.own("tree", path=making)
    try:
        os.mkdir(making, 0o700)
        os.mkdir(f"{making}/data", 0o755)
        os.chmod(f"{making}/data", 0o755)
        write_whole(f"{making}/volume.json", text.dumps(facts).encode())
        os.rename(making, f"{place.volumes}/{name}")
    except OSError as error:
        remove_tree(making)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else somebody made it meanwhile
            raise cannot_write(place.volumes, error) from error
        return False
    finally:
        journal.gone(entry)
    return True


def provide(place: Place, mount: dict[str, Any], tree: str, journal: Journal) -> None:
    """See that what a mount binds is there: a volume is made, and filled from the image while it is empty.

    Raises:
        HostError: the disk does not take it, or a bind's source is missing.
    """
    if mount["type"] == "volume":
        is_new = make(place, mount["name"], journal, anonymous=mount["anonymous"])
        if mount["copy"]:
            try:
                fill(place, mount["name"], tree, mount["target"], journal)
            except HostError:
                if is_new:
                    _delete(place, mount["name"], journal)
                raise
    elif mount["type"] == "bind" and not os.path.exists(mount["source"]):
        if not mount["make"]:
            raise HostError(f"{mount['source']}, which is to be bound at {mount['target']}, does not exist")
        try:
            os.makedirs(mount["source"], exist_ok=True)
        except OSError as error:
            raise cannot_write(mount["source"], error) from error


def lock(place: Place, name: str) -> int:
    """Lock the volume for filling or removal; the lock goes with the descriptor.

    Raises:
        InstanceError: it is not there.
    """
    try:
        fd = os.open(f"{place.volumes}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InstanceError(f"there is no volume {name!r}", hint="isomark volume ls lists them") from None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def fill(place: Place, name: str, tree: str, target: str, journal: Journal) -> None:
    """Copy what the image has at ``target`` into the volume, if that is empty; owner and mode of the directory too.

    The copy is made aside: one that was cut off would pass for what somebody wrote there.

    Raises:
        HostError: the copy fails.
    """
    directory = data(place, name)
    held = lock(place, name)
    try:
        if os.listdir(directory):
            return
        root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            source = libc.openat2(root, target, os.O_RDONLY | os.O_DIRECTORY, libc.RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return
        finally:
            os.close(root)
        try:
            _copy(source, directory, f"{place.volumes}/.filling-{name}-{os.urandom(6).hex()}", journal)
        finally:
            os.close(source)
    finally:
        os.close(held)


def _copy(source: int, directory: str, aside: str, journal: Journal) -> None:
    entry = journal.own("tree", path=aside)
    try:
        os.mkdir(aside, 0o700)
        if os.listdir(source):
            _copy_content(source, aside)
        for name in os.listdir(aside):
            os.rename(f"{aside}/{name}", f"{directory}/{name}")
        status = os.fstat(source)
        os.chown(directory, status.st_uid, status.st_gid)
        os.chmod(directory, status.st_mode & 0o7777)
    except OSError as error:
        raise cannot_write(directory, error) from error
    finally:
        remove_tree(aside)
        journal.gone(entry)


def _copy_content(source: int, target: str) -> None:
    command = ["cp", "--archive", "--reflink=auto", "--", f"/proc/self/fd/{source}/.", target]
    os.set_inheritable(source, True)
    pid = os.posix_spawnp("cp", command, os.environ)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise HostError(f"cannot copy the image's content to {target}", hint="is the disk full? (df)")


def users(place: Place, name: str) -> list[Container]:
    """The containers that mount the volume."""
    found = []
    for container in every(place):
        config = read_json(f"{container.path}/config.json")
        if config is not None and any(mount["name"] == name for mount in config["mounts"]):
            found.append(container)
    return found


def remove(place: Place, name: str, journal: Journal) -> None:
    """Delete the volume and what is in it.

    Raises:
        InstanceError: a container uses it, or it is not there.
    """
    held = lock(place, name)
    try:
        if used := users(place, name):
            names = ", ".join(container.name for container in used)
            raise InstanceError(f"volume {name} is used by {names}", hint="remove the containers first")
        _delete(place, name, journal)
    finally:
        os.close(held)


def _delete(place: Place, name: str, journal: Journal) -> None:
    gone = f"{place.volumes}/.removing-{name}-{os.urandom(6).hex()}"
    entry = journal.own("tree", path=gone)
    os.rename(f"{place.volumes}/{name}", gone)
    remove_tree(gone)
    journal.gone(entry)


def remove_anonymous(place: Place, config: dict[str, Any], journal: Journal) -> None:
    """Delete the anonymous volumes of a container that is being removed; those that others use stay."""
    for mount in config["mounts"]:
        if mount.get("anonymous") and os.path.isdir(f"{place.volumes}/{mount['name']}"):
            held = lock(place, mount["name"])
            try:
                if len(users(place, mount["name"])) <= 1:
                    _delete(place, mount["name"], journal)
            finally:
                os.close(held)


def every_volume(place: Place) -> list[dict[str, Any]]:
    """The facts of all volumes, by name."""
    try:
        names = sorted(os.listdir(place.volumes))
    except FileNotFoundError:
        return []
    found = (read_json(f"{place.volumes}/{name}/volume.json") for name in names if not name.startswith("."))
    return [facts for facts in found if facts is not None]
