"""Guests of Xen on a bridge of its dom0: one serves, the other fetches, and libvirt counts the packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from small_image import PATH, small_image

from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.drivers import load_driver
from bench.model import Limits
from bench.network import Lease, example_lease
from vms.connection import Connection
from vms.driver import LibvirtDriver

pytestmark = [pytest.mark.xen, pytest.mark.timeout(600)]
BRIDGE = "xenbr0"
HANG_SECONDS = 250.0
MEMORY = 192 * 1024**2
SERVE = "echo from xen >/tmp/index.html; busybox httpd -p 8080 -h /tmp; echo isomark ready; read line"
FETCH = "busybox wget -q -O - http://{}:8080/index.html; echo isomark ready; read line"


@pytest.fixture(params=["xen-pv", "xen-pvh"])
def driver(
    request: pytest.FixtureRequest, xen_uri: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LibvirtDriver]:
    monkeypatch.setenv("ISOMARK_XEN_URI", xen_uri)
    plain = load_driver(request.param, lab)
    assert isinstance(plain, LibvirtDriver)
    made = plain.configured({"network": f"bridge:{BRIDGE}"})
    made.check()
    yield made
    made.close()


def lease(number: int) -> Lease:
    """The addresses are the guests' own: no network of this host has to do with them."""
    return Lease(f"10.213.9.{number}", 16, example_lease().gateway, f"02:15:0a:d5:09:{number:02x}", f"isoxen{number}")


def test_one_guest_fetches_a_page_from_another(driver: LibvirtDriver, lab: Lab, xen_uri: str, tmp_path: Path) -> None:
    image = driver.build(small_image(tmp_path / "tree"))

    def launch(name: str, script: str, number: int) -> Launch:
        full = f"iso-{lab.journal.owner.id}-{name}"
        return Launch(full, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=MEMORY), lease(number))

    serve = launch("serve", SERVE, 1)
    with driver.start(image, serve) as server:
        Dialogue(server, HANG_SECONDS).ready()
        assert server.address() == "10.213.9.1"
        before = packets(xen_uri, serve.name)
        with driver.start(image, launch("fetch", FETCH.format(server.address()), 2)) as client:
            Dialogue(client, HANG_SECONDS).ready()
            assert "from xen" in client.tail
        received, sent = (now - then for now, then in zip(packets(xen_uri, serve.name), before, strict=True))
    # a request is at least SYN, ACK, request and FIN; its answer SYN and ACK, the page and FIN
    assert received >= 4
    assert sent >= 3


def packets(uri: str, name: str) -> tuple[int, int]:
    """What the guest's only card has received and sent, as dom0 counts it."""
    connection = Connection(uri)
    domain = connection.open().lookupByName(name)
    (card,) = ET.fromstring(domain.XMLDesc()).findall("devices/interface")
    assert card.find("source").get("bridge") == BRIDGE  # type: ignore[union-attr]
    device = card.find("target").get("dev")  # type: ignore[union-attr]
    counted = domain.interfaceStats(device)
    del domain
    connection.close()
    return counted[1], counted[5]
