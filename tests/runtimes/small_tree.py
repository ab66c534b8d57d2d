"""What the tests of both built-in drivers share: a busybox as image, a lab in a temporary directory."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, HostError
from bench.journal import Journal
from bench.model import Image, Limits, WorkloadImage
from bench.network import LabNetwork
from runtimes.driver import MOUNT_POINTS, SandboxDriver
from runtimes.instance import ProcessInstance

APPLETS = ("sh", "cat", "chmod", "echo", "env", "grep", "head", "hostname", "httpd", "id", "ip", "ls", "mkdir", "mknod",
           "mount", "nproc", "ps", "rm", "setsid", "sleep", "stat", "tail", "touch", "true", "unshare", "wc",
           "wget")  # fmt: skip
MIB = 1024**2
_numbers = itertools.count()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_tree(root: Path) -> Path:
    """The smallest image that can run shell scripts."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox: apt-get install busybox-static")
    for name in ("bin", "etc", *MOUNT_POINTS):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    return root


def digest_of(tree: Path) -> str:
    """A digest of every name, mode, size, modification time, link text and content below ``tree``."""
    digest = hashlib.sha256()
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted([*names, *files, "."]):
            path = Path(directory, name)
            found = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            link = os.readlink(path) if path.is_symlink() else ""
            digest.update(repr((str(path), found.st_mode, found.st_size, found.st_mtime_ns, link, content)).encode())
    return digest.hexdigest()


@contextmanager
def open_small_lab(state: Path) -> Iterator[Lab]:
    """A lab of its own, with a network where root allows it."""
    scratch = state / "scratch"
    scratch.mkdir(parents=True)
    with Journal(state / "owned") as journal:
        try:
            network = LabNetwork(journal)
        except HostError:
            yield Lab(state, scratch, journal, None)
            return
        try:
            yield Lab(state, scratch, journal, network)
        finally:
            network.close()


class Rig:
    """One driver with the small tree as its image."""

    def __init__(self, driver: SandboxDriver, tree: Path, lab: Lab) -> None:
        self.driver = driver
        self.tree = tree
        self.lab = lab

    @property
    def image(self) -> Image:
        return self.driver.build(WorkloadImage("small", "sha256:0", self.tree, self.tree, 1, 2, 3))

    def launch(self, *command: str, limits: Limits | None = None, network: bool = False, **environment: str) -> Launch:
        lease = self.lab.network.lease() if network and self.lab.network is not None else None
        name = f"t-{next(_numbers)}"
        return Launch(name, command, {"PATH": "/bin", **environment}, limits or Limits(), lease)

    def start(self, *command: str, **options: object) -> ProcessInstance:
        return self.driver.start(self.image, self.launch(*command, **options))

    def shell(self, script: str, **options: object) -> ProcessInstance:
        return self.start("/bin/sh", "-c", script, **options)

    def output(self, script: str, **options: object) -> list[str]:
        """Everything a shell script prints until it ends."""
        with self.shell(script, **options) as instance:
            return [line.text for line in instance.lines(30)]


@contextmanager
def open_rig(driver_class: type[SandboxDriver], directory: Path) -> Iterator[Rig]:
    """The driver on the small tree; skips with the reason where it cannot run."""
    with open_small_lab(directory / "state") as lab:
        driver = driver_class(lab)
        try:
            driver.check()
        except DriverUnavailable as error:
            skip_or_fail(driver.name, error.message)
        try:
            yield Rig(driver, make_tree(directory / "tree"), lab)
        finally:
            driver.close()


def wait_for(instance: ProcessInstance, text: str) -> None:
    """Read until the instance says ``text``."""
    assert any(line.text == text for line in instance.lines(30)), list(instance.tail)
