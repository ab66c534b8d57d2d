"""The NoCloud seed: what a cloud image reads of it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.driver import Launch
from bench.errors import ImageError
from bench.model import Limits, WorkloadImage
from bench.network import example_lease
from vms.full.iso9660 import iso9660
from vms.full.seed import PAYLOAD_BYTES, payload_files, seed, seed_files

PAYLOAD = {"/isomark/boot/run": b"#!/bin/sh\necho isomark ready\n", "/isomark/lib.sh": b"say() { :; }\n"}


def launch(*, lease: bool = True) -> Launch:
    return Launch("t1-cloud", ("/isomark/boot/run",), {"A": "'"}, Limits(), example_lease() if lease else None)


def user_data() -> dict[str, object]:
    text = seed_files(launch(), PAYLOAD)["user-data"]
    assert text.startswith(b"#cloud-config\n")
    found = json.loads(text.partition(b"\n")[2])
    assert isinstance(found, dict)
    return found


def test_it_is_a_file_system_called_cidata(tmp_path: Path) -> None:
    (tmp_path / "seed").write_bytes(seed(launch(), PAYLOAD))
    command = ["/sbin/blkid", "-p", "-o", "export", str(tmp_path / "seed")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"TYPE=iso9660", "LABEL=cidata"} <= set(shown)


def test_it_has_both_files_and_the_network(tmp_path: Path) -> None:
    files = seed_files(launch(), PAYLOAD)
    assert set(files) == {"meta-data", "user-data", "network-config"}
    assert json.loads(files["meta-data"]) == {"instance-id": "t1-cloud", "local-hostname": "t1-cloud"}
    card = json.loads(files["network-config"])["ethernets"]["isomark"]
    assert card["addresses"] == ["10.213.0.2/16"]
    assert card["match"] == {"macaddress": example_lease().mac}
    assert (card["accept-ra"], card["link-local"]) == (False, []), "what nobody sends is not waited for"


def test_without_a_lease_nothing_waits_for_an_address() -> None:
    assert json.loads(seed_files(launch(lease=False), PAYLOAD)["network-config"]) == {"version": 2, "ethernets": {}}


def test_no_metadata_server_is_asked_now_or_at_a_later_boot() -> None:
    data = user_data()
    assert data["datasource_list"] == ["NoCloud", "None"]
    assert written(data)["/etc/cloud/cloud.cfg.d/99-isomark.cfg"] == b'datasource_list: ["NoCloud", "None"]\n'


def test_the_workload_becomes_a_unit_with_its_payload() -> None:
    data = user_data()
    files = written(data)
    assert files["/isomark/boot/run"] == PAYLOAD["/isomark/boot/run"]
    assert b"payload()" in files["/run/isomark/trial"]
    assert b"ExecStart" in files["/etc/systemd/system/isomark-workload.service"]
    assert "isomark-workload.service" in str(data["runcmd"])


def test_cloud_init_finds_no_fault_in_it(tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("cloud-init is not installed")
    (tmp_path / "user-data").write_bytes(seed_files(launch(), PAYLOAD)["user-data"])
    command = ["cloud-init", "schema", "--config-file", str(tmp_path / "user-data")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_payload_is_what_lies_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "isomark/boot").mkdir(parents=True)
    (tmp_path / "isomark/boot/run").write_bytes(b"#!/bin/sh\n")
    image = WorkloadImage("x", "sha256:0", tmp_path, tmp_path, 1, 1, 1)
    assert payload_files(image.tree) == {"/isomark/boot/run": b"#!/bin/sh\n"}
    (tmp_path / "isomark/large").write_bytes(bytes(PAYLOAD_BYTES))
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        payload_files(image.tree)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True), st.binary(max_size=5000), max_size=6))
def test_another_program_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    if shutil.which("xorriso") is None:
        pytest.skip("xorriso is not installed")
    folder = tmp_path_factory.mktemp("iso")
    (folder / "iso").write_bytes(iso9660("cidata", files))
    command = ["xorriso", "-osirrox", "on", "-indev", str(folder / "iso"), "-extract", "/", str(folder / "out")]
    subprocess.run(command, capture_output=True, check=True)
    assert {path.name.lower(): path.read_bytes() for path in (folder / "out").iterdir()} == files


@pytest.mark.parametrize("name", ["", "../x", "UPPER", "a b", "x" * 29])
def test_a_name_that_it_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names"):
        iso9660("cidata", {name: b""})


def written(data: dict[str, object]) -> dict[str, bytes]:
    files = data["write_files"]
    assert isinstance(files, list)
    return {file["path"]: base64.b64decode(file["content"]) for file in files}
