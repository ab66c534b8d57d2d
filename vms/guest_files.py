"""What a guest is started from, as paths on the hypervisor's host: this one, or another that libvirt brings it to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from bench.driver import Lab, Launch
from bench.errors import HostError
from bench.model import Image
from bench.units import MIB
from vms.connection import Connection, User
from vms.domain import Boot, Firmware
from vms.forms import FORMAT, INITRAMFS, KERNEL, PAYLOAD, TREE, UEFI_CODE, UEFI_VARIABLES
from vms.full.seed import payload_files, write_seed
from vms.full.trial_disk import write_trial_disk
from vms.full.user_image import inspect_image
from vms.host import GIVING_REMEDY
from vms.initramfs import trial_archive, write_initrd
from vms.qcow2 import Format, write_overlay
from vms.shared_root import share_read_only
from vms.volumes import Pool


@dataclass(frozen=True)
class GuestFiles:
    """Paths on the hypervisor's host; ``console`` is where a socket may be made on this one.

    A direct guest has ``boot``, any other ``seed``, the disk that says what to do, and under UEFI ``firmware``.
    Without ``disk`` the directory ``backing`` is what it has in its place.
    """

    disk: PurePosixPath | None
    backing: PurePosixPath
    boot: Boot | None = None
    seed: PurePosixPath | None = None
    console: PurePosixPath | None = None
    firmware: Firmware | None = None
    backing_format: Format = "raw"

    @property
    def own(self) -> tuple[PurePosixPath, ...]:
        """Those that only this guest has."""
        initrd = None if self.boot is None else self.boot.initrd
        variables = None if self.firmware is None else self.firmware.variables
        return tuple(path for path in (self.disk, initrd, self.seed, variables) if path is not None)


OVERLAY: Final = "disk.qcow2"
INITRD: Final = "initrd"
SEED: Final = "trial"
VARIABLES: Final = "uefi"
ROOT: Final = "root"


class FileStore(Protocol):
    """Brings files to where the hypervisor can open them."""

    def keep(self, image: Image) -> None:
        """Bring what all trials share; idempotent."""

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Make what one trial has for itself; ``undo`` removes it."""

    def add(self, launch: Launch, undo: ExitStack, /, name: str, write: Callable[[Path], object]) -> PurePosixPath:
        """Have ``write`` make one more file of a trial, at the path it gets; ``undo`` removes it."""

    def allocated_bytes(self, files: GuestFiles) -> int:
        """What the files that only one trial has take on the disk of the hypervisor's host now."""


def places(image: Image, folder: PurePosixPath) -> GuestFiles:
    """The files of a local guest whose own are in ``folder``."""
    shared = {name: PurePosixPath(image.parts[name]) for name in _SHARED if name in image.parts}
    own = {name: folder / name for name in (OVERLAY, INITRD, SEED, VARIABLES)}
    backing = folder / ROOT if TREE in image.parts else PurePosixPath(image.location)
    return replace(_arranged(image, backing, shared, own), console=folder / "console")


class LocalFiles:
    """Files of this host, opened by the user that libvirt runs QEMU as."""

    def __init__(self, lab: Lab, user: Callable[[], User | None]) -> None:
        self._lab = lab
        self._user = user

    def keep(self, image: Image) -> None:
        """Let QEMU's user open a user's image, which is nobody's else to read; all others are here for everybody.

        Raises:
            HostError: it cannot be given away.
        """
        user = self._user() if PAYLOAD in image.parts else None
        if user is not None:
            try:
                os.chown(image.location, user.uid, user.gid)
            except OSError as error:
                raise HostError(
                    f"cannot give {image.location} to QEMU's user {user.uid}: {error.strerror}", hint=GIVING_REMEDY
                ) from error

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Write overlay, initrd or seed, and UEFI's variables into a folder of the trial.

        Raises:
            OSError: it cannot be written.
            ImageError: the user's image is no longer what it was.
            HostError: the image's directory cannot be shared.
        """
        folder = self._lab.scratch / launch.name
        folder.mkdir(mode=0o711)
        undo.callback(_remove, folder)
        for path in write_trial(image, launch, folder, PurePosixPath(image.location)):
            self._hand_over(path)
        if TREE in image.parts:
            share_read_only(image.location, folder / ROOT, undo)
        return places(image, PurePosixPath(folder))

    def add(self, launch: Launch, _undo: ExitStack, name: str, write: Callable[[Path], object]) -> PurePosixPath:
        """Write to the trial's folder, with which it goes.

        Raises:
            OSError: it cannot be written.
        """
        path = self._lab.scratch / launch.name / name
        write(path)
        self._hand_over(path)
        return PurePosixPath(path)

    def _hand_over(self, path: Path) -> None:
        """Make it QEMU's user's, and nobody else's: a guest's memory and disk hold its secrets."""
        path.chmod(0o600)
        if (user := self._user()) is not None:
            os.chown(path, user.uid, user.gid)

    def allocated_bytes(self, files: GuestFiles) -> int:
        """The blocks that the file system has allocated (stat(2)).

        Raises:
            OSError: they are gone.
        """
        return sum(os.stat(path).st_blocks * 512 for path in files.own)


def _remove(folder: Path) -> None:
    """Remove a trial's folder, and never what is mounted in it.

    Raises:
        HostError: something still is.
    """
    try:
        (folder / ROOT).rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        message = f"{folder / ROOT} is not free: {error.strerror}"
        raise HostError(message, hint="umount it, then isomark clean") from error
    shutil.rmtree(folder, ignore_errors=True)


class RemoteFiles:
    """Storage volumes of the hypervisor's host, uploaded through libvirt.

    What trials share is named by its content, uploaded once and kept; what one trial has for itself is
    in the journal and removed with it.
    """

    def __init__(self, lab: Lab, connection: Connection) -> None:
        self._lab = lab
        self._pool = Pool(connection, lab.journal)

    def keep(self, image: Image) -> None:
        """Upload disk, kernel and firmware unless they are there.

        Raises:
            InstanceError: libvirt refuses.
        """
        self._shared(image)

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Upload what one trial has for itself.

        Raises:
            InstanceError: libvirt refuses.
            ImageError: the user's image is no longer what it was.
        """
        backing, shared = self._shared(image)
        folder = self._lab.scratch / launch.name
        folder.mkdir(mode=0o700)
        try:
            own = {
                path.name: self._pool.lend(path, f"{launch.name}.{path.name}", undo)
                for path in write_trial(image, launch, folder, backing)
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return _arranged(image, backing, shared, own)

    def add(self, launch: Launch, undo: ExitStack, name: str, write: Callable[[Path], object]) -> PurePosixPath:
        """Upload what ``write`` makes.

        Raises:
            InstanceError: libvirt refuses.
        """
        path = self._lab.scratch / f"{launch.name}.{name}"
        try:
            write(path)
            return self._pool.lend(path, path.name, undo)
        finally:
            path.unlink(missing_ok=True)

    def allocated_bytes(self, files: GuestFiles) -> int:
        """The allocation of the volumes, as libvirt says.

        Raises:
            InstanceError: they are gone.
        """
        return sum(self._pool.allocated_bytes(path) for path in files.own)

    def _shared(self, image: Image) -> tuple[PurePosixPath, dict[str, PurePosixPath]]:
        """Where the disk and those of ``_SHARED`` are, uploaded if need be."""
        backing = self._pool.keep(image.location)
        return backing, {name: self._pool.keep(Path(image.parts[name])) for name in _SHARED if name in image.parts}


_SHARED: Final = (KERNEL, UEFI_CODE)
"""The parts of an image, beside its disk, that the hypervisor opens."""


def _arranged(
    image: Image, backing: PurePosixPath, shared: Mapping[str, PurePosixPath], own: Mapping[str, PurePosixPath]
) -> GuestFiles:
    """What the guest of ``image`` starts from: ``shared`` by the names of its parts, ``own`` by those of its files."""
    return GuestFiles(
        None if TREE in image.parts else own[OVERLAY],
        backing,
        boot=Boot(shared[KERNEL], own[INITRD]) if KERNEL in shared else None,
        seed=None if KERNEL in shared else own[SEED],
        firmware=Firmware(shared[UEFI_CODE], own[VARIABLES]) if UEFI_CODE in shared else None,
        backing_format="qcow2" if image.parts.get(FORMAT) == "qcow2" else "raw",
    )


def write_trial(image: Image, launch: Launch, folder: Path, backing: PurePosixPath) -> list[Path]:
    """Write the files of one trial to ``folder`` and return them; ``backing`` is where its host has the disk.

    Raises:
        InstanceError: command or environment cannot be expressed.
        ImageError: the user's image is no longer what it was.
        OSError: they cannot be written.
    """
    overlay, first = folder / OVERLAY, folder / (INITRD if KERNEL in image.parts else SEED)
    if KERNEL in image.parts:
        write_initrd(first, Path(image.parts[INITRAMFS]), trial_archive(launch))
    elif PAYLOAD in image.parts:
        write_seed(first, launch, payload_files(Path(image.parts[PAYLOAD])))
    else:
        write_trial_disk(first, launch)
    if TREE in image.parts:
        return [first]
    if PAYLOAD in image.parts:
        users = inspect_image(image.location)
        # the image has the room that it has; its cloud-init takes what is added
        size = -(-(users.size_bytes + launch.limits.disk_bytes) // MIB) * MIB
        write_overlay(overlay, backing, size, users.format)
    else:
        write_overlay(overlay, backing, image.location.stat().st_size)
    if UEFI_VARIABLES not in image.parts:
        return [overlay, first]
    return [overlay, first, Path(shutil.copyfile(image.parts[UEFI_VARIABLES], folder / VARIABLES))]
