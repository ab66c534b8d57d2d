"""Containers on the bridge reach each other and the outside, and are reached where they publish a port."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from netspaces import (
    FILTER_BRIDGED,
    FORWARD,
    HOST,
    OUTSIDE,
    Container,
    Netspace,
    exchange,
    host_namespace,
    needs_root,
    outside_world,
    shell,
    talk,
)

from runtimes.network import attach, ports

pytestmark = needs_root


class World:
    """A host with an outside machine and a state directory."""

    def __init__(self, state: str, host: Netspace, outside: Netspace) -> None:
        self.state = state
        self.host = host
        self.outside = outside
        self.containers: list[Container] = []

    def start(self, name: str, *published: str) -> Container:
        container = Container(self.state, name, *(port for text in published for port in ports.parse(text)))
        self.containers.append(container)
        return container


@pytest.fixture(params=["filtered", "unfiltered"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """With and without br_netfilter, which sends bridged frames through the NAT rules."""
    with host_namespace() as host, outside_world(host) as outside:
        if FILTER_BRIDGED.exists():
            FILTER_BRIDGED.write_text("1" if request.param == "filtered" else "0")
        elif request.param == "filtered":
            pytest.skip("this kernel has no br_netfilter")
        made = World(str(tmp_path), host, outside)
        yield made
        for container in made.containers:
            attach.disconnect(made.state, container.name)
            container.close()
        assert attach.retire(made.state)
        assert shell("nft list tables") == ""
        assert [link["ifname"] for link in json.loads(shell("ip -j link show type bridge"))] == []
        assert FORWARD.read_text().strip() == "0"
        assert list((tmp_path / "owned").iterdir()) == []


def test_containers_reach_each_other_and_the_host(world: World) -> None:
    first, second = world.start("first"), world.start("second")
    assert first.lease.address != second.lease.address
    with first.server(80) as server:
        assert talk(server, second.open(), (first.lease.address, 80)) == second.lease.address
        assert talk(server, world.host.open(), (first.lease.address, 80)) == first.lease.gateway
    with world.host.server(81) as server:
        assert talk(server, first.open(), (first.lease.gateway, 81)) == first.lease.address


def test_a_container_reaches_the_outside_in_the_hosts_name(world: World) -> None:
    inside = world.start("inside")
    with world.outside.server(80) as server:
        assert talk(server, inside.open(), (OUTSIDE, 80)) == HOST
    with world.outside.server(53, socket.SOCK_DGRAM) as server:
        assert exchange(server, inside.open(socket.SOCK_DGRAM), (OUTSIDE, 53)) == HOST


def test_a_published_port_is_reached_from_everywhere(world: World) -> None:
    web, other = world.start("web", "8080:80"), world.start("other")
    with web.server(80) as server:
        assert talk(server, world.outside.open(), (HOST, 8080)) == OUTSIDE, "the client's address is not hidden"
        for client, address in (
            (world.host, HOST),
            (world.host, "127.0.0.1"),
            (world.host, "127.0.0.2"),
            (world.host, web.lease.gateway),
            (other, HOST),
            (other, web.lease.gateway),
            (web, HOST),
            (web, web.lease.gateway),
        ):
            talk(server, client.open(), (address, 8080))


def test_published_datagrams_return_from_where_they_were_sent(world: World) -> None:
    server_side, other = world.start("dns", "5353:53/udp"), world.start("other")
    with server_side.server(53, socket.SOCK_DGRAM) as server:
        for client, address in (
            (world.outside, HOST),
            (world.host, HOST),
            (world.host, "127.0.0.1"),
            (other, HOST),
            (server_side, HOST),
        ):
            exchange(server, client.open(socket.SOCK_DGRAM), (address, 5353))


def test_a_port_published_on_loopback_is_for_the_host_alone(world: World) -> None:
    web = world.start("web", "127.0.0.1:8080:80")
    with web.server(80) as server:
        talk(server, world.host.open(), ("127.0.0.1", 8080))
        _refused(world.outside, HOST, 8080)
        _refused(web, HOST, 8080)
        world.outside.run(
            "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.lan.route_localnet=1; "
            f"ip route add 127.0.0.0/8 via {HOST} src {OUTSIDE}"
        )
        _unreachable(world.outside, "127.0.0.1", 8080)


def test_what_is_not_published_is_not_reached_by_a_route_to_the_subnet(world: World) -> None:
    web = world.start("web", "8080:80")
    world.outside.run(f"ip route add {web.lease.address}/32 via {HOST}")
    with web.server(80), web.server(81):
        _unreachable(world.outside, web.lease.address, 80)
        _unreachable(world.outside, web.lease.address, 81)


def test_the_hosts_loopback_is_closed_to_containers(world: World) -> None:
    """route_localnet opens it (CVE-2020-8558)."""
    inside = world.start("inside", "8080:80")
    inside.run(
        "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.eth0.route_localnet=1; "
        f"ip route add 127.0.0.0/8 via {inside.lease.gateway} src {inside.lease.address}"
    )
    with world.host.server(6379, address="127.0.0.1"):
        _unreachable(inside, "127.0.0.1", 6379)


def test_a_range_and_a_port_of_any_number_are_published(world: World) -> None:
    web = world.start("web", "9000-9002:80-82", "83")
    assert [port.host_port for port in web.lease.ports[:3]] == [9000, 9001, 9002]
    free = web.lease.ports[3].host_port
    assert free >= 1024
    for host_port, container_port in ((9000, 80), (9002, 82), (free, 83)):
        with web.server(container_port) as server:
            talk(server, world.outside.open(), (HOST, host_port))


def test_a_start_gives_a_new_address_that_was_not_used_just_now(world: World) -> None:
    addresses = []
    for _ in range(5):
        lease = attach.plan(world.state, "again")
        addresses.append(lease.address)
    assert len(set(addresses)) == 5
    attach.disconnect(world.state, "again")


def test_the_veth_is_as_the_lease_says(world: World) -> None:
    inside = world.start("inside")
    (outer,) = json.loads(shell(f"ip -j -d link show {inside.lease.interface}"))
    (inner,) = json.loads(inside.run("ip -j link show eth0"))
    assert outer["master"] == inside.lease.bridge
    assert "UP" in outer["flags"]
    assert inner["address"] == inside.lease.mac
    assert inner["mtu"] == outer["mtu"] == inside.lease.mtu == 1500


def test_connecting_again_replaces_what_a_dead_container_left(world: World) -> None:
    survivor, fresh = Netspace(), Netspace()
    lease = attach.plan(world.state, "name")
    attach.connect(lease, survivor.fd)
    attach.connect(lease, fresh.fd)
    assert "eth0" not in survivor.run("ip link")
    assert "eth0" in fresh.run("ip link")
    survivor.close()
    fresh.close()
    attach.disconnect(world.state, "name")


def _refused(client: Netspace, address: str, port: int) -> None:
    with client.open() as made:
        assert made.connect_ex((address, port)) == errno.ECONNREFUSED


def _unreachable(client: Netspace, address: str, port: int) -> None:
    with client.open() as made:
        made.settimeout(0.3)
        assert made.connect_ex((address, port)) in {errno.EAGAIN, errno.EHOSTUNREACH, errno.ENETUNREACH}
