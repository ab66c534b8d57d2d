"""Netlink messages by hand (netlink(7)): a library costs 0.3 s of import, more than ten container starts.

Only what the bridge, its veth pairs and the nftables maps need: requests with acknowledgement, several in one system
call, and dumps. Errors carry the kernel's own explanation (extended ACK).
"""

from __future__ import annotations

import _socket
import os
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_U32 = Struct("=I")
_I32 = Struct("=i")
_RECEIVE_BYTES = 1 << 17
_PATIENCE_SECONDS = 10.0


class Message:
    """One request: its type, its flags besides REQUEST, its family's header with attributes."""

    __slots__ = ("acknowledged", "body", "flags", "kind")

    def __init__(self, kind: int, flags: int, body: bytes, *, acknowledged: bool = True) -> None:
        self.kind = kind
        self.flags = flags
        self.body = body
        self.acknowledged = acknowledged


class Netlink:
    """A netlink socket of the network namespace it was opened in; a context manager."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, protocol: int) -> None:
        """Open a socket of ``protocol`` (NETLINK_ROUTE, NETLINK_NETFILTER)."""
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.settimeout(_PATIENCE_SECONDS)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, *messages: Message) -> None:
        """Send ``messages`` in one call, in this order, and wait until the kernel acknowledged those that ask for it.

        Raises:
            OSError: the first that failed, with the kernel's explanation; later ones may have been carried out.
        """
        first, awaited, packed = self._sequence + 1, set(), []
        for message in messages:
            self._sequence += 1
            flags = message.flags | NLM_F_REQUEST
            if message.acknowledged:
                flags |= NLM_F_ACK
                awaited.add(self._sequence)
            size = _HEADER.size + len(message.body)
            packed.append(_HEADER.pack(size, message.kind, flags, self._sequence, 0) + message.body)
        self._socket.send(b"".join(packed))
        failed: OSError | None = None
        while awaited:
            for kind, flags, sequence, payload in self._receive():
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                awaited.discard(sequence)
                failed = failed or _error(flags, payload)
        if failed is not None:
            raise failed

    def dump(self, kind: int, body: bytes, flags: int = NLM_F_DUMP) -> Iterator[bytes]:
        """Every answer to a question (header of the family, attributes); one answer without ``flags``.

        Raises:
            OSError: the kernel refused.
        """
        self._sequence += 1
        size = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(size, kind, NLM_F_REQUEST | flags, self._sequence, 0) + body)
        while True:
            for answer, answer_flags, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    if (failed := _error(answer_flags, payload)) is not None:
                        raise failed
                    return
                yield payload
                if not flags & NLM_F_DUMP:
                    return

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES)
        at = 0
        while at + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            yield kind, flags, sequence, data[at + _HEADER.size : at + size]
            at += size + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def u32(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in host byte order."""
    return attribute(kind, _U32.pack(value))


def text(kind: int, value: str) -> bytes:
    """An attribute of text."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``at`` on, by type; the last of a kind wins."""
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _NLA_TYPE_MASK] = data[at + _ATTRIBUTE.size : at + size]
        at += size + 3 & ~3
    return found


def read_text(value: bytes) -> str:
    """A text attribute's value; bytes that are no text stay distinct."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def read_u32(value: bytes) -> int:
    """The value of a 32-bit attribute."""
    number: int = _U32.unpack_from(value)[0]
    return number


def _error(flags: int, payload: bytes) -> OSError | None:
    """The failure that an NLMSG_ERROR tells; ``None`` for an acknowledgement."""
    (negative,) = _I32.unpack_from(payload)
    if negative == 0:
        return None
    reason = os.strerror(-negative)
    at = _I32.size + _HEADER.size
    if not flags & _NLM_F_CAPPED:  # the request comes back after its header
        at += (_HEADER.unpack_from(payload, _I32.size)[0] - _HEADER.size + 3) & ~3
    if flags & _NLM_F_ACK_TLVS and (said := attributes(payload, at).get(_NLMSGERR_ATTR_MSG)):
        reason = f"{reason} ({read_text(said)})"
    return OSError(-negative, reason)
