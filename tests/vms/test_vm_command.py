"""``isomark vm``, as people run it: libvirt's own test driver for what is listed, a real guest for its console."""

from __future__ import annotations

import itertools
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import skip_or_fail
from session_host import SessionHost, session_host
from small_image import PATH, small_image

from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable
from bench.model import Limits
from vms.domain import NAMESPACE
from vms.driver import qemu

pytest.importorskip("libvirt")
HANG_SECONDS = 60.0
UUID = "5e1f0000-0000-4000-8000-0000000000bb"
NODE = f"""\
<node>
  <domain type='test'><name>somebody-else-s</name><memory>65536</memory><os><type>hvm</type></os></domain>
  <domain type='test'>
    <name>iso-mine</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory><vcpu>2</vcpu>
    <metadata><isomark:instance xmlns:isomark='{NAMESPACE}' owner='0badcafe' trial='iso-mine'/></metadata>
    <os><type>hvm</type></os>
  </domain>
</node>
"""
names = itertools.count()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A libvirt of its own, with a domain of ours and one of somebody else."""
    node = tmp_path / "node.xml"
    node.write_text(NODE)
    return f"test://{node}"


def isomark(*arguments: str, uri: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.cli", "vm", *arguments]
    environment = {**os.environ, "ISOMARK_LIBVIRT_URI": uri, "COLUMNS": "200"}
    environment.pop("ISOMARK_XEN_URI", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)


def test_ls_shows_ours_and_nobody_else_s(uri: str) -> None:
    ended = isomark("ls", uri=uri)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "somebody-else-s" not in ended.stdout
    (line,) = [line for line in ended.stdout.splitlines() if "iso-mine" in line]
    assert line.split()[:8] == ["iso-mine", UUID, "running", "2", "64.0", "MiB", "0badcafe", uri]


def test_ls_quietly_prints_names(uri: str) -> None:
    assert isomark("ls", "--quiet", uri=uri).stdout == "iso-mine\n"


def test_xml_prints_the_domain_by_name_or_uuid(uri: str) -> None:
    by_name = isomark("xml", "iso-mine", uri=uri)
    assert by_name.stdout.startswith("<domain type='test'")
    assert isomark("xml", UUID[:8], uri=uri).stdout == by_name.stdout


@pytest.mark.parametrize("command", ["xml", "console"])
@pytest.mark.parametrize("name", ["nobody", "somebody-else-s"])
def test_what_is_not_ours_is_asked_for_wrongly(command: str, name: str, uri: str) -> None:
    ended = isomark(command, name, uri=uri)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"isomark: isomark runs no virtual server {name}\n  hint: isomark vm ls lists them\n" == ended.stderr


def test_a_libvirt_that_does_not_answer_is_named_and_the_others_are_listed() -> None:
    ended = isomark("ls", uri="qemu+tcp://127.0.0.1:1/system")
    assert ended.returncode == 0
    assert "qemu+tcp://127.0.0.1:1/system does not answer" in ended.stderr
    assert "hint: " in ended.stderr


@pytest.fixture(scope="module")
def host() -> Iterator[SessionHost]:
    with session_host() as running:
        yield running


@pytest.mark.slow
def test_the_console_is_taken_answers_and_is_left(
    host: SessionHost, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", host.uri)
    driver = qemu(lab)
    try:
        driver.check()
    except DriverUnavailable as error:
        driver.close()
        pytest.skip(error.message)
    image = driver.build(small_image(tmp_path / "tree"))
    name = f"iso-{lab.journal.owner.id}-t{next(names)}"
    script = "echo isomark ready; while read line; do echo got $line; done"
    request = Launch(name, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=256 * 1024**2), None)
    try:
        with driver.start(image, request) as instance:
            Dialogue(instance, HANG_SECONDS).ready()
            refused = isomark("console", name, uri=host.uri)
            assert refused.returncode == 1
            assert "--force takes it away" in refused.stderr
            assert "got hello" in _typed(["console", "--force", name], host.uri, b"hello\n", "got hello")
    finally:
        driver.close()
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


@pytest.mark.slow
def test_the_console_of_a_guest_that_a_trial_of_this_host_holds_can_be_looked_at(lab: Lab, tmp_path: Path) -> None:
    driver = qemu(lab)
    try:
        driver.check()
    except DriverUnavailable as error:
        driver.close()
        skip_or_fail("qemu", error.message)
    image = driver.build(small_image(tmp_path / "tree"))
    name = f"iso-{lab.journal.owner.id}-t{next(names)}"
    script = "echo isomark ready; while read line; do echo got $line; done"
    request = Launch(name, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=256 * 1024**2), None)
    try:
        with ExitStack() as undo:
            with driver.start(image, request) as instance:
                Dialogue(instance, HANG_SECONDS).ready()
                lookers = [undo.enter_context(_looking(name)) for _ in range(2)]
                for looker in lookers:
                    _read_until(looker, "isomark ready")  # the lines before it came
                instance.send("hello")
                assert "got hello" in next(line.text for line in instance.lines(HANG_SECONDS))
                for looker in lookers:
                    _read_until(looker, "got hello")
                lookers[0].kill()
                instance.send("again")
                assert "got again" in next(line.text for line in instance.lines(HANG_SECONDS))
                _read_until(lookers[1], "got again")
                assert not lookers[1].poll()
            assert lookers[1].wait(HANG_SECONDS) == 0, "it ends with the guest"
    finally:
        driver.close()
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


def _looking(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.cli", "vm", "console", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _read_until(looker: subprocess.Popen[str], word: str) -> None:
    """Read what ``looker`` prints up to the line with ``word``; the test's time-out is its limit."""
    assert looker.stdout is not None
    assert any(word in line for line in looker.stdout), f"{word} was not shown"


def _typed(arguments: list[str], uri: str, keys: bytes, until: str) -> str:
    """Run ``isomark vm`` on a terminal, type ``keys`` until it says ``until``, then Ctrl-]; return what it said."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["ISOMARK_LIBVIRT_URI"] = uri
        os.execv(sys.executable, [sys.executable, "-m", "bench.cli", "vm", *arguments])
    said = b""
    deadline = time.monotonic() + HANG_SECONDS
    try:
        while until.encode() not in said and time.monotonic() < deadline:
            if select.select([terminal], [], [], 1.0)[0]:
                said += os.read(terminal, 65536)
            if b"leaves" in said:
                os.write(terminal, keys)
        os.write(terminal, b"\x1d")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, said
    finally:
        os.close(terminal)
    return said.decode(errors="replace")
