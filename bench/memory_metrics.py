"""What a density workload measures: the host's memory, each instance's, and KSM's; ``bench.metrics`` lists them all.

Their samples carry as round the number of instances that run at the reading: one sample of each of the host's, and one
for each of those instances of an instance's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bench.model import Metric

_READING: Final = (
    "Taken when the newest instance has said 'ready' and one round's length has passed: of five readings 0.1 s apart "
    "the one with the median memory in use that is not anonymous, which others change most."
)


def _held(name: str, title: str, definition: str) -> Metric:
    return Metric(f"{name}_bytes", title, "bytes", "lower", definition)


def _host(name: str, title: str, definition: str) -> Metric:
    return _held(f"host_{name}", title, f"{definition} {_READING}")


HOST_USED: Final = _host(
    "used",
    "Host memory in use",
    "MemTotal - MemAvailable + SwapTotal - SwapFree of the host's /proc/meminfo (proc(5)), less the free pages on the "
    "CPUs' own lists and the free huge pages (HugePages_Free): what is in use and could not be had without swapping. "
    "Page cache and reclaimable slab count as available.",
)
HOST_CPU_LISTS: Final = _host(
    "cpu_lists",
    "Free pages on the CPUs' own lists",
    "The pages that each CPU keeps in stock (count of each pageset in /proc/zoneinfo), hundreds of MiB after much "
    "memory was freed: free, though /proc/meminfo counts them as neither free nor available. No part of what is used.",
)
HOST_USED_FREE: Final = _host(
    "used_free",
    "Host memory in use, by what is free",
    "MemTotal - MemFree - Buffers - (Cached - Shmem) - SReclaimable of the host's /proc/meminfo, less the free huge "
    "pages: the same question, asked without the kernel's estimate of what is available. Without swap.",
)
HOST_ANONYMOUS: Final = _host("anonymous", "Anonymous memory", "AnonPages of the host's /proc/meminfo.")
HOST_SHMEM: Final = _host(
    "shmem", "Shared memory and tmpfs", "Shmem of the host's /proc/meminfo: shared anonymous memory, memfd and tmpfs."
)
HOST_HUGE_PAGES: Final = _host(
    "huge_pages",
    "Huge pages in use",
    "Hugetlb - HugePages_Free * Hugepagesize of the host's /proc/meminfo: what of the huge pages that were reserved on "
    "the host holds a guest's memory, or that of others. Huge pages of another size than Hugepagesize count as in use.",
)
HOST_SWAPPED: Final = _host("swapped", "Swapped out", "SwapTotal - SwapFree of the host's /proc/meminfo.")
HOST_PAGE_TABLES: Final = _host(
    "page_tables",
    "Page tables",
    "PageTables + SecPageTables of the host's /proc/meminfo: the processes' page tables and, where the kernel tells "
    "(6.1), KVM's second level.",
)
HOST_KERNEL_STACKS: Final = _host(
    "kernel_stacks", "Kernel stacks", "KernelStack of the host's /proc/meminfo: one for each thread."
)
HOST_SLAB: Final = _host(
    "slab",
    "Slab that cannot be reclaimed",
    "SUnreclaim of the host's /proc/meminfo: the kernel's own objects, such as those of processes, namespaces, cgroups "
    "and sockets.",
)
HOST_PERCPU: Final = _host(
    "percpu", "Per-CPU memory", "Percpu of the host's /proc/meminfo: what the kernel keeps once for each possible CPU."
)
HOST_VMALLOC: Final = _host(
    "vmalloc",
    "Other kernel memory (vmalloc)",
    "VmallocUsed - KernelStack of the host's /proc/meminfo: what the kernel mapped page by page, such as BPF programs; "
    "without the stacks, which it maps so too.",
)
HOST_PAGE_CACHE: Final = _host(
    "page_cache",
    "Page cache",
    "Buffers + Cached - Shmem of the host's /proc/meminfo: files in memory, which the host can drop. No part of what "
    "is in use.",
)
HOST_RECLAIMABLE: Final = _host(
    "reclaimable",
    "Reclaimable slab",
    "SReclaimable of the host's /proc/meminfo: inodes and directory entries, which the host can drop. No part of what "
    "is in use.",
)
HOST_TOLD: Final = _host(
    "told",
    "Host memory in use, as its hypervisor says",
    "For instances on another host, or below Xen, whose memory is not this kernel's: for Xen its total less its free "
    "memory (virNodeGetInfo, virNodeGetFreeMemory), else total - free - buffers - cached of virNodeGetMemoryStats.",
)
HOST_DRIFT: Final = _held(
    "host_drift",
    "Host memory not given back",
    "Host memory in use after all instances of a trial were destroyed, less that before the first was started, each "
    "read as above: what others took meanwhile, and what the host keeps. So far the slopes may be off.",
)

MEMORY_ANONYMOUS: Final = _held(
    "memory_anonymous",
    "Anonymous memory of an instance (PSS)",
    "Pss_Anon of /proc/PID/smaps_rollup (Linux 5.4), summed over the processes that memory_pss_bytes sums. For a "
    "virtual server this holds the guest's memory as far as it was ever touched.",
)
MEMORY_SHMEM: Final = _held(
    "memory_shmem",
    "Shared memory of an instance (PSS)",
    "Pss_Shmem of /proc/PID/smaps_rollup, summed likewise: mapped memfd, tmpfs and shared anonymous memory. For a "
    "virtual server with virtiofs or vhost-user this holds the guest's memory instead.",
)
MEMORY_FILE: Final = _held(
    "memory_file",
    "Mapped files of an instance (PSS)",
    "Pss_File of /proc/PID/smaps_rollup, summed likewise: its share of programs and libraries in the page cache, which "
    "the host can drop and which is therefore no part of what is in use.",
)

KSM_SAVED: Final = _held(
    "ksm_saved",
    "Saved by KSM, for each instance",
    "The sum of the instances' proportional set sizes before kernel same-page merging (KSM) was switched on, less that "
    "after it had passed over all mergeable memory three times, divided by their number. Only where KSM was off.",
)
KSM_HOST_SAVED: Final = _held(
    "ksm_host_saved",
    "Saved by KSM on the host, for each instance",
    "Host memory in use before KSM was switched on, less that after, divided by the number of instances. Contains what "
    "KSM itself needs, and what it saved on memory of others.",
)
KSM_SHARED: Final = _held(
    "ksm_shared",
    "KSM: shared pages",
    "pages_shared of /sys/kernel/mm/ksm times the page size, with all instances running and KSM on: what is kept once. "
    "Host-wide.",
)
KSM_SHARING: Final = _held(
    "ksm_sharing",
    "KSM: sharing pages",
    "pages_sharing of /sys/kernel/mm/ksm times the page size, read with pages_shared: what would be needed in "
    "addition. Host-wide.",
)
KSM_PROFIT: Final = _held(
    "ksm_profit",
    "KSM: profit",
    "general_profit of /sys/kernel/mm/ksm (Linux 6.4), read with pages_shared: what is saved, less KSM's own records. "
    "Host-wide, and negative where it costs more than it saves.",
)

BALLOON: Final[Mapping[str, Metric]] = {
    key: _held(f"balloon_{name}", f"Balloon: {title}", f"{definition} (virDomainMemoryStats, {key}).")
    for key, name, title, definition in (
        ("actual", "actual", "granted now", "What the domain is granted at this moment, less what the balloon took"),
        ("rss", "rss", "resident", "The resident set of the hypervisor's process, shared pages counted in full"),
        (
            "available",
            "available",
            "usable by the guest's kernel",
            "MemTotal inside, as the guest's balloon driver says",
        ),
        ("unused", "unused", "free inside", "MemFree inside, as the guest's balloon driver says"),
        ("usable", "usable", "available inside", "MemAvailable inside, as the guest's balloon driver says"),
        ("disk_caches", "caches", "page cache inside", "What the guest could drop, as its balloon driver says"),
    )
}
"""What libvirt's balloon statistics say of an instance, by its names; without a balloon that is only ``rss``."""

DENSITY: Final[tuple[Metric, ...]] = (
    HOST_USED,
    HOST_USED_FREE,
    HOST_CPU_LISTS,
    HOST_ANONYMOUS,
    HOST_SHMEM,
    HOST_HUGE_PAGES,
    HOST_SWAPPED,
    HOST_PAGE_TABLES,
    HOST_KERNEL_STACKS,
    HOST_SLAB,
    HOST_PERCPU,
    HOST_VMALLOC,
    HOST_PAGE_CACHE,
    HOST_RECLAIMABLE,
    HOST_TOLD,
    HOST_DRIFT,
    MEMORY_ANONYMOUS,
    MEMORY_SHMEM,
    MEMORY_FILE,
    KSM_SAVED,
    KSM_HOST_SAVED,
    KSM_SHARED,
    KSM_SHARING,
    KSM_PROFIT,
    *BALLOON.values(),
)
