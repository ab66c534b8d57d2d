"""One small process that starts containers by itself, as the engine's monitors do; ``engine_start`` asks it to.

    python -I -S in_process.py SOURCES STATE TREE

For every line on standard input it starts ``/bin/probe`` once and prints when the request came, what the probe said
and how long it took to remove everything.
"""

from __future__ import annotations

import gc
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from runtimes import libc
from runtimes.birth import bear, plain
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import detect
from runtimes.container.resources import Resources
from runtimes.container.root import mounts
from runtimes.detached import make_root
from runtimes.engine.files import remove_tree
from runtimes.security import levels

NAMESPACES = (
    libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)  # fmt: skip
MEMORY_BYTES = 512 << 20


def start(state: str, tree: str, name: str) -> str:
    """One start; what the probe printed."""
    begun = time.monotonic()
    own = f"{state}/scratch/{name}"
    security = levels.level("default", state=state)
    layout = detect()
    birthplace = None
    if layout.unified is not None:  # its limits come with the rest of the group, while the instance is born
        birthplace = os.open(layout.unified.make(name, frozenset()), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    spec = plain()
    spec["command"], spec["environment"], spec["namespaces"] = ["/bin/probe"], {"PATH": "/bin"}, NAMESPACES
    spec["root"] = ["overlay", [tree], f"{own}/upper", f"{own}/work", f"{own}/root"]
    spec["mounts"] = mounts(MEMORY_BYTES, security, f"{own}/scratch")
    spec["hostname"], spec["born_in_cgroup"], spec["tie"] = name, birthplace is not None, True
    spec["capabilities"], spec["seccomp"] = security.capabilities, security.seccomp
    spec["no_new_privileges"] = security.no_new_privileges
    read, write = os.pipe()
    newborn = bear(spec, (read, write, write), birthplace=birthplace)
    for part in ("", "/upper", "/work", "/root", "/scratch"):
        os.mkdir(own + part)
    resources = Resources(
        cpus=1, memory=MEMORY_BYTES, memory_swap=MEMORY_BYTES, pids=512, devices=security.devices
    )  # fmt: skip
    group = Group(layout, name, resources)
    again, entrances = group.entrances()
    root = make_root(spec)
    newborn.provide(entrances, root)
    newborn.await_ready()
    os.close(write)
    output = b""
    while part := os.read(read, 4096):
        output += part
    os.waitpid(newborn.pid, 0)
    newborn.close()
    for fd in {read, birthplace, again, root, *entrances} - {None}:
        os.close(fd)
    group.remove()
    remove_tree(own)
    return f"{begun:.9f} {output.decode().strip()}"


def main() -> None:
    """Serve until standard input ends."""
    _, _, state, tree = sys.argv
    gc.freeze()
    gc.disable()  # a collection in a copy would make it copy every page that holds an object
    for number, _ in enumerate(sys.stdin):
        sys.stdout.write(start(state, tree, f"bench-{os.getpid()}-{number}") + "\n")
        sys.stdout.flush()


main()
