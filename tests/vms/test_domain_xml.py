from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DriverUnavailable, InstanceError
from vms.domain import KERNEL_ARGUMENTS, Domain, Nic, domain_xml
from vms.schema import SCHEMA, validate

GOLDEN = Path(__file__).parent / "golden"
NIC = Nic("iso0000000001", "02:15:0a:d5:00:02")


def domain(accelerator: Literal["qemu", "kvm"] = "qemu", nic: Nic | None = NIC, name: str = "iso-x-1") -> Domain:
    return Domain(
        accelerator=accelerator, name=name, uuid="00000000-0000-4000-8000-000000000001", owner="0badcafe", cpus=2,
        memory_bytes=512 * 1024**2, kernel=Path("/s/boot/vmlinux"), initrd=Path("/s/scratch/initrd"),
        disk=Path("/s/scratch/disk.qcow2"), backing=Path("/s/disks/disk.raw"), console=Path("/s/scratch/console"),
        nic=nic,
    )  # fmt: skip


@pytest.mark.parametrize("accelerator", ["qemu", "kvm"])
@pytest.mark.parametrize("nic", [NIC, None], ids=["network", "alone"])
def test_the_xml_is_the_golden_one_and_valid(accelerator: Literal["qemu", "kvm"], nic: Nic | None) -> None:
    golden = GOLDEN / f"{accelerator}-{'network' if nic else 'alone'}.xml"
    xml = domain_xml(domain(accelerator, nic))
    if os.environ.get("ISOMARK_REGENERATE"):
        golden.write_text(xml)
    assert xml == golden.read_text()
    _require_schema()
    validate(xml)


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
    def plain(accelerator: Literal["qemu", "kvm"]) -> str:
        root = ET.fromstring(domain_xml(domain(accelerator)))
        root.attrib.pop("type")
        (cpu,) = root.findall("cpu")
        cpu.attrib.clear()
        return ET.tostring(root, encoding="unicode")

    assert plain("qemu") == plain("kvm")


def test_the_guest_keeps_its_mitigations() -> None:
    assert not any("mitigations" in argument or "pti" in argument for argument in KERNEL_ARGUMENTS)


def test_the_description_alone_decides_the_bytes() -> None:
    assert domain_xml(domain()) == domain_xml(replace(domain()))
