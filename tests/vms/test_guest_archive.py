from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.driver import Launch
from bench.errors import DriverUnavailable, InstanceError
from bench.model import Limits
from bench.network import example_lease
from vms import cpio
from vms.initramfs import base_archive, find_busybox, trial_script
from vms.kernel import GuestKernel, find_kernel
from vms.modules import dependencies, load_order

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def launch(*command: str, **environment: str) -> Launch:
    return Launch("iso-x-1", command, environment, Limits(), example_lease())


def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    entries = [
        cpio.directory("etc"), cpio.file("etc/a file", b"x" * 1001, 0o640), cpio.link("etc/link", "a file"),
        cpio.character_device("null", 1, 3),
    ]  # fmt: skip
    data = cpio.archive(entries)
    listed = subprocess.run(["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True).stdout.decode()
    lines = listed.splitlines()
    assert [line.split()[0] for line in lines] == ["drwxr-xr-x", "-rw-r-----", "lrwxrwxrwx", "crw-------"]
    assert "1001" in lines[1]
    assert lines[2].endswith("etc/link -> a file")
    subprocess.run(["cpio", "-id", "--quiet", "etc/*"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "etc/link").read_bytes() == b"x" * 1001


def test_archives_may_follow_one_another(tmp_path: Path) -> None:
    first, second = cpio.archive([cpio.file("one", b"1")]), cpio.archive([cpio.file("two", b"2")])
    assert len(first) % 512 == len(second) % 512 == 0


def test_modules_come_after_what_they_need(kernel: GuestKernel) -> None:
    order = load_order(kernel.modules, ["virtio_net", "virtio_blk", "virtio_pci"])
    names = list(order)
    assert {"virtio", "virtio_ring", "virtio_pci", "virtio_blk", "virtio_net"} <= set(names)
    for name, data in order.items():
        for needed in dependencies(data):
            assert names.index(needed) < names.index(name) if needed in names else True
    assert load_order(kernel.modules, ["virtio_net", "virtio_blk", "virtio_pci"]) == order


def test_a_kernel_without_virtio_is_told(kernel: GuestKernel) -> None:
    with pytest.raises(DriverUnavailable, match="has no no_such_module") as caught:
        load_order(kernel.modules, ["no_such_module"])
    assert "script/bootstrap" in caught.value.hint


def test_the_same_parts_give_the_same_bytes(kernel: GuestKernel) -> None:
    modules = load_order(kernel.modules, ["virtio_blk"])
    busybox = find_busybox().read_bytes()
    assert base_archive(modules, busybox) == base_archive(modules, busybox)


def test_no_kernel_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DriverUnavailable, match="no guest kernel") as caught:
        find_kernel(tmp_path)
    assert caught.value.hint == "script/bootstrap"


def test_the_newest_kernel_is_taken(tmp_path: Path) -> None:
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64"):
        package = tmp_path / "kernels" / f"linux-image-{version}"
        (package / "boot").mkdir(parents=True)
        (package / "boot" / f"vmlinuz-{version}").touch()
        (package / "lib/modules" / version).mkdir(parents=True)
    assert find_kernel(tmp_path).version == "6.1.0-10-cloud-amd64"


@given(st.lists(words, min_size=1, max_size=4), st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), words))
def test_every_word_and_variable_reaches_the_payload_as_it_is(command: list[str], environment: dict[str, str]) -> None:
    script = trial_script(launch(*command, **environment))
    # read by a shell as the guest's init does; printf stands for what would be executed
    shown = script.replace("exec env -i", "printf '%s\\0' -i") + "payload"
    ended = subprocess.run(["/bin/busybox", "sh", "-c", shown], capture_output=True, check=True)
    heard = ended.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
    assert heard == ["-i", *(f"{n}={v}" for n, v in environment.items()), "/bin/chroot", "/root", *command]


@pytest.mark.parametrize(
    ("command", "environment"), [((), {}), (("a\0b",), {}), (("a",), {"X": "\0"}), (("a",), {"X=": ""})]
)
def test_what_no_process_could_be_given_is_refused(command: tuple[str, ...], environment: dict[str, str]) -> None:
    with pytest.raises(InstanceError):
        trial_script(Launch("n", command, environment, Limits(), None))
