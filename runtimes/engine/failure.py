"""Why a container or a command in it did not start, and what to exit with then, as ``docker run`` does."""

from __future__ import annotations

import errno

from bench.errors import InstanceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bench.errors import IsomarkError
    from runtimes.birth import Newborn

NOT_FOUND = 127
NOT_EXECUTABLE = 126
ENGINE_FAILED = 125


class StartFailed(InstanceError):
    """A container or a command in it did not start; ``code`` is what to exit with."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def failure_code(newborn: Newborn | None, error: IsomarkError) -> int:
    """126 or 127 if it was the command that could not be executed, else 125."""
    failed = newborn.failed if newborn is not None else None
    if failed is None or not failed.step.startswith("run ") or not isinstance(error, InstanceError):
        return ENGINE_FAILED
    return NOT_FOUND if failed.errno == errno.ENOENT else NOT_EXECUTABLE
