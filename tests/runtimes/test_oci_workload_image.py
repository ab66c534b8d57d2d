"""The image of a workload set, made for real from the host's Debian archive."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import fingerprint

from bench.clean import clean
from bench.errors import ImageError
from bench.journal import Journal
from bench.model import Workload, WorkloadImage
from bench.state import journal_directory, state_directory
from bench.workload import find_workload
from runtimes.oci import apt, debian
from runtimes.oci.layout import Layout
from runtimes.oci.workload_image import build_workload_image

pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="comparing owners with umoci needs root")
NAMES = ["boot", "cpu", "memory", "disk", "http"]


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def image() -> Iterator[WorkloadImage]:
    """The image of the suite quick, shared through the default state directory."""
    state = state_directory()
    with Journal(journal_directory(state)) as journal:
        yield build_workload_image([find_workload(name) for name in NAMES], state, journal, silent)


@pytest.fixture
def boot() -> Workload:
    return find_workload("boot")


def config_of(image: WorkloadImage) -> dict[str, Any]:
    source = f"oci:{image.layout}:{image.reference}"
    shown = subprocess.run(["skopeo", "inspect", "--config", source], capture_output=True, text=True, check=True)
    config: dict[str, Any] = json.loads(shown.stdout)
    return config


def test_skopeo_finds_the_image_under_its_reference_and_digest(image: WorkloadImage) -> None:
    source = f"oci:{image.layout}:{image.reference}"
    shown = subprocess.run(["skopeo", "inspect", source], capture_output=True, text=True, check=True)
    facts = json.loads(shown.stdout)
    assert facts["Digest"] == image.digest
    assert facts["Os"] == "linux"
    shown = subprocess.run(["skopeo", "inspect", "--raw", source], capture_output=True, text=True, check=True)
    layers = json.loads(shown.stdout)["layers"]
    assert sum(layer["size"] for layer in layers) == image.compressed_bytes
    assert [layer["digest"] for layer in layers] == facts["Layers"]


@as_root
def test_umoci_unpacks_the_same_tree(image: WorkloadImage, tmp_path: Path) -> None:
    source = f"{image.layout}:{image.reference}"
    subprocess.run(["umoci", "unpack", "--image", source, tmp_path / "bundle"], capture_output=True, check=True)
    theirs = fingerprint(tmp_path / "bundle" / "rootfs")
    assert len(theirs) > 3000
    assert fingerprint(image.tree) == theirs


def test_versions_and_archive_digests_are_recorded(image: WorkloadImage) -> None:
    labels = config_of(image)["config"]["Labels"]
    recorded = json.loads(labels["isomark.packages"])
    assert {name: facts["version"] for name, facts in recorded.items()} == image.packages
    assert {"sysbench", "fio", "nginx", "libc6", "dash"} <= recorded.keys()
    assert all(len(facts["sha256"]) == 64 for facts in recorded.values())
    status = (image.tree / "var/lib/dpkg/status").read_text()
    assert status.count("Status: install ok installed") == len(recorded)
    ask = ["apt-cache", "show", f"fio={recorded['fio']['version']}"]
    shown = subprocess.run(ask, capture_output=True, text=True, check=False)
    if shown.returncode == 0:  # the host may know a later version by now
        assert recorded["fio"]["sha256"] in shown.stdout
    assert labels["isomark.workloads"] == "boot cpu disk http memory"


def test_sizes_are_those_of_the_tree(image: WorkloadImage) -> None:
    files = {path.lstat().st_ino: path.lstat() for path in image.tree.rglob("*")}
    regular = [status.st_size for status in files.values() if stat.S_ISREG(status.st_mode)]
    assert image.unpacked_bytes == sum(regular)
    shown = subprocess.run(["du", "-s", "-B1", image.tree], capture_output=True, text=True, check=True)
    assert image.tree_bytes == int(shown.stdout.split()[0])
    assert image.compressed_bytes < image.unpacked_bytes


def test_nothing_of_this_host_is_in_the_image(image: WorkloadImage) -> None:
    host = os.uname().nodename
    assert (image.tree / "etc/hostname").read_text() == "isomark\n"
    assert (image.tree / "etc/resolv.conf").read_bytes() == b""
    files = [path for path in (image.tree / "etc").rglob("*") if path.is_file() and not path.is_symlink()]
    mirrors = {line.split()[1].encode() for text in apt.sources().values() for line in text.splitlines()
               if line.startswith(("deb ", "URIs:"))}  # fmt: skip
    for path in files:
        content = path.read_bytes()
        assert not any(mirror in content for mirror in mirrors), path
        assert len(host) < 4 or host.encode() not in content, path
    assert list((image.tree / "var/log").rglob("*.log")) == []
    newest = max(path.lstat().st_mtime for path in image.tree.rglob("*"))
    assert newest <= debian.EPOCH


def test_the_payloads_are_in_the_image_and_can_be_run(image: WorkloadImage) -> None:
    for name in NAMES:
        workload = find_workload(name)
        inside = image.tree / workload.command[0].lstrip("/")
        assert inside.read_bytes() == (workload.folder / "payload" / "run").read_bytes()
        assert stat.S_IMODE(inside.stat().st_mode) == 0o755
    assert stat.S_IMODE((image.tree / "isomark/scratch").stat().st_mode) == 0o1777


def test_a_second_build_finds_the_first(image: WorkloadImage) -> None:
    state = state_directory()
    said: list[str] = []
    with Journal(journal_directory(state)) as journal:
        again = build_workload_image([find_workload(name) for name in reversed(NAMES)], state, journal, said.append)
    assert again == image
    assert said == [], "nothing took time"


def test_a_workload_that_starts_the_payload_of_another_adds_nothing(image: WorkloadImage) -> None:
    state = state_directory()
    workloads = [find_workload(name) for name in (*NAMES, "minimum")]
    assert find_workload("minimum").command in [workload.command for workload in workloads[:-1]]
    with Journal(journal_directory(state)) as journal:
        assert build_workload_image(workloads, state, journal, silent) == image


@pytest.fixture(scope="module")
def small_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def small(small_state: Path) -> Iterator[WorkloadImage]:
    """The image of boot alone in a state directory of its own."""
    with Journal(journal_directory(small_state)) as journal:
        yield build_workload_image([find_workload("boot")], small_state, journal, silent)
    assert list(journal_directory(small_state).iterdir()) == [], "everything owned was given back"


def test_another_build_from_nothing_gives_the_same_digest(
    small: WorkloadImage, tmp_path: Path, journal: Journal, boot: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        monkeypatch.setattr(debian, "MEMORY_BYTES", 2**60)  # on the disk, where the first was on a tmpfs
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    monkeypatch.setenv("LC_ALL", "C")
    again = build_workload_image([boot], tmp_path, journal, silent)
    assert again.digest == small.digest
    assert [path.name for path in (tmp_path / "images").iterdir() if path.name.startswith("debian-")] == []


def test_a_changed_payload_keeps_the_debian_layer(
    small: WorkloadImage, small_state: Path, tmp_path: Path, journal: Journal, boot: Workload
) -> None:
    (tmp_path / "boot" / "payload").mkdir(parents=True)
    (tmp_path / "boot" / "payload" / "run").write_text("#!/bin/sh\nexit 7\n")
    said: list[str] = []
    changed = build_workload_image([replace(boot, folder=tmp_path / "boot")], small_state, journal, said.append)
    assert not any("Debian" in text for text in said)
    assert changed.digest != small.digest
    assert changed.reference != small.reference
    assert changed.packages == small.packages
    assert (changed.tree / "isomark/boot/run").read_text().endswith("exit 7\n")


def test_a_lost_tree_and_a_lost_blob_are_made_again(
    small: WorkloadImage, small_state: Path, journal: Journal, boot: Workload
) -> None:
    subprocess.run(["rm", "-r", small.tree], check=True)
    again = build_workload_image([boot], small_state, journal, silent)
    assert replace(again, tree_bytes=0) == replace(small, tree_bytes=0), "blocks of directories may differ"
    assert (small.tree / "isomark/boot/run").exists()
    layout = Layout(small_state / "images")
    manifest = layout.resolve(small.reference)
    assert manifest is not None
    layout.path(manifest).unlink()
    assert build_workload_image([boot], small_state, journal, silent) == again


def test_a_symbolic_link_among_payload_files_is_refused(
    small_state: Path, tmp_path: Path, journal: Journal, boot: Workload
) -> None:
    (tmp_path / "boot" / "payload").mkdir(parents=True)
    (tmp_path / "boot" / "payload" / "run").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="neither file nor directory"):
        build_workload_image([replace(boot, folder=tmp_path / "boot")], small_state, journal, silent)


def test_no_workload_is_no_image(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(ImageError):
        build_workload_image([], tmp_path, journal, silent)


def test_without_mmdebstrap_the_hint_installs_it(
    tmp_path: Path, journal: Journal, boot: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    dpkg = Path("/usr/bin/dpkg")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dpkg").symlink_to(dpkg)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ImageError) as caught:
        build_workload_image([boot], tmp_path / "state", journal, silent)
    assert caught.value.hint.startswith("apt-get install mmdebstrap")


def test_a_package_that_does_not_exist_is_named_and_nothing_is_left(
    tmp_path: Path, journal: Journal, boot: Workload
) -> None:
    with pytest.raises(ImageError, match="isomark-no-such-package"):
        build_workload_image([replace(boot, packages=("isomark-no-such-package",))], tmp_path, journal, silent)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "blobs", "builder.lock", "debian.lock", "index.json", "ingest", "leases", "oci-layout", "partial"}  # fmt: skip
    for name in ("blobs/sha256", "ingest", "leases", "partial"):
        assert list((tmp_path / "images" / name).iterdir()) == []


def _build(state: Path) -> None:
    with Journal(journal_directory(state)) as journal:

        def say(text: str) -> None:
            (state / "said").write_text(text)

        build_workload_image([find_workload("boot")], state, journal, say)


@pytest.fixture(params=["disk", "tmpfs"])
def building(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The pid of a process in the middle of making a Debian tree below ``tmp_path``."""
    if request.param == "disk" and os.geteuid() == 0:
        monkeypatch.setattr(debian, "MEMORY_BYTES", 2**60)
    builder = multiprocessing.get_context("fork").Process(target=_build, args=(tmp_path,))
    builder.start()
    said = tmp_path / "said"
    while not (said.exists() and "extracting" in said.read_text()):
        assert builder.is_alive()
        time.sleep(0.02)
    assert builder.pid is not None
    yield builder.pid
    builder.join()


def _left_behind(state: Path) -> list[str]:
    needle = os.fsencode(str(state))
    return [environ.parent.name for environ in Path("/proc").glob("[0-9]*/environ") if _is_marked(environ, needle)]


def _is_marked(environ: Path, needle: bytes) -> bool:
    try:
        return any(part.startswith(b"TMPDIR=" + needle) for part in environ.read_bytes().split(b"\0"))
    except OSError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_or_interrupted_leaves_nothing(building: int, tmp_path: Path, sent: int) -> None:
    assert _left_behind(tmp_path) != []
    os.kill(building, sent)
    os.waitid(os.P_PID, building, os.WEXITED | os.WNOWAIT)
    if sent == signal.SIGKILL:
        assert [removal for removal in clean(journal_directory(tmp_path)) if removal.fault] == []
    deadline = time.monotonic() + 10
    while _left_behind(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _left_behind(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list((tmp_path / "images").glob("debian-*")) == []
    assert list(journal_directory(tmp_path).iterdir()) == []
