"""The pool on disk: round robin, torn files, foreign entries; and netlink answers of any bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import HostError
from bench.journal import read_journals
from runtimes.engine.process import Process
from runtimes.network import links, netlink, pool, settings
from runtimes.network.bridge import Bridge
from runtimes.network.lease import Port
from runtimes.network.pool import Pool

BRIDGE = Bridge("isomark0", "01020304", 0x0A090000, 29)


def _me() -> Process:
    process = Process.of(os.getpid())
    assert process is not None
    return process


def test_addresses_go_round_before_one_is_used_again(tmp_path: Path) -> None:
    with Pool(str(tmp_path)) as leases:
        granted = [leases.free_address(BRIDGE) for _ in range(7)]
    assert granted == [f"10.9.0.{last}" for last in (2, 3, 4, 5, 6, 2, 3)]
    with Pool(str(tmp_path)) as leases:
        for last in (4, 5):
            leases.write("web", f"10.9.0.{last}", [], _me())
    with Pool(str(tmp_path)) as leases:
        assert leases.free_address(BRIDGE) == "10.9.0.6", "it remembers, and passes over what is taken"
        for last in (2, 3, 6):
            leases.write("web", f"10.9.0.{last}", [], _me())
        assert leases.free_address(BRIDGE) is None


@pytest.mark.parametrize("content", [b"", b"10.9", b"\xff\xfe", b"192.0.2.1", b"10.9.0.255"])
def test_a_torn_memory_begins_anew(tmp_path: Path, content: bytes) -> None:
    with Pool(str(tmp_path)) as leases:
        Path(leases.directory, "lock").write_bytes(content)
        assert leases.free_address(BRIDGE) == "10.9.0.2"


def test_a_lease_is_a_journal_that_clean_understands(tmp_path: Path) -> None:
    ports = [Port("0.0.0.0", 8080, 80, "tcp"), Port("127.0.0.1", 53, 53, "udp")]
    with Pool(str(tmp_path)) as leases:
        record = leases.write("web", "10.9.0.2", ports, _me())
        (found,) = leases.records()
    assert (found.path, found.address, found.container) == (record.path, "10.9.0.2", "web")
    assert found.interface == "iso0a090002"
    owner, held = pool.read(found)
    assert owner is not None
    assert owner.alive()
    assert [str(port) for port in held] == [str(port) for port in ports]
    (left,) = read_journals(tmp_path / "owned")
    assert left.owner.is_alive()
    (entry,) = left.entries
    assert (entry.kind, entry.what["state"], entry.what["container"]) == ("network", str(tmp_path), "web")


def test_an_idle_bridge_is_owned_by_nobody_alive(tmp_path: Path) -> None:
    with Pool(str(tmp_path)) as leases:
        for _ in range(3):
            leases.write_idle()
        assert len(leases) == 0
    (left,) = read_journals(tmp_path / "owned")
    assert not left.owner.is_alive()
    assert left.entries[0].what["container"] == ""
    with Pool(str(tmp_path)) as leases:
        leases.forget_idle()
    assert list((tmp_path / "owned").iterdir()) == []


@given(st.binary(max_size=200))
def test_a_torn_lease_belongs_to_nobody(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("torn")
    (directory / "net=10.9.0.2=web.jsonl").write_bytes(content)
    assert pool.read(pool.Record(str(directory), "net=10.9.0.2=web.jsonl")) == (None, [])


@pytest.mark.parametrize("name", ["", "a/b", "a=b", "..", "a b", "x" * 200, "é"])
def test_what_cannot_be_part_of_a_file_name_is_refused(name: str) -> None:
    with pytest.raises(HostError, match="cannot be a container's id"):
        pool.check_name(name)


def test_two_pools_wait_for_each_other(tmp_path: Path) -> None:
    import fcntl

    with Pool(str(tmp_path)) as leases:
        other = os.open(f"{leases.directory}/lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write"):
        Pool(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("route", "meets"),
    [
        ("10.189.0.0/16", True),
        ("10.0.0.0/8", True),
        ("10.189.200.1/32", True),
        ("10.190.0.0/16", False),
        ("0.0.0.0/0", False),
    ],
)
def test_a_route_meets_a_subnet_that_shares_an_address(route: str, meets: bool) -> None:
    import ipaddress

    network = ipaddress.ip_network(route)
    made = links.Route(bytes([2, network.prefixlen, *[0] * 10]) + netlink.attribute(1, network.network_address.packed))
    assert made.meets(*settings.CANDIDATES[0]) is meets


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=10))
def test_attributes_are_read_as_written(written: dict[int, bytes]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in written.items())
    assert netlink.attributes(data) == written


@given(st.binary(max_size=100))
def test_any_bytes_give_attributes_or_none(data: bytes) -> None:
    assert all(len(value) <= len(data) for value in netlink.attributes(data).values())


def test_the_kernels_own_explanation_is_in_the_error() -> None:
    with netlink.Netlink(netlink.NETLINK_ROUTE) as routes, pytest.raises(OSError, match=r"\w \(.+\)") as raised:
        routes.request(netlink.Message(19, 0, bytes(16) + netlink.text(3, "x" * 40)))  # RTM_SETLINK: a name too long
    assert raised.value.errno
