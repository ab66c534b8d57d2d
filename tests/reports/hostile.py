"""The synthetic result with something nasty in every string that a payload, an image or a suite could have written."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench import metrics
from bench.result import Result

NASTY = (
    "</style></pre><script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
    "<svg/onload=x>{{ 7*7 }}{% raw %}&amp;|`**_[x](http://evil.example)\r\n=1+1\x00\x1b[31m\x9b\u202e\ud800￾$\\frac{$"
)
KEPT = {
    "native",
    "boot",
    "process",
    "container",
    "vm",
    "higher",
    "lower",
    "spawned",
    "kernel",
    "init",
    "ready",
    "exited",
    "none",
    "http",
    "lifecycle",
    "density",
    "minimum",
    "first answer",
    *(metric.name for metric in metrics.BUILT_IN),
}


def hostile_result() -> Result:
    """Return the result, spoiled."""
    return _spoiled_result(synthetic_result())


def hostile_servers() -> Result:
    """Return the result with many virtual servers, spoiled: names of steps, drivers and all."""
    return _spoiled_result(servers_result())


def _spoiled_result(result: Result) -> Result:
    return dataclasses.replace(_spoiled(result), folder=result.folder)


def _spoiled(value: Any) -> Any:
    match value:
        case enum.Enum() | Path():
            return value
        case str():
            return value if value in KEPT else value + NASTY
        case tuple():
            return tuple(map(_spoiled, value))
        case Mapping():
            return {_spoiled(key): _spoiled(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value):
        return type(value)(**{field.name: _spoiled(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return value
