"""What users write: published ports, subnets, names, nameservers."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import HostError, UsageError
from runtimes.network import lease, names, ports, settings

PORTS = st.integers(1, 65535)


def _told(text: str) -> list[tuple[str, int, int, int, str]]:
    return [
        (port.host_ip, port.host_port, port.host_last, port.container_port, port.protocol) for port in ports.parse(text)
    ]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("80", [("0.0.0.0", 0, 0, 80, "tcp")]),
        ("8080:80", [("0.0.0.0", 8080, 8080, 80, "tcp")]),
        ("53:53/udp", [("0.0.0.0", 53, 53, 53, "udp")]),
        ("127.0.0.1:8080:80/TCP", [("127.0.0.1", 8080, 8080, 80, "tcp")]),
        ("127.0.0.1::80", [("127.0.0.1", 0, 0, 80, "tcp")]),
        ("8000-8001:80-81", [("0.0.0.0", 8000, 8000, 80, "tcp"), ("0.0.0.0", 8001, 8001, 81, "tcp")]),
        ("8000-8010:80", [("0.0.0.0", 8000, 8010, 80, "tcp")]),
        ("0:80", [("0.0.0.0", 0, 0, 80, "tcp")]),
        ("80-81", [("0.0.0.0", 0, 0, 80, "tcp"), ("0.0.0.0", 0, 0, 81, "tcp")]),
    ],
)
def test_ports_are_read_as_docker_reads_them(text: str, meant: list[tuple[str, int, int, int, str]]) -> None:
    assert _told(text) == meant


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "nothing is no port"),
        ("0", "0 is no port"),
        ("65536", "65536 is no port"),
        ("99999999999999999999:1", "is no port"),
        ("http:80", "http is no port"),
        (":80", "the host's port is missing"),
        ("8080:", "nothing is no port"),
        ("8080:80/sctp", "sctp is neither tcp nor udp"),
        ("8080:80/", "nothing is neither tcp nor udp"),
        ("8001-8000:80", "runs backwards"),
        ("8000-8002:80-81", "differ in length"),
        ("localhost:80:80", "localhost is not an IPv4 address"),
        ("1.2.3:80:80", "1.2.3 is not an IPv4 address"),
        ("[::1]:80:80", "IPv6"),
        ("1:2:3:4", "IPv6"),
        ("٨٠:80", "is no port"),
    ],
)
def test_a_malformed_port_says_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as raised:
        ports.parse(text)
    assert raised.value.hint


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = ports.parse(text)
    except UsageError:
        return
    for port in read:
        assert 1 <= port.container_port <= 65535
        assert 0 <= port.host_port <= port.host_last <= 65535
        ipaddress.IPv4Address(port.host_ip)


@given(st.ip_addresses(v=4), PORTS, PORTS, st.sampled_from(["tcp", "udp"]))
def test_what_is_written_is_read(address: ipaddress.IPv4Address, host: int, container: int, protocol: str) -> None:
    assert _told(f"{address}:{host}:{container}/{protocol}") == [(str(address), host, host, container, protocol)]


@given(st.ip_addresses(v=4))
def test_addresses_are_numbers_and_back(address: ipaddress.IPv4Address) -> None:
    assert lease.number_of(str(address)) == int(address)
    assert lease.text_of(int(address)) == str(address)


def test_settings_are_read_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("# ours\n\nsubnet = 10.9.0.0/24  # small\nbridge=lab0\n")
    read = settings.read(str(path))
    assert (read.subnet, read.bridge) == ((0x0A090000, 24), "lab0")
    assert settings.read(str(tmp_path / "none")).subnet is None


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("subnet = 10.9.0.1/24", "bits set behind"),
        ("subnet = 10.9.0.0", "prefix length"),
        ("subnet = 10.9.0.0/30", "from /8 to /29"),
        ("subnet = ten/8", "not an IPv4 address"),
        ("bridge = a-name-that-is-too-long", "cannot be the name"),
        ("bridge = x; flush ruleset", "cannot be the name"),
        ("bridge = 0lab", "nftables table"),
        ("mtu = 9000", "mtu is no setting"),
        ("= 5", "nothing is no setting"),
    ],
)
def test_a_bad_setting_is_refused_with_its_line(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "settings"
    path.write_text(f"\n{line}\n")
    with pytest.raises(HostError, match=fault) as raised:
        settings.read(str(path))
    assert raised.value.message.startswith(f"{path}:2: ")


@pytest.fixture
def host_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's resolv.conf, systemd-resolved's list of upstream servers, and hosts."""
    directory = tmp_path / "host"
    directory.mkdir()
    monkeypatch.setattr(names, "RESOLV_CONFS", (str(directory / "resolv.conf"), str(directory / "upstream.conf")))
    monkeypatch.setattr(names, "HOSTS", str(directory / "hosts"))
    return directory


def _write(tmp_path: Path, **options: object) -> tuple[list[str], str, str]:
    wanted = {"hostname": "web", "address": "10.189.0.2", "gateway": "10.189.0.1", **options}
    notes = names.write(str(tmp_path), **wanted)  # type: ignore[arg-type]
    assert (tmp_path / "hostname").read_text() == "web\n"
    return notes, (tmp_path / "resolv.conf").read_text(), (tmp_path / "hosts").read_text()


def test_the_hosts_nameserver_is_the_containers(host_files: Path, tmp_path: Path) -> None:
    (host_files / "resolv.conf").write_text(
        "# made by hand\nnameserver 192.0.2.53 ; ours\nsearch lab.test\noptions ndots:2\n"
    )
    notes, resolver, hosts = _write(tmp_path)
    assert (notes, resolver) == ([], "nameserver 192.0.2.53\nsearch lab.test\noptions ndots:2\n")
    assert hosts.startswith("127.0.0.1 localhost\n")
    assert hosts.endswith("\n10.189.0.2 web\n")


def test_a_nameserver_on_loopback_is_replaced_by_its_upstream(host_files: Path, tmp_path: Path) -> None:
    (host_files / "resolv.conf").write_text("nameserver 127.0.0.53\nsearch lab.test\n")
    (host_files / "upstream.conf").write_text("nameserver ::1\nnameserver 192.0.2.9\n")
    notes, resolver, _ = _write(tmp_path)
    assert (notes, resolver) == ([], "nameserver 192.0.2.9\nsearch lab.test\n")


@pytest.mark.parametrize("content", ["nameserver 127.0.0.1\n", "nameserver ::1\nnameserver 2001:db8::1\n", "", None])
def test_no_reachable_nameserver_is_said(host_files: Path, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (host_files / "resolv.conf").write_text(content)
    (note,), resolver, _ = _write(tmp_path)
    assert "nameserver" in note
    assert "--dns" in note
    assert "nameserver" not in resolver


def test_the_hosts_network_keeps_its_own_resolver_and_names(host_files: Path, tmp_path: Path) -> None:
    (host_files / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    (host_files / "hosts").write_text("127.0.0.1 localhost\n192.0.2.7 printer\n")
    notes, resolver, hosts = _write(tmp_path, address=None, gateway=None, host=True, add_hosts=["db=192.0.2.8"])
    assert (notes, resolver) == ([], "nameserver 127.0.0.53\n")
    assert hosts == "127.0.0.1 localhost\n192.0.2.7 printer\n192.0.2.8 db\n"


def test_what_the_user_says_wins(host_files: Path, tmp_path: Path) -> None:
    (host_files / "resolv.conf").write_text("nameserver 192.0.2.53\nsearch lab.test\noptions ndots:2\n")
    _, resolver, hosts = _write(
        tmp_path,
        dns=["127.0.0.1", "2001:db8::53"],
        dns_search=["."],
        dns_options=["timeout:1"],
        add_hosts=["db:192.0.2.8", "six:[2001:db8::1]", "host.internal:host-gateway"],
    )
    assert resolver == "nameserver 127.0.0.1\nnameserver 2001:db8::53\noptions timeout:1\n"
    assert hosts.endswith("192.0.2.8 db\n2001:db8::1 six\n10.189.0.1 host.internal\n")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"dns": ["ns.lab.test"]}, "--dns ns.lab.test: not an address"),
        ({"dns": ["192.0.2.1\nnameserver 6.6.6.6"]}, "not an address"),
        ({"add_hosts": ["db"]}, "names no address"),
        ({"add_hosts": ["db:nowhere"]}, "nowhere is not an address"),
        ({"add_hosts": ["d b:192.0.2.1"]}, "cannot be a host name"),
        ({"add_hosts": ["db:host-gateway"], "gateway": None}, "no host-gateway"),
        ({"dns_search": ["a b"]}, "cannot stand in a resolv.conf"),
        ({"dns_options": ["a\nnameserver 6.6.6.6"]}, "cannot stand in a resolv.conf"),
        ({"hostname": "a" * 65}, "cannot be a host name"),
        ({"hostname": "-web"}, "cannot be a host name"),
        ({"hostname": "w eb"}, "cannot be a host name"),
        ({"hostname": ""}, "cannot be a host name"),
    ],
)
def test_bad_names_are_refused(host_files: Path, tmp_path: Path, options: dict[str, object], fault: str) -> None:
    (host_files / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    with pytest.raises(UsageError, match=fault):
        _write(tmp_path, **options)


def test_a_directory_that_is_not_there_is_told(host_files: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot write"):
        _write(tmp_path / "nowhere")
