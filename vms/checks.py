"""What ``isomark doctor`` looks at for virtual servers."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.driver import Finding
from bench.errors import DriverUnavailable, HostError
from bench.units import GIB, format_bytes
from vms import host, proof
from vms.connection import Connection, uri
from vms.initramfs import find_busybox
from vms.kernel import find_kernel
from vms.schema import load_schema

VIRTLOGD: Final = Path("/run/libvirt/virtlogd-sock")
ROOM_BYTES: Final = 4 * GIB
"""A kernel, the disks of two images of 400 MB, and what some trials write."""


def findings(state: Path) -> list[Finding]:
    """Return what there is and what is missing, each with its remedy; changes nothing and boots nothing."""
    return [*_programs(), *_kvm(state), *_libvirt(), _kernel(state), _busybox(), _schema(), _room(state)]


def _programs() -> Iterator[Finding]:
    missing = host.missing_programs()
    for program, package in host.PROGRAMS.items():
        if program in missing:
            yield Finding(program, "problem", "not installed", f"script/bootstrap, or: apt-get install {package}")
        else:
            yield Finding(program, "ok", "installed")


def _kvm(state: Path) -> Iterator[Finding]:
    match host.kvm_state():
        case "missing":
            yield Finding("/dev/kvm", "note", host.MISSING_KVM, host.MISSING_KVM_REMEDY)
        case "closed":
            yield Finding("/dev/kvm", "problem", host.CLOSED_KVM, host.KVM_REMEDY)
        case "open":
            yield _proven(state)


def _proven(state: Path) -> Finding:
    try:
        shown = proof.remembered(state)
    except DriverUnavailable:  # told below, by the finding about what is missing
        shown = None
    if shown is None:
        return Finding(
            "/dev/kvm", "note", "libvirt's user can open it; no guest was booted on it yet", "isomark doctor"
        )
    if shown.works:
        return Finding("/dev/kvm", "ok", f"a guest booted on it in {shown.seconds:g} s")
    return Finding(
        "/dev/kvm",
        "note",
        f"no guest boots on it: {shown.reason}",
        "the driver qemu works without it; KVM needs a host with (nested) hardware virtualisation",
    )


def _libvirt() -> Iterator[Finding]:
    if host.kvm_state() == "closed":
        yield Finding("libvirtd", "note", "not asked: it would take a minute with /dev/kvm closed", host.KVM_REMEDY)
    else:
        yield _libvirtd()
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(VIRTLOGD))
        except OSError as error:
            message = f"{VIRTLOGD} does not answer: {error.strerror}"
            yield Finding("virtlogd", "problem", message, "script/bootstrap, or: virtlogd -d")
        else:
            yield Finding("virtlogd", "ok", "answers")


def _libvirtd() -> Finding:
    connection = Connection(uri())
    try:
        libvirt_version, qemu_version = connection.versions()
    except ImportError:
        return Finding("libvirtd", "problem", "the Python package libvirt is not installed", "script/bootstrap")
    except DriverUnavailable as error:
        return Finding("libvirtd", "problem", error.message, error.hint)
    finally:
        connection.close()
    return Finding("libvirtd", "ok", f"libvirt {libvirt_version} with QEMU {qemu_version} at {uri()}")


def _kernel(state: Path) -> Finding:
    try:
        return Finding("guest kernel", "ok", find_kernel(state).version)
    except DriverUnavailable as error:
        return Finding("guest kernel", "problem", error.message, error.hint)


def _busybox() -> Finding:
    try:
        return Finding("busybox", "ok", f"static, at {find_busybox()}")
    except (DriverUnavailable, HostError) as error:
        return Finding("busybox", "problem", error.message, error.hint or "apt-get install busybox-static")


def _schema() -> Finding:
    try:
        load_schema()
    except (DriverUnavailable, ImportError) as error:
        return Finding("libvirt's schema", "problem", str(error), "apt-get install libvirt0; script/bootstrap")
    return Finding("libvirt's schema", "ok", "readable")


def _room(state: Path) -> Finding:
    place = next(path for path in (state, *state.parents) if path.exists())
    free = shutil.disk_usage(place).free
    message = f"{format_bytes(free)} free in {place}"
    if free < ROOM_BYTES:
        return Finding("disk space", "warning", message, f"free {format_bytes(ROOM_BYTES)}, or set ISOMARK_STATE")
    return Finding("disk space", "ok", message)
