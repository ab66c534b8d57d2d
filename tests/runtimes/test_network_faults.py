"""Many at once, full pools, taken ports, flushed rules and kill -9: no address or port twice, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from netspaces import FORWARD, HOST, Container, Netspace, host_namespace, needs_root, outside_world, shell, talk

from bench.errors import HostError
from bench.journal import read_journals
from runtimes.network import attach, ports, reserve

pytestmark = needs_root


@pytest.fixture
def host() -> Iterator[Netspace]:
    with host_namespace() as opened:
        yield opened
        assert shell("nft list tables") == ""
        assert json.loads(shell("ip -j link show type bridge")) == []
        assert FORWARD.read_text().strip() == "0"


@pytest.fixture
def state(tmp_path: Path, host: Netspace) -> str:
    return str(tmp_path)


def clean(state: str) -> None:
    """What ``isomark clean`` does with the journals of dead owners."""
    for left in read_journals(Path(state) / "owned"):
        if not left.owner.is_alive():
            for entry in left.entries:
                assert entry.kind == "network"
                attach.remove(entry.what)


_PLAN = """
import sys
import tempfile
from runtimes.network import attach, ports
lease = attach.plan(sys.argv[1], sys.argv[2], ports.parse(sys.argv[3]) if sys.argv[3:] else ())
print(lease.address, flush=True)
sys.stdin.read()
"""


class Planner:
    """Another process with a lease; it lives until it is killed or closed."""

    def __init__(self, state: str, name: str, *published: str) -> None:
        command = [sys.executable, "-c", _PLAN, state, name, *published]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def kill(self) -> str:
        """Kill -9 it; returns what it said in its distress."""
        self.process.kill()
        return self.process.communicate()[1]


def test_sixty_four_at_once_get_addresses_of_their_own(state: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        planners = list(pool.map(lambda number: Planner(state, f"c{number}"), range(64)))
        addresses = {planner.address for planner in planners}
        list(pool.map(Planner.kill, planners))
    assert len(addresses) == 64
    assert "" not in addresses
    assert len(json.loads(shell("ip -j link show type bridge"))) == 1
    clean(state)
    assert os.listdir(f"{state}/owned") == []


def test_one_of_two_that_want_the_same_port_gets_it(state: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        planners = list(pool.map(lambda number: Planner(state, f"c{number}", "8080:80"), range(8)))
        winners = [planner for planner in planners if planner.address]
        said = [planner.kill() for planner in planners]
    assert len(winners) == 1
    assert sum("port 8080/tcp of 0.0.0.0 is in use by" in words for words in said) == 7
    clean(state)


def test_a_port_of_another_program_is_refused_before_anything_starts(state: str, host: Netspace) -> None:
    with (
        host.server(8080, address="127.0.0.1"),
        pytest.raises(HostError, match=r"8080/tcp .* in use by another"),
    ):
        attach.plan(state, "web", ports.parse("8080:80"))
    with host.server(53, socket.SOCK_DGRAM), pytest.raises(HostError, match="53/udp"):
        attach.plan(state, "web", [*ports.parse("8081:80"), *ports.parse("53:53/udp")])
    attach.plan(state, "web", [*ports.parse("8081:80"), *ports.parse("53:53/udp")])
    attach.disconnect(state, "web")
    assert attach.retire(state)


def test_a_published_port_is_refused_to_other_programs(state: str, host: Netspace) -> None:
    attach.plan(state, "web", ports.parse("8080:80"))
    with pytest.raises(OSError, match="in use"):
        host.server(8080)
    attach.disconnect(state, "web")
    host.server(8080).close()
    assert attach.retire(state)


def test_a_port_of_a_living_container_is_refused_by_name_even_without_its_reservation(state: str) -> None:
    attach.plan(state, "first", ports.parse("8080:80"))
    with pytest.raises(HostError, match="in use by container first"):
        attach.plan(state, "second", ports.parse("127.0.0.1:8081:80") + ports.parse("8080:80"))
    reserve.give_back(state, "first")
    with pytest.raises(HostError, match="in use by container first"):
        attach.plan(state, "second", ports.parse("8080:80"))
    attach.disconnect(state, "first")
    attach.disconnect(state, "second")
    assert attach.retire(state)


def test_a_range_of_the_host_gives_its_first_free_port(state: str, host: Netspace) -> None:
    with host.server(8000), host.server(8001):
        lease = attach.plan(state, "web", ports.parse("8000-8003:80"))
    assert [port.host_port for port in lease.ports] == [8002]
    attach.disconnect(state, "web")
    assert attach.retire(state)


def test_a_start_anew_takes_its_own_port_over(state: str) -> None:
    for _ in range(3):
        attach.plan(state, "web", [*ports.parse("8080:80"), *ports.parse("53:53/udp")])
    attach.disconnect(state, "web")
    assert attach.retire(state)


def test_a_client_that_keeps_sending_reaches_the_container_that_was_started_anew(state: str, host: Netspace) -> None:
    with outside_world(host) as outside, outside.open(socket.SOCK_DGRAM) as client:
        client.connect((HOST, 5353))
        for _ in range(2):
            container = Container(state, "dns", *ports.parse("5353:53/udp"))
            with container.server(53, socket.SOCK_DGRAM) as server:
                client.send(b"ping")
                assert server.recv(9) == b"ping"
            attach.disconnect(state, "dns")
            container.close()
    assert attach.retire(state)


def test_a_dead_containers_port_and_address_are_taken_over(state: str) -> None:
    Path(state, "network").mkdir()
    Path(state, "network/settings").write_text("subnet = 10.55.0.0/29  # five containers\n")
    planners = [Planner(state, f"c{number}", f"{8080 + number}:80") for number in range(5)]
    assert [planner.address for planner in planners] == [f"10.55.0.{number}" for number in range(2, 7)]
    with pytest.raises(HostError, match=r"all 5 addresses of 10.55.0.0/29 are in use"):
        attach.plan(state, "sixth")
    planners[2].kill()
    lease = attach.plan(state, "sixth", ports.parse("8082:81"))
    assert lease.address == "10.55.0.4"
    for planner in planners:
        planner.kill()
    attach.disconnect(state, "sixth")
    assert attach.retire(state)


def test_a_container_that_outlived_its_owner_keeps_its_address(state: str) -> None:
    container = Container(state, "orphan")
    owner = subprocess.Popen(["sleep", "60"])
    attach.hand_over(state, "orphan", owner.pid)
    owner.kill()
    owner.wait()
    assert not attach.retire(state)
    clean(state)  # says kill -9 of everything: then the interface goes as well
    assert "eth0" not in container.run("ip link")
    container.close()


def test_rules_that_somebody_flushed_come_back_with_the_next_container(state: str, host: Netspace) -> None:
    with outside_world(host) as outside:
        web = Container(state, "web", *ports.parse("8080:80"))
        shell("nft flush ruleset")
        other = Container(state, "other")
        with web.server(80) as server:
            talk(server, outside.open(), (HOST, 8080))
        for container in (web, other):
            attach.disconnect(state, container.name)
            container.close()
    assert attach.retire(state)


def test_the_last_to_go_removes_the_bridge_unless_another_came(state: str) -> None:
    attach.linger(state, 0)
    attach.plan(state, "first")
    attach.disconnect(state, "first")
    attach.plan(state, "second")
    attach.linger(state, 0)
    assert "isomark0" in shell("ip -br link")
    attach.plan(state, "third")
    attach.disconnect(state, "second")
    attach.linger(state, 0)
    assert "isomark0" in shell("ip -br link")
    attach.disconnect(state, "third")
    attach.linger(state, 0)
    assert os.listdir(f"{state}/owned") == []


def test_a_refused_start_leaves_the_bridge_to_be_removed(state: str, host: Netspace) -> None:
    with host.server(8080), pytest.raises(HostError, match="in use"):
        attach.plan(state, "web", ports.parse("8080:80"))
    assert "isomark0" in shell("ip -br link")
    attach.linger(state, 0)
    assert os.listdir(f"{state}/owned") == []


def test_tables_of_others_stay_and_what_they_drop_is_told(state: str, host: Netspace) -> None:
    shell("nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'")
    before = shell("nft list table ip filter")
    lease = attach.plan(state, "web")
    assert lease.bridge == "isomark0"
    (told,) = attach.obstacles(state)
    assert "filter FORWARD" in told
    assert "iptables -I FORWARD -i isomark0 -j ACCEPT" in told
    attach.disconnect(state, "web")
    assert attach.retire(state)
    assert shell("nft list ruleset") == before
    shell("nft delete table ip filter")


def test_forwarding_stays_on_when_others_came_to_rely_on_it(state: str) -> None:
    attach.plan(state, "web")
    shell("nft 'table ip docker { chain p { type nat hook postrouting priority srcnat; }; }'")
    attach.disconnect(state, "web")
    assert attach.retire(state)
    assert FORWARD.read_text().strip() == "1"
    shell("nft delete table ip docker; sysctl -qw net.ipv4.ip_forward=0")


def test_two_state_directories_have_bridges_of_their_own(state: str) -> None:
    """And whichever goes last turns forwarding off."""
    other = f"{state}/other"
    first, second = attach.plan(state, "web"), attach.plan(other, "web")
    assert first.bridge != second.bridge
    assert first.gateway != second.gateway
    attach.disconnect(state, "web")
    assert attach.retire(state)
    assert FORWARD.read_text().strip() == "1"
    attach.disconnect(other, "web")
    assert attach.retire(other)


def test_a_subnet_that_the_host_routes_is_left_alone(state: str, host: Netspace) -> None:
    shell("ip link add vpn type bridge; ip link set vpn up; ip addr add 10.189.7.1/24 dev vpn")
    lease = attach.plan(state, "web")
    assert lease.address.startswith("10.190.")
    attach.disconnect(state, "web")
    assert attach.retire(state)
    Path(state, "network/settings").write_text("subnet = 10.189.0.0/16\n")
    with pytest.raises(HostError, match=r"10\.189\.0\.0/16 for containers meets the host's route to 10\.189\.7"):
        attach.plan(state, "web")
    shell("ip link del vpn")
    lease = attach.plan(state, "web")
    assert lease.address.startswith("10.189.")
    attach.disconnect(state, "web")
    assert attach.retire(state)


def test_the_mtu_is_that_of_the_way_out(state: str, host: Netspace) -> None:
    shell("ip link add wan type veth peer name lan; ip link set wan mtu 1420 up; ip link set lan up")
    shell("ip addr add 192.0.2.1/24 dev wan; ip route add default via 192.0.2.2")
    assert attach.plan(state, "web").mtu == 1420
    attach.disconnect(state, "web")
    assert attach.retire(state)


def test_disconnect_and_retire_may_come_twice_or_without_anything(state: str) -> None:
    attach.disconnect(state, "nobody")
    assert attach.retire(state)
    attach.plan(state, "web")
    for _ in range(2):
        attach.disconnect(state, "web")
        assert attach.retire(state)
        attach.remove({"state": state, "container": "web", "address": "10.189.0.2"})
    assert os.listdir(f"{state}/owned") == []


def test_a_network_needs_root(state: str) -> None:
    script = (
        "import encodings.ascii, os, sys; from bench.errors import HostError; from runtimes.network import attach\n"
        "os.chmod(sys.argv[1], 0o755); os.chown(sys.argv[1], 65534, 65534); os.setuid(65534)\n"
        "try:\n attach.plan(sys.argv[1], 'web')\n"
        "except HostError as error:\n print(error.message, error.hint)"
    )
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True, check=False)
    assert "cannot change the container's network: Operation not permitted" in done.stdout, done.stderr
    assert "--network none" in done.stdout


_DYING = """
import os, signal, sys
from runtimes.network import attach, ports
from runtimes.network import firewall, settings  # so that the calls counted are the network's own
left = int(sys.argv[3])
def count(frame, event, argument):
    global left
    if event == "c_call":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
wanted = ports.parse("8080:80")
sys.setprofile(count)
lease = attach.plan(sys.argv[1], "web", wanted)
attach.connect(lease, int(sys.argv[2]))
attach.disconnect(sys.argv[1], "web")
attach.retire(sys.argv[1])
sys.setprofile(None)
print(int(sys.argv[3]) - left)
"""


def test_killed_at_any_call_it_leaves_nothing_that_clean_does_not_find(state: str) -> None:
    inside = Netspace()

    def run(calls: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _DYING, state, str(inside.fd), str(calls)]
        return subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[inside.fd])

    total = int(run(1 << 30).stdout)
    assert total > 300
    step = int(os.environ.get("ISOMARK_KILL_STEP", "23"))
    for calls in range(1, total, step):
        assert run(calls).returncode == -signal.SIGKILL
        clean(state)
        assert shell("nft list tables") == "", f"killed at call {calls}"
        assert json.loads(shell("ip -j link show type bridge")) == [], f"killed at call {calls}"
        assert json.loads(shell("ip -j link show type veth")) == [], f"killed at call {calls}"
        assert FORWARD.read_text().strip() == "0", f"killed at call {calls}"
        assert [name for name in os.listdir(f"{state}/owned") if name.endswith(".jsonl")] == []
    inside.close()
