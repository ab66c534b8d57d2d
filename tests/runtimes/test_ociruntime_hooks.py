"""Hooks of real containers under isomark-oci: when, where and with what they run, and what a failure of one means.

runtime-spec 1.2, runtime.md, "Lifecycle"; config.md, "POSIX-platform Hooks".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import PARENT, Bundle, Runtime, groups_left
from small_tree import needs_root

pytestmark = needs_root

POINTS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
IN_HOST = '{ cat; echo; readlink /proc/self/ns/mnt; } > "$1"; echo "$2" >> "$3"; exit "$4"'


class Hooked:
    """A container with one hook at every point, of which one may fail."""

    def __init__(self, runtime: Runtime, directory: Path) -> None:
        self.runtime = runtime
        self.directory = directory
        self.bundle = Bundle(directory / "bundle")
        self.order = directory / "order"
        (self.bundle.root / "said").mkdir()

    def run(self, failing: str = "", code: int = 0) -> str:
        """What the run says on standard error."""
        self.bundle.config["hooks"] = {each: [self._hook(each, failing == each)] for each in POINTS}
        self.bundle.shell("echo command >> /said/order")
        done = self.runtime("run", "-b", str(self.bundle.path), "one", code=code)
        assert self.runtime.left() == []
        assert groups_left(PARENT) == []
        return done.stderr

    def _hook(self, point: str, fails: bool) -> dict[str, object]:
        code = "1" if fails else "0"
        if point == "startContainer":  # found and executed in the container
            return {
                "path": "/bin/sh",
                "args": ["sh", "-c", f"cat > /said/state; echo {point} >> /said/order; exit {code}"],
            }
        return {
            "path": "/bin/sh",
            "args": ["sh", "-c", IN_HOST, "sh", f"{self.directory}/{point}", point, str(self.order), code],
        }

    def ran(self) -> list[str]:
        """The points whose hooks ran outside."""
        return self.order.read_text().split()

    def ran_inside(self) -> list[str]:
        order = self.bundle.root / "said/order"
        return order.read_text().split() if order.exists() else []

    def state(self, point: str) -> tuple[str, str]:
        """The status that a hook was told, and the mount namespace that it was in."""
        text, place = (self.directory / point).read_text().strip().rsplit("\n", 1)
        told = json.loads(text)
        assert told["id"] == "one"
        assert told["bundle"] == str(self.bundle.path)
        assert (told["pid"] > 0) == (point != "poststop")
        return told["status"], place


@pytest.fixture
def hooked(tmp_path: Path) -> Iterator[Hooked]:
    made = Hooked(Runtime(tmp_path), tmp_path)
    yield made
    made.runtime("delete", "--force", "one", code=None)


def test_every_hook_runs_at_its_time_and_place(hooked: Hooked) -> None:
    hooked.run()
    assert hooked.ran() == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    assert hooked.ran_inside() == ["startContainer", "command"]
    assert json.loads((hooked.bundle.root / "said/state").read_text())["status"] == "created"
    here = Path("/proc/self/ns/mnt").readlink()
    for point, status in (("prestart", "creating"), ("createRuntime", "creating"), ("poststop", "stopped")):
        assert hooked.state(point) == (status, str(here))
    status, place = hooked.state("createContainer")
    assert status == "creating"
    assert place != str(here)


@pytest.mark.parametrize("failing", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_without_its_hooks_the_command_does_not_run(failing: str, hooked: Hooked) -> None:
    told = hooked.run(failing, code=1)
    assert told == f"isomark-oci: hooks.{failing}[0] (/bin/sh) ended with status 1\n"
    assert "command" not in hooked.ran_inside()
    assert "poststart" not in hooked.ran()
    assert hooked.ran()[-1] == "poststop"


def test_a_failure_after_the_start_ends_the_container(hooked: Hooked) -> None:
    assert "hooks.poststart[0] (/bin/sh) ended with status 1" in hooked.run("poststart", code=1)
    assert hooked.ran()[-1] == "poststop"


def test_a_failure_after_the_end_is_only_told(hooked: Hooked) -> None:
    hooked.run("poststop")
    assert "hooks.poststop[0] (/bin/sh) ended with status 1" in hooked.runtime.messages()[-1]["msg"]
