"""Every error isomark raises on purpose.

    IsomarkError                what went wrong, and what would mend it
    ├── UsageError              asked wrongly: the CLI exits 2
    │   ├── SuiteError          a suite or workload file with every fault listed
    │   └── OptionsError        options that a driver cannot take, by their keys
    ├── HostError               the host refused an operation isomark needs
    ├── DriverUnavailable       this driver cannot run here, and what would help
    ├── ImageError              an image could not be built, read or trusted
    ├── InstanceError           an instance did not start or did not live
    │   ├── ConsoleTimeout      it stayed silent longer than allowed
    │   ├── ConsoleClosed       it ended before it said what was expected
    │   └── ConsoleFlood        it printed more than any payload should
    └── StoreError              a result folder could not be read or written

Only the command line prints them and exits.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class IsomarkError(Exception):
    """Something failed; ``message`` says what, ``hint`` what would mend it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IsomarkError):
    """The request itself is wrong: an unknown name, a bad option, a bad file."""


class SuiteError(UsageError):
    """A suite or workload file is malformed; ``faults`` has one entry for every fault."""

    def __init__(self, message: str, faults: Sequence[str], *, hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  {fault}" for fault in faults)]), hint=hint)
        self.faults = tuple(faults)


class OptionsError(UsageError):
    """Options of a driver are wrong; ``faults`` has the key and the reason of each."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {reason}" for key, reason in faults))
        self.faults = tuple(faults)


class HostError(IsomarkError):
    """The host refused an operation that isomark needs (permission, space, a missing program)."""


class DriverUnavailable(IsomarkError):
    """This driver cannot start instances on this host."""


class ImageError(IsomarkError):
    """An image could not be built, read or trusted."""


class InstanceError(IsomarkError):
    """An instance did not start or did not live; ``tail`` holds its last console lines."""

    def __init__(self, message: str, *, hint: str = "", tail: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.tail = tuple(tail)


class ConsoleTimeout(InstanceError):
    """The instance stayed silent longer than allowed."""


class ConsoleClosed(InstanceError):
    """The instance ended, or closed its console, before it said what was expected."""


class ConsoleFlood(InstanceError):
    """The instance printed more than any payload should."""


class StoreError(IsomarkError):
    """A result folder could not be read or written."""
