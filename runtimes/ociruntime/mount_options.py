"""The options of a mount as flags of mount(2), attributes of mount_setattr(2) and data for the file system.

The names are those of runtime-spec 1.2, config.md, "Linux mount options".
"""

from __future__ import annotations

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

# linux/mount.h
MS_REMOUNT: Final = 32
MS_UNBINDABLE: Final = 1 << 17
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
ATTR_ATIME: Final = 0x70
ATTR_NOATIME: Final = 0x10
ATTR_STRICTATIME: Final = 0x20
ATTR_NODIRATIME: Final = 0x80
ATTR_NOSYMFOLLOW: Final = 0x20_0000

FLAGS: Final[Mapping[str, tuple[bool, int]]] = {
    "acl": (True, 1 << 16),
    "async": (False, 16),
    "atime": (False, 1024),
    "bind": (True, libc.MS_BIND),
    "defaults": (True, 0),
    "dev": (False, libc.MS_NODEV),
    "diratime": (False, 2048),
    "dirsync": (True, 128),
    "exec": (False, libc.MS_NOEXEC),
    "iversion": (True, 1 << 23),
    "lazytime": (True, 1 << 25),
    "loud": (False, 1 << 15),
    "mand": (True, 64),
    "noacl": (False, 1 << 16),
    "noatime": (True, 1024),
    "nodev": (True, libc.MS_NODEV),
    "nodiratime": (True, 2048),
    "noexec": (True, libc.MS_NOEXEC),
    "noiversion": (False, 1 << 23),
    "nolazytime": (False, 1 << 25),
    "nomand": (False, 64),
    "norelatime": (False, 1 << 21),
    "nostrictatime": (False, libc.MS_STRICTATIME),
    "nosuid": (True, libc.MS_NOSUID),
    "nosymfollow": (True, 256),
    "rbind": (True, libc.MS_BIND | libc.MS_REC),
    "relatime": (True, 1 << 21),
    "remount": (True, MS_REMOUNT),
    "ro": (True, libc.MS_RDONLY),
    "rw": (False, libc.MS_RDONLY),
    "silent": (True, 1 << 15),
    "strictatime": (True, libc.MS_STRICTATIME),
    "suid": (False, libc.MS_NOSUID),
    "symfollow": (False, 256),
    "sync": (True, 16),
}
"""Name -> whether it sets or clears, and which flag of mount(2)."""

PROPAGATIONS: Final[Mapping[str, int]] = {
    "private": libc.MS_PRIVATE,
    "rprivate": libc.MS_PRIVATE | libc.MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | libc.MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | libc.MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | libc.MS_REC,
}

RECURSIVE: Final[Mapping[str, tuple[int, int]]] = {
    "rro": (libc.MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, libc.MOUNT_ATTR_RDONLY),
    "rnosuid": (libc.MOUNT_ATTR_NOSUID, 0),
    "rsuid": (0, libc.MOUNT_ATTR_NOSUID),
    "rnodev": (libc.MOUNT_ATTR_NODEV, 0),
    "rdev": (0, libc.MOUNT_ATTR_NODEV),
    "rnoexec": (libc.MOUNT_ATTR_NOEXEC, 0),
    "rexec": (0, libc.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (ATTR_NODIRATIME, 0),
    "rdiratime": (0, ATTR_NODIRATIME),
    "rrelatime": (0, ATTR_ATIME),
    "rnorelatime": (ATTR_STRICTATIME, ATTR_ATIME),
    "rnoatime": (ATTR_NOATIME, ATTR_ATIME),
    "ratime": (0, ATTR_ATIME),
    "rstrictatime": (ATTR_STRICTATIME, ATTR_ATIME),
    "rnostrictatime": (0, ATTR_ATIME),
    "rnosymfollow": (ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, ATTR_NOSYMFOLLOW),
}
"""Name -> attributes to set and to clear on the whole tree (mount_setattr(2), AT_RECURSIVE)."""

EXTENSIONS: Final = ("tmpcopyup",)
IDMAPPED: Final = ("idmap", "ridmap")
"""Known and refused: the attribute needs a user namespace per mount."""

_ATTRIBUTES: Final = (
    (libc.MS_RDONLY, libc.MOUNT_ATTR_RDONLY, 0),
    (libc.MS_NOSUID, libc.MOUNT_ATTR_NOSUID, 0),
    (libc.MS_NODEV, libc.MOUNT_ATTR_NODEV, 0),
    (libc.MS_NOEXEC, libc.MOUNT_ATTR_NOEXEC, 0),
    (256, ATTR_NOSYMFOLLOW, 0),
    (2048, ATTR_NODIRATIME, 0),
    (1024, ATTR_NOATIME, ATTR_ATIME),
    (libc.MS_STRICTATIME, ATTR_STRICTATIME, ATTR_ATIME),
    (1 << 21, 0, ATTR_ATIME),
)
"""Flag of mount(2) -> attribute to set, and what must be cleared with it (mount_setattr(2), "access-time")."""


class MountOptions:
    """What a list of options asks for.

    Attributes:
        flags: For mount(2).
        lifted: Attributes that an option names as unwanted (``exec``), to be cleared on a bind mount. ``rw`` is not
            among them: engines always say it, and it must not lift the read-only state of what is bound.
        propagation: Each a further mount(2).
        recursive: Attributes to set and to clear on the whole tree.
        data: For the file system, comma separated.
        copy_up: Fill the tmpfs with what it covers.
    """

    __slots__ = ("copy_up", "data", "flags", "lifted", "propagation", "recursive")

    def __init__(self) -> None:
        self.flags = 0
        self.lifted = 0
        self.propagation: list[int] = []
        self.recursive = (0, 0)
        self.data = ""
        self.copy_up = False

    def attributes(self) -> tuple[int, int]:
        """What mount_setattr(2) must set and clear for ``flags`` to hold on a bind mount."""
        wanted = cleared = 0
        for flag, attribute, exclusive in _ATTRIBUTES:
            if self.flags & flag:
                wanted |= attribute
                cleared |= exclusive
        return wanted, cleared | self.lifted


def parse(options: Iterable[str]) -> MountOptions:
    """Read a list of options; a later one overrides an earlier one.

    Raises:
        ValueError: an option is known and not supported.
    """
    parsed = MountOptions()
    data = []
    for option in options:
        if option in FLAGS:
            _set_flag(parsed, *FLAGS[option])
        elif option in PROPAGATIONS:
            parsed.propagation.append(PROPAGATIONS[option])
        elif option in RECURSIVE:
            wanted, unwanted = RECURSIVE[option]
            before, cleared = parsed.recursive
            parsed.recursive = (before & ~unwanted | wanted, cleared & ~wanted | unwanted)
        elif option == "tmpcopyup":
            parsed.copy_up = True
        elif option in IDMAPPED:
            raise ValueError(f"asks for {option!r}: id-mapped mounts are not supported")
        elif option:
            data.append(option)
    parsed.data = ",".join(data)
    return parsed


def _set_flag(parsed: MountOptions, sets: bool, flag: int) -> None:
    attribute = next((each for known, each, _ in _ATTRIBUTES if known == flag), 0)
    if sets:
        parsed.flags |= flag
        parsed.lifted &= ~attribute
    else:
        parsed.flags &= ~flag
        if attribute in (libc.MOUNT_ATTR_NOSUID, libc.MOUNT_ATTR_NODEV, libc.MOUNT_ATTR_NOEXEC, ATTR_NOSYMFOLLOW):
            parsed.lifted |= attribute
