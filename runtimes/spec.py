"""What to start, as data: the one description that the sandbox, the engine and the OCI command line share.

It travels between our own processes only. Types alone: nothing imports this module when it runs, so that a
start does not pay for ``typing``.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Network(TypedDict):
    """IPv4 settings of ``eth0``."""

    address: str
    netmask: str
    gateway: str


class User(TypedDict):
    """Who the command is run as.

    ``name`` is what an image says, ``USER[:GROUP]`` by name or number, looked up in the root's /etc/passwd and
    /etc/group once it is entered, the supplementary groups (to which ``groups`` are added) and HOME as well; ``None``:
    ``uid``, ``gid`` and ``groups`` as given.
    """

    name: str | None
    uid: int
    gid: int
    groups: list[int]
    umask: int


class Capabilities(TypedDict):
    """The five sets of capabilities(7) as masks, bit N for capability N."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class Spec(TypedDict):
    """How to start one container or process; ``runtimes.birth.plain()`` returns one with nothing asked for.

    Attributes:
        command: Argument vector; empty proves the set-up and exits 0.
        environment: The whole of it. A command without a slash is searched in its PATH, inside the root.
        cwd: Made if it is missing, as Docker does; checked to be below the root (CVE-2024-21626).
        user: Who runs it.
        namespaces: CLONE_NEW* flags of the namespaces to make.
        join: ``[flag, path]`` of namespaces to enter instead (``/proc/PID/ns/NAME``); with a mount namespace among
            them ``root`` is ``["joined"]``.
        uid_map: ``[inside, outside, count]`` rows of the new user namespace, by newuidmap where needed; ``None``: no
            user namespace is made.
        gid_map: The same for groups.
        time_offsets: ``{"monotonic": seconds, "boottime": seconds}`` in a new time namespace.
        root: ``["bind", tree, recursive]`` (read-only), ``["overlay", lowers, upper, work, target]`` (lowers: list,
            topmost first; ``target``: an empty directory), ``["directory", path]`` (used as it is, writable) or
            ``["joined"]`` (this process's own, or that of the mount namespace that it joins).
        root_readonly: Remount the root read-only when all else is mounted.
        propagation: MS_* flags for "/" in the new mount namespace before all else; MS_REC | MS_PRIVATE as a rule.
        mounts: Operations of ``runtimes.mounts``.
        hostname: ``None``: left as it is.
        domainname: ``None``: left as it is.
        network: Settings of ``eth0``; loopback comes up in every new network namespace.
        sysctls: Name with dots -> value, written to a /proc that was proved to be procfs.
        rlimits: ``[resource, soft, hard]`` (setrlimit(2)).
        cpus: Affinity.
        oom_score_adj: ``None``: inherited.
        capabilities: ``None``: left as they are.
        seccomp: Path of a compiled filter (struct sock_filter, host byte order); ``None``: no filter.
        apparmor: Profile to change to at exec, where the kernel has AppArmor.
        no_new_privileges: prctl(2), PR_SET_NO_NEW_PRIVS.
        born_in_cgroup: A further descriptor is the version 2 group to be born in.
        wait: Go on only after ``release`` (the network is connected meanwhile).
        hold: Everything is set up, then execute only when the FIFO at this path is opened for writing (OCI "create");
            ``None``: execute at once.
        terminal: Make a pseudo-terminal from the instance's own /dev/pts its console; its master is sent back.
        terminal_size: ``[rows, columns]`` or ``None``.
        preserve: That many descriptors from 3 on stay open (LISTEN_FDS); they must be when it is born.
        tie: Die with the parent (PR_SET_PDEATHSIG).
        trace: Tell the time of each step.
    """

    command: list[str]
    environment: dict[str, str]
    cwd: str
    user: User
    namespaces: int
    join: list[list[Any]]
    uid_map: list[list[int]] | None
    gid_map: list[list[int]] | None
    time_offsets: dict[str, int] | None
    root: list[Any]
    root_readonly: bool
    propagation: int
    mounts: list[list[Any]]
    hostname: str | None
    domainname: str | None
    network: Network | None
    sysctls: dict[str, str]
    rlimits: list[list[int]]
    cpus: list[int] | None
    oom_score_adj: int | None
    capabilities: Capabilities | None
    seccomp: str | None
    apparmor: str | None
    no_new_privileges: bool
    born_in_cgroup: bool
    wait: bool
    hold: str | None
    terminal: bool
    terminal_size: list[int] | None
    preserve: int
    tie: bool
    trace: bool
