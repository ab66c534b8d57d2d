"""What a guest is started from, as paths on the hypervisor's host: this one, or another that libvirt brings it to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from bench.driver import Lab, Launch
from bench.model import Image
from vms.connection import Connection, User
from vms.domain import Boot
from vms.full.trial_disk import write_trial_disk
from vms.initramfs import trial_archive, write_initrd
from vms.qcow2 import write_overlay
from vms.volumes import Pool


@dataclass(frozen=True)
class GuestFiles:
    """Paths on the hypervisor's host; ``console`` is where a socket may be made on this one.

    A direct guest has ``boot``, a full one ``seed``, the disk that says what to do, and on this host ``nvram``.
    """

    disk: PurePosixPath
    backing: PurePosixPath
    boot: Boot | None = None
    seed: PurePosixPath | None = None
    console: PurePosixPath | None = None
    nvram: PurePosixPath | None = None


KERNEL: Final = "kernel"
"""The part that only the image of a direct guest has."""
OVERLAY: Final = "disk.qcow2"
INITRD: Final = "initrd"
SEED: Final = "trial"


class FileStore(Protocol):
    """Brings files to where the hypervisor can open them."""

    def keep(self, image: Image) -> None:
        """Bring what all trials share; idempotent."""

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Make what one trial has for itself; ``undo`` removes it."""


def places(image: Image, folder: PurePosixPath) -> GuestFiles:
    """The files of a local guest whose own are in ``folder``."""
    made = GuestFiles(folder / OVERLAY, PurePosixPath(image.location), console=folder / "console")
    if KERNEL in image.parts:
        return replace(made, boot=Boot(PurePosixPath(image.parts[KERNEL]), folder / INITRD))
    return replace(made, seed=folder / SEED, nvram=folder / "nvram")


class LocalFiles:
    """Files of this host, opened by the user that libvirt runs QEMU as."""

    def __init__(self, lab: Lab, user: Callable[[], User | None]) -> None:
        self._lab = lab
        self._user = user

    def keep(self, image: Image) -> None:
        """Nothing to bring: ``image`` is here."""

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Write initrd and overlay into a folder of the trial.

        Raises:
            OSError: it cannot be written.
        """
        folder = self._lab.scratch / launch.name
        folder.mkdir(mode=0o711)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        user = self._user()
        for path in write_trial(image, launch, folder, PurePosixPath(image.location)):
            if user is not None:
                os.chown(path, user.uid, user.gid)
        return places(image, PurePosixPath(folder))


class RemoteFiles:
    """Storage volumes of the hypervisor's host, uploaded through libvirt.

    What trials share is named by its content, uploaded once and kept; what one trial has for itself is
    in the journal and removed with it.
    """

    def __init__(self, lab: Lab, connection: Connection) -> None:
        self._lab = lab
        self._pool = Pool(connection, lab.journal)

    def keep(self, image: Image) -> None:
        """Upload kernel and disk unless they are there.

        Raises:
            InstanceError: libvirt refuses.
        """
        self._shared(image)

    def lay_out(self, image: Image, launch: Launch, undo: ExitStack) -> GuestFiles:
        """Upload what one trial has for itself.

        Raises:
            InstanceError: libvirt refuses.
        """
        backing, kernel = self._shared(image)
        folder = self._lab.scratch / launch.name
        folder.mkdir(mode=0o700)
        try:
            own = {
                path.name: self._pool.lend(path, f"{launch.name}.{path.name}", undo)
                for path in write_trial(image, launch, folder, backing)
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        boot = None if kernel is None else Boot(kernel, own[INITRD])
        return GuestFiles(own[OVERLAY], backing, boot, own.get(SEED))

    def _shared(self, image: Image) -> tuple[PurePosixPath, PurePosixPath | None]:
        """Where disk and kernel are, uploaded if need be."""
        backing = self._pool.keep(image.location)
        kernel = image.parts.get(KERNEL)
        return backing, None if kernel is None else self._pool.keep(Path(kernel))


def write_trial(image: Image, launch: Launch, folder: Path, backing: PurePosixPath) -> list[Path]:
    """Write the files of one trial to ``folder`` and return them; ``backing`` is where its host has the disk.

    Raises:
        InstanceError: command or environment cannot be expressed.
        OSError: they cannot be written.
    """
    overlay, first = folder / OVERLAY, folder / (INITRD if KERNEL in image.parts else SEED)
    if KERNEL in image.parts:
        write_initrd(first, Path(image.parts["initramfs"]), trial_archive(launch))
    else:
        write_trial_disk(first, launch)
    write_overlay(overlay, backing, image.location.stat().st_size)
    return [overlay, first]
