"""Storage volumes in a pool of ours on the hypervisor's host: how files get to a host that is not this one.

The pool is a directory. Who wants another place or kind of storage defines a pool called ``isomark`` beforehand.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable, HostError, InstanceError
from bench.journal import Entry, Journal
from vms.connection import Connection, User, told
from vms.remedies import hint_for

if TYPE_CHECKING:
    import libvirt

POOL: Final = "isomark"
DIRECTORY: Final = "/var/lib/libvirt/isomark"
_COMPLETE: Final = ".complete"
"""An empty volume beside a kept one says that its upload came to an end."""
_TAIL_BYTES: Final = 4096
_CHUNK: Final = 1 << 16


class Pool:
    """The volumes at ``connection``; made when first needed."""

    def __init__(self, connection: Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal
        self._user: User | None = None

    def keep(self, path: Path) -> PurePosixPath:
        """Return where the content of ``path``, whose name tells it, is on the host; uploaded unless it is there.

        Raises:
            InstanceError: libvirt refuses, or another run is uploading it.
        """
        pool = self._open()
        found = _find(pool, path.name)
        if found is not None and _find(pool, path.name + _COMPLETE) is not None:
            return _where(found)
        with told(f"{path.name}, half uploaded, cannot be replaced"):
            if found is not None:
                found.delete(0)
        volume, entry = self._upload(pool, path, path.name)
        with told(f"libvirt cannot note that {path.name} is complete"):
            pool.createXML(_volume_xml(path.name + _COMPLETE, 0, None), 0)
        self._journal.gone(entry)
        return _where(volume)

    def lend(self, path: Path, name: str, undo: ExitStack) -> PurePosixPath:
        """Upload ``path`` as volume ``name``, which ``undo`` removes; return where it is on the host.

        Raises:
            InstanceError: libvirt refuses.
        """
        volume, entry = self._upload(self._open(), path, name)
        undo.callback(self._take_back, entry)
        return _where(volume)

    def allocated_bytes(self, path: PurePosixPath) -> int:
        """Return what the volume at ``path`` takes on its host's disk (virStorageVolGetInfo, allocation).

        Raises:
            InstanceError: there is none.
        """
        with told(f"libvirt does not tell the size of {path.name}"):
            return int(self._connection.open().storageVolLookupByPath(str(path)).info()[2])

    def _take_back(self, entry: Entry) -> None:
        _delete(self._connection, entry.what["name"])
        self._journal.gone(entry)

    def _upload(self, pool: libvirt.virStoragePool, path: Path, name: str) -> tuple[libvirt.virStorageVol, Entry]:
        entry = self._journal.own("volume", uri=self._connection.address, name=name)
        try:
            with told(f"libvirt cannot take {name}"), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                volume = pool.createXML(_volume_xml(name, size, self._user), 0)
                _send(self._connection.open(), volume, file.fileno(), size)
        except BaseException:
            self._take_back(entry)
            raise
        return volume, entry

    def _open(self) -> libvirt.virStoragePool:
        handle = self._connection.open()
        with told(f"libvirt has no storage pool {POOL}"):
            pool = _look_up(handle)
            if pool is None:
                pool = handle.storagePoolDefineXML(_pool_xml(), 0)
                pool.build(0)
            if not pool.isActive():
                pool.create(0)
        self._user = self._connection.qemu_user()
        return pool


def remove_volume(what: Mapping[str, str]) -> None:
    """Remove the volume ``what["name"]`` of our pool at ``what["uri"]``; idempotent.

    Raises:
        HostError: it is still there, or its host cannot be asked.
    """
    connection = Connection(what["uri"])
    try:
        _delete(connection, what["name"])
    finally:
        connection.close()


def _delete(connection: Connection, name: str) -> None:
    import libvirt

    try:
        pool = _look_up(connection.open())
        if pool is not None and pool.isActive() and (volume := _find(pool, name)) is not None:
            volume.delete(0)
    except DriverUnavailable as error:
        raise HostError(error.message, hint=f"{error.hint}; the volume {name} may still be there") from error
    except libvirt.libvirtError as error:
        raise HostError(f"libvirt cannot remove volume {name}: {error}", hint=hint_for(str(error))) from error


def _look_up(handle: libvirt.virConnect) -> libvirt.virStoragePool | None:
    import libvirt

    try:
        return handle.storagePoolLookupByName(POOL)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return None
        raise


def _find(pool: libvirt.virStoragePool, name: str) -> libvirt.virStorageVol | None:
    import libvirt

    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise InstanceError(f"libvirt cannot look for volume {name}: {error}", hint=hint_for(str(error))) from error


def _where(volume: libvirt.virStorageVol) -> PurePosixPath:
    with told("libvirt does not tell where a volume is"):
        return PurePosixPath(volume.path())


def _send(handle: libvirt.virConnect, volume: libvirt.virStorageVol, fd: int, size: int) -> None:
    """Send what the file holds and tell where it has holes.

    libvirt loses the error of a full disk now and then; nothing is written after it, so the end tells.

    Raises:
        InstanceError: the end did not arrive.
    """
    import libvirt

    tail_at, tail = 0, b""
    with _stream(handle) as stream:
        volume.upload(stream, 0, size, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
        position = 0
        while position < size:
            begin = _seek(fd, position, os.SEEK_DATA, size)
            if begin > position:
                stream.sendHole(begin - position, 0)
            position = _seek(fd, begin, os.SEEK_HOLE, size)
            for offset in range(begin, position, _CHUNK):
                data = os.pread(fd, min(_CHUNK, position - offset), offset)
                _send_all(stream, data)
                tail_at, tail = offset + len(data[:-_TAIL_BYTES]), data[-_TAIL_BYTES:]
    if _receive(handle, volume, tail_at, len(tail)) != tail:
        name = volume.name()
        raise InstanceError(
            f"{name} did not arrive whole: No space left there, it seems", hint=hint_for("no space left")
        )


def _receive(handle: libvirt.virConnect, volume: libvirt.virStorageVol, offset: int, size: int) -> bytes:
    """At most ``size`` bytes of the volume."""
    if not size:
        return b""
    received = b""
    with _stream(handle) as stream:
        volume.download(stream, offset, size, 0)
        while part := stream.recv(size):
            received += part
    return received


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """The next data or hole from ``offset`` on, ``size`` if there is none (lseek(2))."""
    if offset >= size:
        return size
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _send_all(stream: libvirt.virStream, data: bytes) -> None:
    while data:
        data = data[stream.send(data) :]


@contextmanager
def _stream(handle: libvirt.virConnect) -> Iterator[libvirt.virStream]:
    """A blocking stream, finished if all went well."""
    stream = handle.newStream(0)
    try:
        yield stream
    except BaseException:
        stream.abort()
        raise
    stream.finish()


def _pool_xml() -> str:
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = POOL
    ET.SubElement(ET.SubElement(pool, "target"), "path").text = DIRECTORY
    return ET.tostring(pool, encoding="unicode")


def _volume_xml(name: str, size: int, user: User | None) -> str:
    """A raw volume, whatever it holds: libvirt is to copy bytes and not to understand them."""
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", unit="bytes").text = str(size)
    ET.SubElement(volume, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", type="raw")
    if user is not None:
        permissions = ET.SubElement(target, "permissions")
        ET.SubElement(permissions, "mode").text = "0600"
        ET.SubElement(permissions, "owner").text = str(user.uid)
        ET.SubElement(permissions, "group").text = str(user.gid)
    return ET.tostring(volume, encoding="unicode")
