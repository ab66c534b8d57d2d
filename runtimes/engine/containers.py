"""All containers: making one, finding one, listing, and the index of names.

A name is a symbolic link ``containers/names/NAME`` to the id: making it is atomic and fails if it is taken. A container
comes to be as ``.making-ID``, locked by its maker, and exists once that was renamed to its id; removing goes the
other way, through ``.removing-ID``. So every crash leaves something that can be told apart, and that the maker's or
remover's journal names (kind ``container``, ``runtimes.engine.removal``).
"""

from __future__ import annotations

import errno
import fcntl
import os

from bench.errors import InstanceError, UsageError
from runtimes import usernamespace
from runtimes.engine import text
from runtimes.engine.container import SHORT, Container, cannot_write, fresh_state, no_such
from runtimes.engine.files import is_locked, remove_tree, write_whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.place import Place

ID_DIGITS = 64
_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALPHANUMERIC | frozenset("_.-")
_HEX = frozenset("0123456789abcdef")
MAX_NAME = 128


def new_id() -> str:
    """A fresh id."""
    return os.urandom(ID_DIGITS // 2).hex()


def check_name(name: str) -> None:
    """Check that ``name`` can be a container's or a volume's.

    Raises:
        UsageError: it cannot.
    """
    if not name or name[0] not in _ALPHANUMERIC or not _NAME.issuperset(name) or len(name) > MAX_NAME:
        raise UsageError(
            f"{name[:MAX_NAME]!r} cannot be a name",
            hint=f"letters, digits and then also '_', '.' and '-', at most {MAX_NAME}",
        )
    if len(name) == ID_DIGITS and _HEX.issuperset(name):
        raise UsageError(f"{name!r} cannot be a name: it looks like an id")


def add(place: Place, ident: str, config: dict[str, Any]) -> Container:
    """Write a container to disk; it is whole, and has its name, or it is not there.

    The caller's journal owns it already. Its root directory has the mode and owner of the image's.

    Raises:
        InstanceError: the name is taken.
        HostError: the disk does not take it.
    """
    making = f"{place.containers}/.making-{ident}"
    container = Container(place, ident)
    fd = -1
    try:
        os.mkdir(making, 0o700)
        fd = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        for part in ("upper", "work", "root"):
            os.mkdir(f"{making}/{part}", 0o755)
        _make_like(f"{making}/upper", config["tree"])
        write_whole(f"{making}/state.json", text.dumps(fresh_state()).encode(), sync=not config["auto_remove"])
        write_whole(f"{making}/config.json", text.dumps(config).encode(), sync=not config["auto_remove"])
        _take_name(place, config["name"], ident)
        try:
            os.rename(making, container.path)
        except OSError:
            drop_name(place, config["name"], ident)
            raise
    except BaseException as error:
        if fd != -1:
            os.close(fd)  # first: removing takes a descriptor as well
        remove_tree(making)
        if isinstance(error, OSError):
            raise cannot_write(place.containers, error) from error
        raise
    os.close(fd)
    return container


def is_half_made(place: Place, ident: str) -> bool:
    """Whether ``add`` failed and could not take back what it had made."""
    return os.path.lexists(f"{place.containers}/.making-{ident}")


def _make_like(directory: str, tree: str) -> None:
    """Give ``directory`` the mode and owner of ``tree``."""
    wanted, found = os.stat(tree), os.stat(directory)
    os.chmod(directory, wanted.st_mode & 0o7777)
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        usernamespace.within(lambda: _own_like(directory, tree))


def _own_like(directory: str, tree: str) -> None:
    wanted = os.stat(tree)  # once more: the numbers are others in a user namespace
    os.chown(directory, wanted.st_uid, wanted.st_gid)
    os.chmod(directory, wanted.st_mode & 0o7777)


def _take_name(place: Place, name: str, ident: str) -> None:
    link = f"{place.names}/{name}"
    for _ in range(100):
        try:
            os.symlink(ident, link)
        except FileExistsError:
            holder = _holder(place, name)
            if holder is not None and is_id(holder) and _exists(place, holder):
                raise InstanceError(
                    f"the name {name!r} is taken by container {holder[:SHORT]}",
                    hint=f"remove that one (isomark container rm {name}) or choose another name",
                ) from None
            if holder is not None:
                drop_name(place, name, holder)
        else:
            return
    raise InstanceError(f"the name {name!r} is taken again and again")


def is_id(text_: str) -> bool:
    """Whether it is a whole id: what leads elsewhere, somebody else put there."""
    return len(text_) == ID_DIGITS and _HEX.issuperset(text_)


def _exists(place: Place, ident: str) -> bool:
    return _is_being_made(place, ident) or os.path.isdir(f"{place.containers}/{ident}")


def _holder(place: Place, name: str) -> str | None:
    try:
        return os.readlink(f"{place.names}/{name}")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # no link: not ours
            return None
        raise


def drop_name(place: Place, name: str, ident: str) -> None:
    """Give the name back, if it is still that of container ``ident``; a lock keeps two droppers apart."""
    fd = os.open(place.names, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _holder(place, name) == ident:
            os.unlink(f"{place.names}/{name}")
    finally:
        os.close(fd)


def _is_being_made(place: Place, ident: str) -> bool:
    """Whether its maker lives: it holds the lock on the directory."""
    return is_locked(f"{place.containers}/.making-{ident}", os.O_RDONLY | os.O_DIRECTORY)


def remove_directory(container: Container, name: str) -> None:
    """Delete a container that nobody uses; from the first step on it is not there. The caller's journal owns it.

    Raises:
        HostError: something of it cannot be deleted.
    """
    removing = f"{container.place.containers}/.removing-{container.id}"
    try:
        os.rename(container.path, removing)
    except FileNotFoundError:
        return
    drop_name(container.place, name, container.id)
    remove_tree(removing)


def every(place: Place) -> list[Container]:
    """All containers, in no order."""
    try:
        found = os.listdir(place.containers)
    except FileNotFoundError:
        return []
    return [Container(place, name) for name in found if is_id(name)]


def find(place: Place, text_: str) -> Container:
    """The container with this id, name, or beginning of an id.

    Raises:
        InstanceError: there is none, or several begin so.
    """
    if is_id(text_):
        matches = [Container(place, text_)]
    elif text_ and _NAME.issuperset(text_) and (holder := _holder(place, text_)) is not None:
        matches = [Container(place, holder)] if is_id(holder) else []
    elif text_ and _HEX.issuperset(text_):
        matches = [container for container in every(place) if container.id.startswith(text_)]
    else:
        matches = []
    if len(matches) > 1:
        raise InstanceError(f"several containers' ids begin with {text_!r}", hint="write more of it")
    if not matches or not os.path.isdir(matches[0].path):
        raise no_such(text_)
    return matches[0]
