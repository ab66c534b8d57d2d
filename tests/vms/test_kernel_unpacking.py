"""Taking kernels and modules out of whatever they were compressed with."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable

import pytest
import zstandard
from conftest import skip_or_fail

from bench.errors import DriverUnavailable, HostError
from vms.decompress import decompress
from vms.elf import is_static, section
from vms.host import missing_programs
from vms.initramfs import find_busybox
from vms.kernel import GuestKernel
from vms.vmlinux import extract_vmlinux, has_pvh_entry

DATA = b"\x7fELF" + bytes(range(256)) * 400


def lz4(data: bytes) -> bytes:
    if "lz4" in missing_programs():
        skip_or_fail("qemu", "lz4 is not installed")
    return subprocess.run(["lz4", "-l", "-c"], input=data, capture_output=True, check=True).stdout


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4,
}


def bz_image(payload: bytes) -> bytes:
    """The least that extract_vmlinux looks at: set-up sectors, signature, where the payload is."""
    head = bytearray(512 * 5)
    head[0x1F1], head[0x202:0x206] = 4, b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + b"more"


@pytest.mark.parametrize("form", COMPRESSORS)
def test_every_form_that_linux_is_built_with_is_unpacked(form: str) -> None:
    assert decompress(COMPRESSORS[form](DATA)) == DATA


@pytest.mark.parametrize("form", [form for form in COMPRESSORS if form != "none"])
def test_a_kernel_image_gives_the_kernel_inside_it(form: str) -> None:
    size = struct.pack("<I", len(DATA))
    assert extract_vmlinux(bz_image(COMPRESSORS[form](DATA) + size)) == DATA


@pytest.mark.parametrize(
    "data", [b"", b"\x1f\x8bnot gzip at all", b"\xfd7zXZ\0rubbish", b"\x28\xb5\x2f\xfdrubbish", b"?"]
)
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(HostError):
        decompress(data)


def test_a_kernel_cut_short_is_refused() -> None:
    whole = lzma.compress(DATA)
    size = struct.pack("<I", len(DATA))
    with pytest.raises(HostError, match="damaged"):
        extract_vmlinux(bz_image(whole + struct.pack("<I", len(DATA) + 1)))
    with pytest.raises(HostError):
        extract_vmlinux(bz_image(whole[: len(whole) // 2] + size))
    with pytest.raises(HostError, match="not a Linux kernel"):
        extract_vmlinux(bytes(4096))


def test_the_guest_kernel_can_be_entered_directly(kernel: GuestKernel) -> None:
    raw = extract_vmlinux(kernel.image.read_bytes())
    assert section(raw, ".notes")
    assert has_pvh_entry(raw)
    assert not has_pvh_entry(DATA)


def test_busybox_runs_without_a_dynamic_linker() -> None:
    try:
        program = find_busybox()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
        raise
    assert is_static(program.read_bytes())
    with open("/bin/sh", "rb") as shell:
        assert not is_static(shell.read())
