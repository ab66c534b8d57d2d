"""RUN: each in a real container, with Docker's view of the world, and nothing left when it ends, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from building import EPOCH, MTIME, Site, base_members, left_behind, needs_root
from building import site as site  # noqa: PLC0414 - a fixture

from bench.clean import clean
from bench.errors import ImageError, UsageError
from bench.state import journal_directory
from runtimes.oci.layer import Member

pytestmark = needs_root


def heard(site: Site) -> list[str]:
    return [line.partition("| ")[2] for line in site.said if line.lstrip().startswith("| ")]


def ran(site: Site, script: str, before: str = "", **options: object) -> list[str]:
    """What a shell script in a step prints."""
    site.build(f"FROM base:1\n{before}\nRUN <<'END-OF-SCRIPT'\n{script}\nEND-OF-SCRIPT\n", **options)
    return heard(site)


def test_shell_exec_and_document_forms(site: Site) -> None:
    text = (
        'FROM base:1\nENV v=V\nRUN echo "$v $0" > /shell\nRUN ["sh", "-c", "echo $v > /exec"]\n'
        "RUN <<EOF\necho $v > /document\nx=1\necho $x >> /document\nEOF\n"
        "RUN <<'ONE' cat > /one && <<TWO cat > /two\nfirst $v\nONE\nsecond $v\nTWO\n"
        "RUN <<EOF\n#!/bin/cat\nI am a script\nEOF\n"
        'SHELL ["/bin/sh", "-e", "-c"]\nRUN false && true; echo unreached > /not; echo $- > /flags\n'
    )
    tree = site.build(text).tree
    assert (tree / "shell").read_text() == "V /bin/sh\n"
    assert (tree / "exec").read_text() == "V\n"
    assert (tree / "document").read_text() == "V\n1\n"
    assert (tree / "one").read_text() == "first $v\n"
    assert (tree / "two").read_text() == "second V\n"
    assert "e" in (tree / "flags").read_text()
    assert "I am a script" in heard(site)
    assert not (tree / "dev").exists(), "what is mounted for the step is not in the image"


def test_the_environment_is_the_images_and_the_arguments(site: Site) -> None:
    text = "FROM base:1\nARG a=1\nENV b=2 PATH=/bin\nARG b=3\nARG unset\nRUN env | sort\n"
    site.build(text, arguments={"http_proxy": "http://p:1", "unused": "x"})
    assert heard(site) == [
        "HOME=/root",
        "PATH=/bin",
        "PWD=/",
        "SHLVL=1",
        "a=1",
        "b=2",
        "http_proxy=http://p:1",
    ] or heard(site) == [
        "HOME=/root",
        "HOSTNAME=build",
        "PATH=/bin",
        "PWD=/",
        "SHLVL=1",
        "a=1",
        "b=2",
        "http_proxy=http://p:1",
    ]
    row = site.images.load("", site.layout.references()["base:1"])
    assert row


def test_proxies_are_neither_in_the_history_nor_in_the_key(site: Site) -> None:
    text = "FROM base:1\nARG a=1\nRUN true\n"
    first = site.build(text, arguments={"HTTPS_PROXY": "http://secret@p:1"})
    again = site.build(text, arguments={"HTTPS_PROXY": "http://other@p:2"})
    assert again.cached == 1
    assert first.built.digest == again.built.digest
    assert "secret" not in str(first.config)
    assert first.config["history"][-1]["created_by"] == "RUN |1 a=1 /bin/sh -c true"


def test_user_and_working_directory(site: Site) -> None:
    lines = ran(site, "id\npwd\necho $HOME\ntouch f", "WORKDIR /w\nRUN chown app /w\nUSER app")
    assert lines == ["uid=1000(app) gid=1001(app) groups=50(staff),1001(app)", "/w", "/home/app"] or lines == [
        "uid=1000(app) gid=1001(app) groups=50(staff)", "/w", "/home/app"]  # fmt: skip


def test_the_container_is_as_strict_as_docker(site: Site) -> None:
    status = dict(line.split(":\t") for line in ran(site, "grep -E '^(Cap|Seccomp:|NSpid)' /proc/self/status"))
    assert status["CapEff"] == status["CapBnd"] == "00000000a80425fb"
    assert status["CapAmb"] == "0000000000000000"
    assert status["Seccomp"] == "2"
    assert len(status["NSpid"].split()) == 1
    lines = ran(
        site,
        "ls /proc/self/fd | wc -w\nhostname\nhead -c1 /proc/keys | wc -c\n"
        "echo x 2>/dev/null > /proc/sys/kernel/hostname || echo ro\nmount -t tmpfs x /tmp 2>/dev/null || echo refused\n"
        "cat /etc/hosts\nls /sys | grep -c kernel\n",
    )
    assert lines[:6] == ["4", "build", "0", "ro", "refused", "127.0.0.1 localhost"]
    assert lines[-1] == "1"


def test_what_is_mounted_for_a_step_leaves_no_trace(site: Site) -> None:
    before = site.build("FROM base:1\n")
    after = site.build("FROM base:1\nRUN test -s /etc/hosts && test -d /proc/1 && test -c /dev/null\n")
    names = {str(path.relative_to(after.tree)) for path in after.tree.rglob("*")}
    assert names == {str(path.relative_to(before.tree)) for path in before.tree.rglob("*")}
    assert (after.tree / "etc").stat().st_mtime == MTIME
    empty = site.build('FROM scratch\nCOPY --from=base:1 /bin/busybox /\nRUN ["/busybox", "true"]\n')
    assert [path.name for path in empty.tree.iterdir()] == ["busybox"]


def test_what_a_step_writes_beside_a_mount_point_stays(site: Site) -> None:
    tree = site.build('FROM scratch\nCOPY --from=base:1 /bin/busybox /\nRUN ["/busybox", "touch", "/etc/new"]\n').tree
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == ["busybox", "etc", "etc/new"]


def test_removals_and_replacements_reach_the_image(site: Site) -> None:
    site.write("d/a")
    site.write("d/b")
    text = (
        "FROM base:1\nCOPY d /d\nRUN rm /d/a && rm -r /home && mkdir /home && touch /home/new && ln -sf x /etc/group\n"
    )
    tree = site.build(text + "RUN rm -r /d && mkdir /d && touch /d/c\nRUN test ! -e /d/b && test -e /d/c\n").tree
    assert sorted(path.name for path in (tree / "d").iterdir()) == ["c"]
    assert [path.name for path in (tree / "home").iterdir()] == ["new"]
    assert os.readlink(tree / "etc/group") == "x"


def test_a_failing_step_names_line_command_status_and_last_lines(site: Site) -> None:
    with pytest.raises(ImageError) as caught:
        site.build("FROM base:1\nRUN true\n\nRUN for i in $(seq 50); do echo line $i; done; echo oops >&2; exit 7\n")
    assert caught.value.message.startswith("Containerfile:4: RUN for i in")
    assert "exited with status 7" in caught.value.message
    assert caught.value.message.endswith("  | line 50\n  | oops")
    assert "line 10\n" not in caught.value.message
    assert left_behind(site.state) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('RUN ["/nope"]', "cannot run /nope: No such file"),
        ("RUN nope-program", "exited with status 127"),
        ('RUN ["/etc/passwd"]', "cannot run /etc/passwd: Permission denied"),
        ("USER nobody\nRUN true", "no such user"),
        ('SHELL ["/bin/bash", "-c"]\nRUN true', "cannot run /bin/bash"),
    ],
)
def test_what_cannot_run_says_why(site: Site, line: str, fault: str) -> None:
    with pytest.raises(ImageError) as caught:
        site.build(f"FROM base:1\n{line}\n")
    assert fault in caught.value.message
    assert caught.value.hint
    assert left_behind(site.state) == []


def test_without_network_there_is_only_loopback(site: Site) -> None:
    assert ran(site, "ls /sys/class/net; wc -l < /proc/net/route", network="none") == ["lo", "1"]
    site.build("FROM base:1\nRUN --network=none ls /sys/class/net\nRUN ls /sys/class/net\n", network="host")
    mine = sorted(os.listdir("/sys/class/net"))
    assert heard(site) == ["lo", *mine]
    with pytest.raises(UsageError, match="there is no network 'lan'"):
        site.build("FROM base:1\n", network="lan")


def test_the_hosts_name_service_is_there_with_its_network(site: Site) -> None:
    if not Path("/etc/resolv.conf").exists():
        pytest.skip("this host has no /etc/resolv.conf")
    expected = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    assert [line for line in ran(site, "cat /etc/resolv.conf", network="host") if "nameserver" in line] == expected


def test_on_the_bridge_a_step_reaches_the_host_and_the_bridge_goes_with_the_build(site: Site) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        answer = threading.Thread(target=_greet, args=(server,), daemon=True)
        answer.start()
        script = (
            f"set -- $(ip route | head -1); exec 2>&1; ip -o -4 addr; wget -qO- http://$3:{server.getsockname()[1]}/"
        )
        lines = ran(site, script, network="bridge")
        answer.join(10)
    assert any(" eth0 " in line for line in lines)
    assert lines[-1] == "hello from the host"
    assert left_behind(site.state) == []


def _greet(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello from the host\n")


def test_a_step_cannot_open_the_hosts_devices(site: Site) -> None:
    lines = ran(site, "mknod /disk b 254 0 && dd if=/disk of=/dev/null bs=1 count=1 2>&1 | tail -1; rm -f /disk")
    assert lines == ["dd: can't open '/disk': Operation not permitted"]


def test_tmpfs_and_cache_mounts(site: Site) -> None:
    text = (
        "FROM base:1\nRUN --mount=type=tmpfs,target=/t,size=1048576 echo x > /t/f && cp /t/f /seen\n"
        "RUN --mount=type=cache,id=c,target=/c echo one >> /c/f && cat /c/f\n"
        "RUN --mount=type=cache,id=c,target=/other,sharing=locked echo two >> /other/f && cat /other/f\n"
        "RUN --mount=type=cache,target=/home/x,mode=0700,uid=1000 stat -c '%a %u' /home/x\n"
    )
    result = site.build(text)
    assert heard(site) == ["one", "one", "two", "700 1000"]
    assert (result.tree / "seen").read_text() == "x\n"
    for path in ("t", "c", "other", "home/x"):
        assert not (result.tree / path).exists(), path
    for wrong in ("type=cache,target=/c,sharing=some", "type=cache,target=/c,mode=9", "type=tmpfs,target=/c,size=x"):
        with pytest.raises(UsageError, match=r"^Containerfile:2: RUN --mount"):
            site.build(f"FROM base:1\nRUN --mount={wrong} true\n")


def test_output_is_passed_on_as_it_comes_and_in_order(site: Site) -> None:
    times: list[tuple[float, str]] = []
    from bench.journal import Journal
    from runtimes.build.command import BuildRequest, build

    with Journal(journal_directory(site.state)) as journal:
        text = "FROM base:1\nRUN echo a; echo b >&2; sleep 0.5; printf 'c\\rd\\n\\377\\n'; printf end\n"
        build(
            BuildRequest(site.context, text=text),
            site.state,
            journal,
            lambda line: times.append((time.monotonic(), line)),
        )
    lines = [(at, line.partition("| ")[2]) for at, line in times if "| " in line]
    assert [line for _, line in lines] == ["a", "b", "d", "\ufffd", "end"]
    assert lines[2][0] - lines[1][0] > 0.3, "not held back until the end"


def test_a_step_that_floods_is_neither_held_in_memory_nor_stuck(site: Site) -> None:
    site.build("FROM base:1\nRUN head -c 30000000 /dev/zero | tr '\\0' x\n")
    assert sum(len(line) for line in heard(site)) == 30_000_000


def test_the_same_layer_may_come_twice(site: Site) -> None:
    site.write("a", "A")
    site.write("b", "B")
    tree = site.build("FROM base:1\nCOPY a /x\nCOPY b /x\nCOPY a /x\nRUN true\nRUN true\nRUN cp /x /y\n").tree
    assert (tree / "x").read_text() == (tree / "y").read_text() == "A"


def test_a_process_left_behind_ends_with_its_step(site: Site) -> None:
    begin = time.monotonic()
    site.build("FROM base:1\nRUN (sleep 600 &) && sleep 601 > /dev/null 2>&1 & true\n")
    assert time.monotonic() - begin < 60
    assert left_behind(site.state) == []


def test_the_root_keeps_the_looks_of_the_base(site: Site) -> None:
    site.image("odd:1", [*base_members(), Member(".", stat.S_IFDIR | 0o711, uid=3, gid=4, mtime=MTIME)])
    assert ran(site, "true") == []
    site.build("FROM odd:1\nRUN stat -c '%a %u %g' /\n")
    assert heard(site) == ["711 3 4"]


def test_files_newer_than_the_timestamp_are_cut_to_it(site: Site) -> None:
    tree = site.build("FROM base:1\nRUN touch /a && touch -d '2001-01-01 00:00:00' /b\n").tree
    assert (tree / "a").stat().st_mtime == EPOCH
    assert (tree / "b").stat().st_mtime < EPOCH


SLOW = "FROM base:1\nRUN echo begun > /begun; sleep 300\n"


def _build(state: Path, context: Path, text: str) -> None:
    import sys

    sys.stderr.close()
    Site(state, context).build(text)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_or_interrupted_leaves_nothing(site: Site, sent: int) -> None:
    builder = multiprocessing.get_context("fork").Process(target=_build, args=(site.state, site.context, SLOW))
    builder.start()
    deadline = time.monotonic() + 60
    while not list((site.state / "build").glob("making-*/upper/begun")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mine = _sleepers()
    assert mine
    assert builder.pid is not None
    os.kill(builder.pid, sent)
    builder.join(60)
    if sent == signal.SIGKILL:
        assert [removal for removal in clean(journal_directory(site.state)) if removal.fault] == []
    deadline = time.monotonic() + 10
    while set(_sleepers()) & set(mine) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(_sleepers()) & set(mine) == set()
    assert left_behind(site.state) == []
    assert list((site.state / "build/keys").iterdir()) == []


def _sleepers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\x00300\x00":
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
