"""The metrics every workload has, each with its written definition.

A workload's own metrics stand in its ``workload.toml`` in the same shape. A report links each
figure to the sentence here.
"""

from __future__ import annotations

from typing import Final

from bench.memory_metrics import DENSITY
from bench.model import Metric

ANSWER: Final = "first answer"
"""The step at which an instance has answered over the network, and what reports call it."""

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
BOOT_CPU: Final = Metric(
    name="boot_cpu_seconds",
    title="CPU time to ready",
    unit="seconds",
    direction="lower",
    definition=(
        "CPU time that the instance has used on its host when the host has read the payload's line 'ready'. Container: "
        "what its cgroup was charged (cpuacct.usage, cpu.stat). Virtual server: what libvirt says of the domain "
        "(virDomainGetInfo), which for QEMU is its process with its virtual CPUs and its own work, and for Xen the "
        "domain's virtual CPUs. Excludes what libvirtd, the driver and the host's kernel did on the way. Missing for a "
        "bare process, which has no account of its own."
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
FIRST_ANSWER: Final = Metric(
    name="first_answer_seconds",
    title="Start to first answer",
    unit="seconds",
    direction="lower",
    definition=(
        "From the instant before the driver is asked to start the instance (event spawned) to the host reading the "
        "first byte of the answer to one HTTP request, which it sends on reading the payload's line 'ready', from "
        "where the load comes from; on the host's CLOCK_MONOTONIC. What it adds to start to ready is the way to ready "
        "and back over both channel and network, and making the socket (for instances on the lab's network in a thread "
        "that enters its namespace, a fraction of a millisecond). Missing for workloads that serve nothing."
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
IMAGE_USED: Final = Metric(
    name="image_used_bytes",
    title="Image, used inside the guest",
    unit="bytes",
    direction="lower",
    definition=(
        "What df says inside the guest before its first start: blocks of its root file system that are in use, without "
        "the file system's own tables and journal (statfs(2), f_blocks - f_bfree), read from the superblock of the "
        "disk when it has been built. Contains what the image has unpacked and, in a full guest, its system and "
        "kernel. Missing for processes and containers, whose file systems are directories of the host's, and for "
        "disk images that were not built here."
    ),
)
IMAGE_VIRTUAL: Final = Metric(
    name="image_virtual_bytes",
    title="Image, virtual size",
    unit="bytes",
    direction="lower",
    definition=(
        "The size of the disk that the guest sees (qemu-img info, virtual size), used or not. It is a choice: the "
        "image and as much room as a trial may need, in whole GiB. Missing for processes and containers, which see "
        "the size of the host's file system."
    ),
)
INSTANCE_DISK: Final = Metric(
    name="instance_disk_bytes",
    title="Image, marginal cost of a second instance",
    unit="bytes",
    direction="lower",
    definition=(
        "Blocks allocated (stat(2), st_blocks) for what one instance has for itself and the next one would need "
        "again, when it is ready and idle, after the settling pause. Process: its scratch directory. Container: the "
        "upper and the work directory of its overlay and its scratch directory. Virtual server: its qcow2 overlay on "
        "the shared disk, with all that the guest has written so far, its initramfs or the disk that tells it what to "
        "do, and its NVRAM. Through libvirt on another host it is the allocation of these volumes. Excludes the "
        "shared image, and what the guest has not yet sent to its disk."
    ),
)
IMAGE: Final = (IMAGE_COMPRESSED, IMAGE_UNPACKED, IMAGE_ON_DISK, IMAGE_USED, IMAGE_VIRTUAL, INSTANCE_DISK)
"""The sizes of an image in the order to show them; the last one is sampled in idle trials, the others are counted."""

MINIMUM_MEMORY: Final = Metric(
    name="minimum_memory_bytes",
    title="Minimum memory",
    unit="bytes",
    direction="lower",
    definition=(
        "The smallest limit on memory with which an instance still completes: it becomes ready, answers a first "
        "request, answers a round of load by wrk as in the workload http without one error, and ends by itself when "
        "told to (a virtual server with status 0; a container's status is not looked at). "
        "Virtual server: the limit is the memory of its machine, so its kernel, initramfs and file cache "
        "have to fit into it. Container: the limit of its memory cgroup without swap, so the host's kernel is outside "
        "it, and files of the image that the host has cached for somebody else are not charged to it. Does not "
        "complete: out of memory, a panic, an end, an error, a start that is refused although one with a limit that "
        "sufficed is not; and one that thrashes or hangs: that takes longer than 3 times what the first attempt, with "
        "the suite's limit, took from its start to the same event (kernel, init, ready) or to its end, and 5 s, or "
        "than the suite's time-out; or that answers less than a tenth of the first attempt's requests per second. "
        "Found by bisection between nothing and the suite's limit, with which the workload must complete, over limits "
        "256 KiB apart up to 16 MiB and 1/32 to 1/64 of themselves apart above: the true one is at most one such step "
        "lower. The limit found and the one below it are attempted twice, and once more if the two attempts differ; "
        "what happens more often counts, and no larger limit that was attempted fails. Missing where the driver "
        "enforces no limit on memory."
    ),
)
MINIMUM_UNSTEADY: Final = Metric(
    name="minimum_unsteady_bytes",
    title="Minimum memory, unsteady range",
    unit="bytes",
    direction="lower",
    definition=(
        "How far the limits reach about which attempts contradict each other: from the largest with which any attempt "
        "failed down to the candidate below the smallest with which any completed. 0 where every attempt agreed that "
        "more memory is enough and less is not."
    ),
)
MINIMUM_ATTEMPT: Final = Metric(
    name="minimum_attempt_bytes",
    title="Memory limit attempted",
    unit="bytes",
    direction="lower",
    definition=(
        "The limit on memory that one attempt of the search for minimum_memory_bytes was given; the round is the "
        "attempt's number, from 0 for the one with the suite's limit."
    ),
)
MINIMUM_COMPLETED: Final = Metric(
    name="minimum_completed_ratio",
    title="Attempt completed",
    unit="ratio",
    direction="higher",
    definition=(
        "1 if the attempt with the limit of the same round's minimum_attempt_bytes completed as minimum_memory_bytes "
        "says, 0 if it did not."
    ),
)
MINIMUM: Final = (MINIMUM_MEMORY, MINIMUM_UNSTEADY)
"""What to show of a search for the minimum; the attempts are there as samples, their round the attempt's number."""


_ASKED: Final = "From the instant before the instance is asked"
_CLOCK: Final = "on the host's CLOCK_MONOTONIC"

SUSPEND: Final = Metric(
    name="suspend_seconds",
    title="Suspend",
    unit="seconds",
    direction="lower",
    definition=(
        f"{_ASKED} to stand still to the answer that all of it does, {_CLOCK}; its memory stays where it is. "
        "Container: the cgroup freezer, until the kernel says that every process is frozen. Virtual server: "
        "virDomainSuspend, until it returns, which is after the hypervisor has stopped the virtual CPUs. That it "
        "stands still is tried out: it must not answer a ping until it is resumed, or the trial fails. Missing for "
        "a bare process."
    ),
)
RESUME: Final = Metric(
    name="resume_seconds",
    title="Resume",
    unit="seconds",
    direction="lower",
    definition=(
        f"{_ASKED} to go on after a suspend to the host reading its answer to a ping that was sent while it stood "
        f"still, {_CLOCK}. Includes the way of the answer through the console. Missing for a bare process."
    ),
)
SAVE: Final = Metric(
    name="save_seconds",
    title="Save",
    unit="seconds",
    direction="lower",
    definition=(
        f"{_ASKED} to write its memory and devices to a file and end (virDomainSave) to the end of the hypervisor's "
        f"process, which comes after the file is written, {_CLOCK}; on another host or Xen to libvirt telling the "
        "domain's end. The file lies in the trial's own folder, on another host in the storage pool, and may still "
        "be in the page cache. Excludes libvirt's waiting for process 1 to reap the hypervisor. Missing for "
        "processes and containers, which would need CRIU, and for a CPU passed through with all its features, whose"
        " state QEMU does not save."
    ),
)
RESTORE: Final = Metric(
    name="restore_seconds",
    title="Restore",
    unit="seconds",
    direction="lower",
    definition=(
        "From the instant before libvirt is asked to start a saved domain again (virDomainRestore) to the host "
        f"reading its answer to the first ping, {_CLOCK}: a new hypervisor, its devices, the memory read back, the "
        "console opened again. The file has just been written, so it is likely read from the page cache. Missing "
        "where save is."
    ),
)
SNAPSHOT: Final = Metric(
    name="snapshot_seconds",
    title="Snapshot of the disk",
    unit="seconds",
    direction="lower",
    definition=(
        "From the instant before the disk of a running domain is asked to be kept as it is to libvirt "
        f"(virDomainSnapshotCreateXML, disk only, external) saying that it is, {_CLOCK}: the guest writes to a new "
        "qcow2 overlay from then on, whose making (for another host: uploading) is included, and must still answer "
        "a ping. Excludes its memory, whose writing is what save takes, and does not freeze the guest's file "
        "systems. Missing for processes and containers, for guests without a disk, and for Xen, where libvirt has "
        "no snapshots."
    ),
)
REBOOT: Final = Metric(
    name="reboot_seconds",
    title="Reboot",
    unit="seconds",
    direction="lower",
    definition=(
        f"{_ASKED} to reboot (Ctrl-Alt-Del, at which the guest's init ends the payload and resets the machine) to "
        f"the host reading the payload's next line 'ready', {_CLOCK}. The hypervisor stays; firmware, kernel and "
        "init run again. Missing for processes and containers, which have no machine to reset, and for Xen, where "
        "libvirt cannot let a domain that was made for one life start another."
    ),
)
SHUTDOWN: Final = Metric(
    name="shutdown_seconds",
    title="Shutdown",
    unit="seconds",
    direction="lower",
    definition=(
        f"{_ASKED} to end gracefully to all of it being gone from the host (event exited), {_CLOCK}. Process and "
        "container: SIGTERM to the first process. Virtual server started directly: Ctrl-Alt-Del (Xen: its reboot "
        "request), at which its init sends SIGTERM to the payload and then resets the machine, at which the domain "
        "ends; a whole server: the ACPI power button, at which systemd stops all services and powers off. Taken "
        "from an instance that has been through all other verbs that it has."
    ),
)
DESTROY: Final = Metric(
    name="destroy_seconds",
    title="Destroy",
    unit="seconds",
    direction="lower",
    definition=(
        "From the instant before an idle instance is killed to all of it being gone from the host (event exited), "
        f"{_CLOCK}. Process and container: SIGKILL, until every process has ended. Virtual server: SIGKILL to the "
        "QEMU process, until it has ended, without libvirt's own bookkeeping; on another host or Xen "
        "virDomainDestroy, until libvirt tells the domain's end. Measured on an instance of its own, which has done"
        " nothing but become ready."
    ),
)

LIFECYCLE: Final[tuple[Metric, ...]] = (
    BOOT,
    SUSPEND,
    RESUME,
    SAVE,
    RESTORE,
    SNAPSHOT,
    REBOOT,
    SHUTDOWN,
    DESTROY,
)
"""What a workload with ``load = "lifecycle"`` gives, in the order of a life."""

BUILT_IN: Final[tuple[Metric, ...]] = (
    BOOT,
    BOOT_CPU,
    CHANNEL_DELAY,
    FIRST_ANSWER,
    MEMORY_PSS,
    MEMORY_CGROUP,
    MEMORY_HYPERVISOR,
    *IMAGE,
    *MINIMUM,
    MINIMUM_ATTEMPT,
    MINIMUM_COMPLETED,
    *LIFECYCLE[1:],
    *DENSITY,
)
