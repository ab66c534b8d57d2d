"""What the kernel does with a seccomp filter: enough of a classic BPF machine to ask it about any call.

Every opcode it does not know fails a test, and so does a jump past the end: the kernel would refuse the filter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 0x40000000
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0


def decide(code: bytes, number: int, arguments: Sequence[int] = (), architecture: int = X86_64) -> int:
    """What the filter returns for system call ``number`` (struct seccomp_data)."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    program = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        op, if_true, if_false, k = program[at]
        at += 1
        match op:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x25:
                at += if_true if accumulator > k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x45:
                at += if_true if accumulator & k else if_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"opcode {op:#x} at {at - 1}")
