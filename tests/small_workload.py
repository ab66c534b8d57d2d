"""Workloads of a few lines of shell, written for a test: a folder each, as ``bench.workload`` reads them."""

from __future__ import annotations

from pathlib import Path

from bench.model import Workload
from bench.workload import load_workload

TOML = """\
name = "{name}"
title = "{name}"
description = "A payload for a test."
load = "payload"
[[metrics]]
name = "work_per_second"
title = "Work"
unit = "operations/s"
direction = "higher"
definition = "Operations in one round divided by its length; for tests only."
"""


def small_workload(folder: Path, name: str, script: str) -> Workload:
    """The workload ``name`` below ``folder``, whose payload is the shell ``script``."""
    payload = folder / name / "payload/run"
    payload.parent.mkdir(parents=True)
    payload.write_text(f"#!/bin/sh\n{script}\n")
    payload.chmod(0o755)
    (folder / name / "workload.toml").write_text(TOML.format(name=name))
    return load_workload(folder / name)
