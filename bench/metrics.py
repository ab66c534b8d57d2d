"""The metrics every workload has, each with its written definition.

A workload's own metrics stand in its ``workload.toml`` in the same shape. A report links each
figure to the sentence here.
"""

from __future__ import annotations

from typing import Final

from bench.model import Metric

BOOT: Final = Metric(
    name="boot_seconds",
    title="Start to ready",
    unit="seconds",
    direction="lower",
    definition=(
        "From the instant before the driver is asked to start the instance (event spawned) to the "
        "host reading the payload's line 'ready' (event ready), on the host's CLOCK_MONOTONIC. "
        "Includes the driver's own set-up: cgroups, namespaces, root file system, network; for a "
        "virtual server also its disk overlay, libvirt, firmware, kernel and init. Excludes building "
        "the image and its disk. The channel's delay is part of it and is reported beside it."
    ),
)
CHANNEL_DELAY: Final = Metric(
    name="channel_delay_seconds",
    title="Channel delay",
    unit="seconds",
    direction="lower",
    definition=(
        "Half of the time from the host writing 'ping' to the host reading the payload's 'pong', "
        "median of the pings of one trial, on the host's CLOCK_MONOTONIC: how late an event seen "
        "through this driver's console may be."
    ),
)
MEMORY_PSS: Final = Metric(
    name="memory_pss_bytes",
    title="Host memory, idle (PSS)",
    unit="bytes",
    direction="lower",
    definition=(
        "Sum of the proportional set sizes (Pss of /proc/PID/smaps_rollup) of every process that "
        "exists on the host because of the instance, after 'ready' and a settling pause, while the "
        "payload waits idle. Excludes memory the host kernel holds for it (see the cgroup figure) "
        "and daemons shared by all instances, such as libvirtd."
    ),
)
MEMORY_CGROUP: Final = Metric(
    name="memory_cgroup_bytes",
    title="Host memory, idle (cgroup)",
    unit="bytes",
    direction="lower",
    definition=(
        "The memory cgroup's usage of the instance (memory.usage_in_bytes on v1, memory.current on "
        "v2) at the moment the PSS is read. Includes page cache and kernel memory charged to it; "
        "pages shared with another cgroup are charged to whichever touched them first. Missing where "
        "the instance has no memory cgroup of its own."
    ),
)
MEMORY_HYPERVISOR: Final = Metric(
    name="memory_hypervisor_bytes",
    title="Host memory, idle (as libvirt says)",
    unit="bytes",
    direction="lower",
    definition=(
        "What libvirt on the hypervisor's host says that the domain holds, at the moment the PSS would be read: the "
        "resident set of its QEMU process (virDomainMemoryStats, rss), or for Xen what the domain was allocated "
        "(actual). It is no proportional share, so not comparable with the PSS; missing for processes and containers, "
        "and where the hypervisor's processes can be read on this host."
    ),
)
IMAGE_COMPRESSED: Final = Metric(
    name="image_compressed_bytes",
    title="Image, compressed",
    unit="bytes",
    direction="lower",
    definition=(
        "Bytes to ship. Process and container: the sum of the image's compressed layer blobs. "
        "Virtual server: the disk as a zstd-compressed qcow2, plus kernel and initramfs."
    ),
)
IMAGE_UNPACKED: Final = Metric(
    name="image_unpacked_bytes",
    title="Image, unpacked",
    unit="bytes",
    direction="lower",
    definition=(
        "Sum of the sizes of the regular files in the image, hard links counted once; for a virtual "
        "server also its kernel and its initramfs."
    ),
)
IMAGE_ON_DISK: Final = Metric(
    name="image_on_disk_bytes",
    title="Image, on the host's disk",
    unit="bytes",
    direction="lower",
    definition=(
        "Blocks allocated on the host's file system for the form that the driver starts from: the "
        "unpacked tree, or the raw disk with kernel and initramfs. Excludes what a trial writes."
    ),
)

BUILT_IN: Final[tuple[Metric, ...]] = (
    BOOT,
    CHANNEL_DELAY,
    MEMORY_PSS,
    MEMORY_CGROUP,
    MEMORY_HYPERVISOR,
    IMAGE_COMPRESSED,
    IMAGE_UNPACKED,
    IMAGE_ON_DISK,
)
