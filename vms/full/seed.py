"""What a cloud image that is not ours reads at its first boot: a NoCloud seed that makes the workload a unit of it.

A file system called ``cidata`` with ``meta-data``, ``user-data`` and ``network-config`` (cloud-init, NoCloud). It is
to be attached as a virtio disk: not every cloud kernel has a driver for an emulated CD drive. The image has to bring
cloud-init and the workload's packages; nothing is fetched. Such a guest tells of no ``init``: its first process is not
ours to ask.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from signal import SIGRTMIN
from typing import Any, Final

from bench.driver import Launch
from bench.errors import ImageError
from bench.units import MIB
from vms.full.iso9660 import iso9660
from vms.initramfs import trial_script

LABEL: Final = "cidata"
PAYLOAD_BYTES: Final = MIB
"""Larger payloads belong into an image."""

_SOURCES: Final = ["NoCloud", "None"]
"""Without this list cloud-init asks for the metadata servers of a dozen clouds, each until it times out."""
_CONSOLE: Final = "/dev/ttyS0"
_QUIET: Final = [
    "echo 1 >/proc/sys/kernel/printk",  # only a panic may print between the payload's lines
    "echo -1 >/proc/sys/kernel/panic",  # and ends the guest
    f"kill -{SIGRTMIN + 21} 1",  # systemd(1): no status messages on the console
    f"systemctl --runtime mask serial-getty@{Path(_CONSOLE).name}.service",  # its prompt would begin a line
]
_UNIT: Final = "etc/systemd/system/isomark-workload.service"
_SCRIPT: Final = "usr/lib/isomark/workload.sh"


def payload_files(tree: Path) -> dict[str, bytes]:
    """Return the payloads in ``tree``, that of a workload's image: path in the guest -> content.

    Raises:
        ImageError: they are larger than ``PAYLOAD_BYTES``.
    """
    root = tree / "isomark"
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    if sum(path.stat().st_size for path in found) > PAYLOAD_BYTES:
        raise ImageError(f"the payload is larger than {PAYLOAD_BYTES >> 20} MiB", hint="put it into the image itself")
    return {f"/isomark/{path.relative_to(root)}": path.read_bytes() for path in found}


def seed(launch: Launch, payload: Mapping[str, bytes]) -> bytes:
    """Return the seed of ``launch``, whose command is among ``payload``, as a whole ISO 9660 file system.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
    """
    return iso9660(LABEL, seed_files(launch, payload))


def write_seed(path: Path, launch: Launch, payload: Mapping[str, bytes]) -> None:
    """Write the seed of ``launch`` to ``path``.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
        OSError: it exists already, or cannot be written.
    """
    with path.open("xb") as file:
        file.write(seed(launch, payload))


def seed_files(launch: Launch, payload: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the seed's files, name -> content; JSON, which is YAML too."""
    return {
        "meta-data": _json({"instance-id": launch.name, "local-hostname": launch.name}),
        "user-data": b"#cloud-config\n" + _json(_user_data(launch, payload)),
        "network-config": _json(_network(launch)),
    }


def _user_data(launch: Launch, payload: Mapping[str, bytes]) -> dict[str, Any]:
    guest = files("vms.full").joinpath("guest")
    # the console that the host reads, whichever the image's kernel prefers
    trial = f"console={_CONSOLE}\n".encode() + trial_script(launch, root=None).encode("utf-8", "surrogateescape")
    sources = f"datasource_list: {json.dumps(_SOURCES)}\n".encode()
    written = {
        "/etc/cloud/cloud.cfg.d/99-isomark.cfg": sources,
        "/run/isomark/trial": trial,
        f"/{_SCRIPT}": guest.joinpath(_SCRIPT).read_bytes(),
        f"/{_UNIT}": guest.joinpath(_UNIT).read_bytes(),
        **payload,
    }
    return {
        "datasource_list": _SOURCES,
        # what cloud-init would do before the workload: keys of one kind do, and nobody reads them on the console
        "ssh_genkeytypes": ["ed25519"],
        "no_ssh_fingerprints": True,
        "ssh": {"emit_keys_to_console": False},
        "locale": "C.UTF-8",
        "package_update": False,
        "bootcmd": _QUIET,
        "write_files": [_written(path, data) for path, data in written.items()],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            # it waits for targets that wait for cloud-init
            ["systemctl", "start", "--no-block", Path(_UNIT).name],
        ],
    }


def _written(path: str, data: bytes) -> dict[str, str]:
    mode = "0755" if data.startswith(b"#!") else "0644"
    return {"path": path, "permissions": mode, "encoding": "b64", "content": base64.b64encode(data).decode()}


def _network(launch: Launch) -> dict[str, Any]:
    """The address of ``launch``, or no network; without this cloud-init would wait for DHCP."""
    if launch.lease is None:
        return {"version": 2, "ethernets": {}}
    lease = launch.lease
    card = {
        "match": {"macaddress": lease.mac},
        "addresses": [f"{lease.address}/{lease.prefix_length}"],
        "routes": [{"to": "0.0.0.0/0", "via": lease.gateway}],
        # nobody announces a router here, which would be waited for a quarter of a minute
        "accept-ra": False,
        "link-local": [],
    }
    return {"version": 2, "ethernets": {"isomark": card}}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
