"""What the host asks of one full guest: command, environment and address, on a second disk of a few sectors.

The shared disk stays as it is. A disk was chosen over the ways that a hypervisor has of handing over strings (fw_cfg,
SMBIOS and with them systemd's credentials) because every hypervisor has disks, Xen too, and because it holds any
number of bytes of any value. It needs no file system: the guest looks through its disks for the one that begins with
``NAME=``, on whatever bus, and reads it whole.
"""

from __future__ import annotations

from pathlib import Path

from bench.driver import Launch
from vms.full.gpt import SECTOR
from vms.initramfs import trial_script


def trial_disk(launch: Launch) -> bytes:
    """Return the disk of ``launch``: a shell script, filled up with line ends to whole sectors.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
    """
    script = trial_script(launch, root=None).encode("utf-8", "surrogateescape")
    return script + b"\n" * (-len(script) % SECTOR)


def write_trial_disk(path: Path, launch: Launch) -> None:
    """Write the disk of ``launch`` to ``path``.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
        OSError: it exists already, or cannot be written.
    """
    with path.open("xb") as file:
        file.write(trial_disk(launch))
