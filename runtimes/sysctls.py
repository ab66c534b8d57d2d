"""Which namespace a kernel setting belongs to; any other setting is the host's, and no container's to change."""

from __future__ import annotations

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_IPC: Final = frozenset((
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
    "kernel.shmmni", "kernel.shm_rmid_forced",
))  # fmt: skip
_SWAP: Final = {ord("."): "/", ord("/"): "."}


def namespace_of(name: str) -> tuple[str, int]:
    """The kind of namespace as OCI names it, and its CLONE_NEW flag.

    The first separator of ``name``, dot or slash, is the one that separates (sysctl(8)).

    Raises:
        ValueError: it is no sysctl, or the host's; the text completes a sentence that begins with its name.
    """
    dot, slash = name.find("."), name.find("/")
    slashes = slash != -1 and (dot == -1 or slash < dot)
    dotted = name.translate(_SWAP) if slashes else name
    first = dotted.split(".")[0]
    if "\0" in name or any(part in ("", ".", "..") for part in dotted.translate(_SWAP).split("/")):
        raise ValueError("is no sysctl")
    if dotted in _IPC or dotted.startswith("fs.mqueue."):
        return "ipc", libc.CLONE_NEWIPC
    if first == "net":
        return "network", libc.CLONE_NEWNET
    if dotted == "kernel.domainname":
        return "uts", libc.CLONE_NEWUTS
    if dotted == "kernel.hostname":
        raise ValueError("must be set by the property hostname")
    if first == "user":
        return "user", libc.CLONE_NEWUSER
    raise ValueError("belongs to no namespace and would change the host")
