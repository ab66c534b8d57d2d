"""What the tests of the builder share: a small base image, a context, and a look at what was built."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.journal import Journal
from bench.state import journal_directory
from runtimes.build.command import BuildRequest, Built, build
from runtimes.oci.descriptor import CONFIG, MANIFEST, Descriptor, canonical_json
from runtimes.oci.images import Images
from runtimes.oci.layer import Layer, Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout

EPOCH = 1_700_000_000
MTIME = 1_600_000_000
APPLETS = (
    "sh", "cat", "chmod", "chown", "cp", "dd", "echo", "env", "expr", "false", "find", "grep",
    "head", "hostname", "id", "ip", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mount",
    "mv", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sleep", "sort", "stat", "tail",
    "test", "touch", "true", "tr", "umount", "wc", "wget",
)  # fmt: skip
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1001:\nstaff:x:50:app\n"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")


def base_members() -> list[Member]:
    """The smallest image in which RUN works."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox: apt-get install busybox-static")
    folders = [Member(name, stat.S_IFDIR | 0o755, mtime=MTIME) for name in ("bin", "etc", "usr", "usr/lib", "home")]
    files = {
        "bin/busybox": (Path(busybox).read_bytes(), 0o755),
        "etc/passwd": (PASSWD, 0o644),
        "etc/group": (GROUP, 0o644),
    }
    return [
        *folders,
        Member("tmp", stat.S_IFDIR | 0o1777, mtime=MTIME),
        Member("lib", stat.S_IFLNK | 0o777, link="usr/lib", mtime=MTIME),
        *(Member(path, stat.S_IFREG | mode, data, mtime=MTIME) for path, (data, mode) in files.items()),
        *(Member(f"bin/{name}", stat.S_IFLNK | 0o777, link="busybox", mtime=MTIME) for name in APPLETS),
    ]


def store_image(layout: Layout, name: str, layers: list[Layer], config: Mapping[str, Any] | None = None) -> Descriptor:
    document = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "created": "2020-09-13T12:26:40Z",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": "test", "created": "2020-09-13T12:26:40Z"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add(CONFIG, canonical_json(document)).to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    descriptor = layout.add(MANIFEST, canonical_json(manifest))
    layout.tag(name, descriptor)
    return descriptor


@dataclass
class Result:
    """A built image, opened."""

    built: Built
    config: dict[str, Any]
    tree: Path
    said: list[str]
    layers: int

    @property
    def run(self) -> dict[str, Any]:
        """The part of the configuration that a container gets."""
        found: dict[str, Any] = self.config["config"]
        return found

    def read(self, path: str) -> str:
        return (self.tree / path).read_text()

    @property
    def cached(self) -> int:
        return sum(line.strip() == "CACHED" for line in self.said)

    @property
    def done(self) -> int:
        return sum(line.strip().startswith("done in") for line in self.said)


@dataclass
class Site:
    """A state directory with the base image ``base:1``, a context, and a builder for both."""

    state: Path
    context: Path
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.mkdir(parents=True, exist_ok=True)
        self.images = Images(self.state)
        self.layout = self.images.layout
        if "base:1" not in self.layout.references():
            path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            self.image("base:1", base_members(), {"Env": [f"PATH={path}"], "Cmd": ["sh"]})

    def image(self, name: str, members: list[Member], config: Mapping[str, Any] | None = None) -> Descriptor:
        return store_image(self.layout, name, [store_layer(self.layout, tar_chunks(members))], config)

    def write(self, path: str, content: str | bytes = "content\n", mode: int = 0o644) -> Path:
        file = self.context / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)
        return file

    def build(self, text: str, **options: Any) -> Result:
        self.said.clear()
        options.setdefault("timestamp", EPOCH)
        options.setdefault("network", "none")  # on the bridge each state directory makes one, which takes its time
        with Journal(journal_directory(self.state)) as journal:
            request = BuildRequest(self.context, text=text, **options)
            built = build(request, self.state, journal, self.said.append)
            descriptor = next(d for d in _manifests(self.layout, built.digest))
            stored = self.images.load("", descriptor)
            tree = self.images.tree(stored, journal)
        return Result(built, stored.config, tree.path, list(self.said), len(stored.manifest.layers))


def _manifests(layout: Layout, digest: str) -> list[Descriptor]:
    path = layout.path(Descriptor(MANIFEST, digest, 0))
    return [Descriptor(MANIFEST, digest, path.stat().st_size)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "state", tmp_path / "context")


def left_behind(state: Path) -> list[str]:
    """Mounts, processes and directories that a build made and did not remove."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]
    making = [str(path) for path in (state / "build").glob("making-*")]
    journals = [str(path) for path in journal_directory(state).glob("*")]
    return [*mounts, *making, *journals]
