from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DriverUnavailable, InstanceError, OptionsError
from vms.domain import Boot, Domain, Firmware, Nic, Platform, domain_xml
from vms.options import DomainOptions
from vms.qemu import KERNEL_ARGUMENTS, KVM, QEMU
from vms.schema import SCHEMA, validate
from vms.xen import XEN_HVM, XEN_PV, XEN_PVH

GOLDEN = Path(__file__).parent / "golden"
PLATFORMS = (QEMU, KVM, XEN_PV, XEN_PVH, XEN_HVM)
NIC = Nic("iso0000000001", "02:15:0a:d5:00:02")
BOOT = Boot(PurePosixPath("/s/boot/vmlinux"), PurePosixPath("/s/scratch/initrd"))
FULL = DomainOptions(guest="full", firmware="bios")
IMAGE = DomainOptions(guest="image", firmware="bios", image=Path("/srv/cloud.qcow2"))
UEFI = Firmware(PurePosixPath("/s/boot/OVMF_CODE.fd"), PurePosixPath("/s/scratch/uefi"))


def domain(
    platform: Platform = QEMU,
    nic: Nic | None = NIC,
    name: str = "iso-x-1",
    options: DomainOptions | None = None,
    boot: Boot | None = BOOT,
    seed: PurePosixPath | None = None,
) -> Domain:
    return Domain(
        platform=platform, name=name, uuid="00000000-0000-4000-8000-000000000001", owner="0badcafe", cpus=2,
        memory_bytes=512 * 1024**2, boot=boot, disk=PurePosixPath("/s/scratch/disk.qcow2"),
        backing=PurePosixPath("/s/disks/disk.raw"), console=PurePosixPath("/s/scratch/console"), nic=nic,
        seed=seed, options=options or DomainOptions(),
    )  # fmt: skip


def full(platform: Platform, options: DomainOptions = FULL) -> Domain:
    return domain(platform, options=options, boot=None, seed=PurePosixPath("/s/scratch/trial"))


def _golden(name: str, xml: str) -> None:
    """Compare with the golden file, and with libvirt's grammar."""
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("ISOMARK_REGENERATE"):
        golden.write_text(xml)
    assert xml == golden.read_text()
    _require_schema()
    validate(xml)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
@pytest.mark.parametrize("nic", [NIC, None], ids=["network", "alone"])
def test_a_direct_guest_is_the_golden_one_and_valid(platform: Platform, nic: Nic | None) -> None:
    bridge = DomainOptions(network="bridge:xenbr0") if not platform.is_qemu and nic else DomainOptions()
    _golden(f"{platform.name}-{'network' if nic else 'alone'}", domain_xml(domain(platform, nic, options=bridge)))


@pytest.mark.parametrize("platform", [QEMU, KVM, XEN_HVM], ids=lambda platform: platform.name)
def test_a_full_guest_is_the_golden_one_and_valid(platform: Platform) -> None:
    network = "lab" if platform.is_qemu else "bridge:xenbr0"
    _golden(f"{platform.name}-full", domain_xml(full(platform, replace(FULL, network=network))))


@pytest.mark.parametrize("guest", [FULL, IMAGE], ids=["full", "image"])
def test_a_guest_with_uefi_is_the_golden_one_and_valid(guest: DomainOptions) -> None:
    name = f"qemu-{guest.guest}-ovmf"
    _golden(name, domain_xml(replace(full(QEMU, replace(guest, firmware="ovmf")), firmware=UEFI)))


@pytest.mark.parametrize("backing_format", ["raw", "qcow2"])
def test_a_guest_from_an_image_of_the_user_s_is_the_golden_one_and_valid(
    backing_format: Literal["raw", "qcow2"],
) -> None:
    suffix = "raw" if backing_format == "raw" else "qcow2"
    guest = replace(full(QEMU, IMAGE), backing_format=backing_format, backing=PurePosixPath(f"/s/disks/user.{suffix}"))
    _golden(f"qemu-image-{suffix}", domain_xml(guest))


def test_libvirt_is_never_left_to_guess_a_format_or_to_choose_a_firmware() -> None:
    root = ET.fromstring(domain_xml(replace(full(QEMU, IMAGE), backing_format="qcow2", firmware=UEFI)))
    assert root.find("os[@firmware]") is None
    assert [loader.text for loader in root.iter("loader")] == [str(UEFI.code)]
    assert [nvram.text for nvram in root.iter("nvram")] == [str(UEFI.variables)]
    chain = root.findall("devices/disk/backingStore")
    assert [element.find("format").attrib for element in chain] == [{"type": "qcow2"}]  # type: ignore[union-attr]
    assert chain[0].find("backingStore") is not None, "an empty one ends the chain, so QEMU looks for no further file"
    assert all(driver.get("type") for driver in root.iterfind("devices/disk/driver"))


def test_every_option_shows_in_the_golden_guest_that_has_them_all() -> None:
    options = DomainOptions(
        guest="image", image=Path("/srv/cloud.qcow2"), firmware="bios",
        sockets=1, cores=1, threads=2, pin=("0", "1-2"), cpu="host-model",
        huge_pages=True,
        balloon="virtio", free_page_reporting=True, disk_bus="scsi", cache="none", io="native", iothreads=1,
        network="network:default", network_model="e1000", machine="pc", virtiofs=Path("/srv/shared"),
    )  # fmt: skip
    assert options.faults() == []
    _golden("kvm-options", domain_xml(full(KVM, options)))


def test_a_guest_without_disk_and_serial_port_is_the_golden_one_and_valid() -> None:
    options = DomainOptions(root="virtiofs", console="virtio")
    fitted = QEMU.fit(QEMU, options)
    xml = domain_xml(replace(domain(fitted, options=options), disk=None, backing=PurePosixPath("/s/scratch/root")))
    assert "<disk" not in xml
    assert "<serial" not in xml
    _golden("qemu-virtiofs", xml)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (DomainOptions(iothreads=1), "iothread"),
        (DomainOptions(console="virtio"), "virtio-serial"),
        (DomainOptions(balloon="virtio"), "stats period"),
        (DomainOptions(network="user"), 'type="user"'),
        (DomainOptions(network="none"), ""),
        (DomainOptions(network="network:default"), 'network="default"'),
        (DomainOptions(cpu="host-model"), "host-model"),
        (DomainOptions(cache="directsync", io="native"), "directsync"),
        (DomainOptions(cache="none", io="io_uring"), "io_uring"),
        (DomainOptions(huge_pages=True), "hugepages"),
        (DomainOptions(sockets=2, cores=1), 'sockets="2"'),
        (DomainOptions(machine="microvm"), "microvm"),
    ],
)
def test_an_option_alone_is_valid_too(options: DomainOptions, word: str) -> None:
    assert options.faults() == []
    xml = domain_xml(domain(options=options))
    assert word in xml
    _require_schema()
    validate(xml)


def test_a_topology_must_multiply_to_the_cpus_granted() -> None:
    with pytest.raises(OptionsError, match=r"limits\.cpus = 2"):
        domain_xml(domain(options=DomainOptions(cores=3)))


def test_pins_must_be_as_many_as_the_cpus_granted() -> None:
    with pytest.raises(OptionsError, match=r"pin: 1 virtual CPUs are not limits\.cpus = 2"):
        domain_xml(domain(options=DomainOptions(pin=("0",))))


def _require_schema() -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not installed")


def test_a_fault_in_the_xml_is_caught_before_libvirt_sees_it() -> None:
    _require_schema()
    with pytest.raises(InstanceError, match="libvirt's schema"):
        validate(domain_xml(domain()).replace("<memory", "<memorie").replace("</memory", "</memorie"))


def test_a_missing_schema_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DriverUnavailable) as caught:
        validate(domain_xml(domain()), tmp_path / "domain.rng")
    assert "apt-get install" in caught.value.hint


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_name_is_carried_exactly_or_refused(name: str) -> None:
    try:
        xml = domain_xml(domain(name=name))
    except ValueError:
        assert re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", name)
        return
    assert ET.fromstring(xml).findtext("name") == name.replace("\r\n", "\n").replace("\r", "\n")


def test_the_owner_stands_in_the_metadata() -> None:
    root = ET.fromstring(domain_xml(domain()))
    mark = root.find("metadata/{urn:isomark:domain:1}instance")
    assert mark is not None
    assert mark.attrib == {"owner": "0badcafe", "trial": "iso-x-1"}


def test_only_the_accelerator_tells_kvm_from_qemu() -> None:
    def plain(platform: Platform) -> str:
        root = ET.fromstring(domain_xml(domain(platform)))
        root.attrib.pop("type")
        (cpu,) = root.findall("cpu")
        cpu.attrib.clear()
        return ET.tostring(root, encoding="unicode")

    assert plain(QEMU) == plain(KVM)


def test_the_guest_keeps_its_mitigations() -> None:
    assert not any("mitigations" in argument or "pti" in argument for argument in KERNEL_ARGUMENTS)


def test_the_description_alone_decides_the_bytes() -> None:
    assert domain_xml(domain()) == domain_xml(replace(domain()))
