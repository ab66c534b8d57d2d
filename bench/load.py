"""Load from the host onto an instance's network address, by wrk."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from typing import Final

from bench.errors import HostError, InstanceError
from bench.journal import OWNER_VARIABLE

CONNECTIONS: Final = 8
THREADS: Final = 1

_RATE: Final = re.compile(r"^Requests/sec:\s+([\d.]+)$", re.MULTILINE)
_LATENCY: Final = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)
_FAULTS: Final = re.compile(r"^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$", re.MULTILINE)
_SCALE: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def http_round(
    address: str, port: int, seconds: float, owner: str, inside: Callable[[list[str]], list[str]]
) -> dict[str, float]:
    """Request ``http://address:port/`` for ``seconds`` (whole ones, rounded up) and return the figures.

    ``inside`` wraps the command so that it runs in the network namespace where the address is.

    Raises:
        HostError: wrk is not installed.
        InstanceError: a request failed, or nothing was answered.
    """
    duration = max(1, math.ceil(seconds))
    command = inside(
        ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{duration}s", "--latency", f"http://{address}:{port}/"]
    )
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=duration + 30,
            check=False,
            env={**os.environ, OWNER_VARIABLE: owner},
        )
    except FileNotFoundError as error:
        raise HostError(
            f"the program {error.filename} is not installed", hint="script/bootstrap installs it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise InstanceError(f"the load on {address}:{port} did not end within {duration + 30} s") from error
    if ended.returncode != 0:
        said = (ended.stderr or ended.stdout).strip() or f"status {ended.returncode}"
        raise InstanceError(f"the load on {address}:{port} failed: {said}")
    return parse_wrk(ended.stdout)


def parse_wrk(text: str) -> dict[str, float]:
    """Return the figures in wrk's report with ``--latency``.

    Raises:
        InstanceError: it reports errors, or no rate.
    """
    if fault := _FAULTS.search(text):
        raise InstanceError(f"the load met errors: {fault[1].strip()}", tail=text.splitlines())
    rate = _RATE.search(text)
    latency: Mapping[str, float] = {place: float(value) * _SCALE[unit] for place, value, unit in _LATENCY.findall(text)}
    if rate is None or float(rate[1]) == 0 or not {"50", "99"} <= latency.keys():
        raise InstanceError("the load got no answer", tail=text.splitlines())
    return {
        "http_requests_per_second": float(rate[1]),
        "http_latency_p50_seconds": latency["50"],
        "http_latency_p99_seconds": latency["99"],
    }
