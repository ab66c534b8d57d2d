"""Runs a function in a copy of this process, so that what it gives up is not lost for the next test."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def forked(function: Callable[[], Any]) -> Any:
    """What ``function`` returns, by way of JSON; an exception in it fails the test, with its traceback."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = {"returned": function()}
        except BaseException:  # noqa: BLE001 - it is told, and the copy must not go on
            answer = {"raised": traceback.format_exc()}
        os.write(write_fd, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    assert text, f"the copy ended without an answer, with {os.waitstatus_to_exitcode(status)}"
    answer = json.loads(text)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]
