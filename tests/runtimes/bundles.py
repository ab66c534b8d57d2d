"""What the tests of isomark-oci share: a busybox bundle, the program as an engine calls it, and what it left behind."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_tree import make_tree

from runtimes.container.hierarchy import detect
from runtimes.ociruntime import template

SOURCES = Path(__file__).resolve().parents[2]
_PREFIX = "isomark-oci-test-"
PARENT = f"/{_PREFIX}{os.getpid()}"
"""The cgroup of everything that one run of the tests starts."""
APPLETS = [
    "awk",
    "cut",
    "date",
    "dd",
    "df",
    "kill",
    "ln",
    "mkfifo",
    "mv",
    "nc",
    "od",
    "pwd",
    "readlink",
    "sed",
    "seq",
    "sort",
    "stty",
    "sync",
    "test",
    "timeout",
    "tr",
    "tty",
    "ulimit",
    "uname",
]

_numbers = itertools.count()


def write_script(path: Path) -> Path:
    """The program as pip would install it, but of this tree."""
    path.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(SOURCES)!r})\n"
        "from runtimes.ociruntime.cli import main\nraise SystemExit(main())\n"
    )
    path.chmod(0o755)
    return path


class Bundle:
    """A directory with a root file system and a configuration, which ``write`` writes."""

    def __init__(self, path: Path, tree: Path | None = None) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.root = make_tree(path / "rootfs") if tree is None else tree
        if tree is None:
            for name in APPLETS:
                if not (self.root / "bin" / name).is_symlink():
                    (self.root / "bin" / name).symlink_to("busybox")
        self.config: dict[str, Any] = template.document(rootless=False)
        self.config["process"]["terminal"] = False
        self.config["process"]["env"] = ["PATH=/bin"]
        self.config["root"] = {"path": str(self.root), "readonly": False}
        self.config["linux"]["cgroupsPath"] = f"{PARENT}/{path.name}-{next(_numbers)}"

    @property
    def process(self) -> dict[str, Any]:
        return self.config["process"]

    @property
    def linux(self) -> dict[str, Any]:
        return self.config["linux"]

    def shell(self, script: str) -> Bundle:
        self.process["args"] = ["/bin/sh", "-c", script]
        return self.write()

    def write(self) -> Bundle:
        (self.path / "config.json").write_text(json.dumps(self.config))
        return self

    def mount(self, destination: str, kind: str, source: str, *options: str) -> Bundle:
        self.config["mounts"].append(
            {"destination": destination, "type": kind, "source": source, "options": [*options]}
        )
        return self

    def group(self, controller: str) -> Path:
        """The container's directory in the hierarchy of ``controller``."""
        held = detect().holding(controller)
        assert held is not None
        return Path(held.group(self.linux["cgroupsPath"]))

    def copy(self, path: Path) -> Bundle:
        """Another bundle of the same root file system, with a cgroup of its own."""
        other = Bundle(path, self.root)
        group = other.linux["cgroupsPath"]
        other.config = copy.deepcopy(self.config)
        other.linux["cgroupsPath"] = group
        return other


class Runtime:
    """isomark-oci with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        remove_dead_groups()
        self.root = directory / "state"
        self.log = directory / "log.json"
        self.script = write_script(directory / "isomark-oci")

    def command(self, *arguments: str) -> list[str]:
        return [str(self.script), "--root", str(self.root), "--log", str(self.log), "--log-format", "json", *arguments]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Call the program; ``code`` is the exit status it must have."""
        code = options.pop("code", 0)
        options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=120, check=False, **options
        )
        assert code is None or done.returncode == code, (done, self.messages())
        return done

    def create(self, bundle: Bundle, name: str, *options: str) -> None:
        """Create with an output that nobody waits for: the container inherits it."""
        with (bundle.path / "output").open("w") as output:
            done = subprocess.run(
                self.command("create", "-b", str(bundle.path), *options, name),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=120, check=False,
            )  # fmt: skip
        assert done.returncode == 0, (bundle.path / "output").read_text()

    def output(self, bundle: Bundle) -> str:
        return (bundle.path / "output").read_text()

    def state(self, name: str) -> dict[str, Any]:
        return json.loads(self("state", name).stdout)

    def status(self, name: str) -> str:
        return str(self.state(name)["status"])

    def wait(self, name: str, status: str) -> None:
        deadline = time.monotonic() + 60
        while self.status(name) != status:
            assert time.monotonic() < deadline, self.state(name)
            time.sleep(0.02)

    def run(self, bundle: Bundle, script: str, *options: str, code: int | None = 0) -> str:
        """What a shell script prints in a container of its own."""
        bundle.shell(script)
        name = f"run-{next(_numbers)}"
        done = self("run", "-b", str(bundle.path), *options, name, code=code)
        return done.stdout

    def refuse(self, bundle: Bundle, script: str = "true") -> str:
        """The error with which ``run`` refuses; nothing may be left."""
        bundle.shell(script)
        done = self("run", "-b", str(bundle.path), f"refused-{next(_numbers)}", code=1)
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("isomark-oci: ")
        assert self.left() == []
        assert groups_left(PARENT) == []
        return done.stderr

    def messages(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def left(self) -> list[str]:
        """Names in the state directory, but the cache of filters."""
        return sorted(set(os.listdir(self.root)) - {"seccomp"}) if self.root.exists() else []


def groups_left(parent: str) -> list[str]:
    """Every cgroup below ``parent``, and itself."""
    found = []
    for hierarchy in detect().hierarchies:
        for directory, _, _ in os.walk(hierarchy.group(parent)):
            found.append(directory)
    return found


def remove_groups(parent: str) -> None:
    """Remove a tree of cgroups that nobody is in any more."""
    for directory in reversed(groups_left(parent)):
        Path(directory).rmdir()


def remove_dead_groups() -> None:
    """Remove what runs of the tests left that were killed."""
    for hierarchy in detect().hierarchies:
        for group in Path(hierarchy.top).glob(f"{_PREFIX}*"):
            if not Path("/proc", group.name.removeprefix(_PREFIX)).exists():
                remove_groups(f"/{group.name}")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where one of ``programs`` is missing."""
    missing: Sequence[str] = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
