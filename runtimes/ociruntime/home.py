"""HOME of a process whose environment has none, from the root's /etc/passwd, as runc sets it."""

from __future__ import annotations

import os
import stat

from runtimes import libc
from runtimes.mounts import FOLLOWING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

NOWHERE: Final = "/"
MAX_BYTES: Final = 1 << 20


def home_of(root: int, uid: int) -> str:
    """The home directory of ``uid`` below the root's descriptor.

    The file is the image's and may be anything: what is no readable regular file of sane size tells nothing.
    """
    try:
        fd = libc.openat2(root, "etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, FOLLOWING)
    except OSError:
        return NOWHERE
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            return NOWHERE
        text = os.read(fd, MAX_BYTES)
    except OSError:
        return NOWHERE
    finally:
        os.close(fd)
    wanted = str(uid).encode()
    for line in text.split(b"\n"):
        row = line.strip().split(b":")
        if len(row) >= 6 and row[2] == wanted:
            return os.fsdecode(row[5]) or NOWHERE
    return NOWHERE
