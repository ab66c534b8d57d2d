"""Workloads: one folder each, holding ``workload.toml`` and ``payload/``. Adding one is adding a folder.

A workload that does something else with a payload that is there already has none, and names its owner:
``payload = "http"``. It starts that one's, with that one's packages and port.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bench import metrics, toml
from bench.errors import SuiteError
from bench.model import Direction, Load, Metric, Workload
from bench.names import require_known

BUILT_IN = Path(__file__).parent / "workloads"
PATH_VARIABLE = "ISOMARK_WORKLOADS"
"""Colon-separated folders with further workloads."""

_SERVING = {"http", "minimum"}
"""Loads that ask the payload something over the network."""

_TAKEN = frozenset(metric.name for metric in metrics.BUILT_IN)
"""What isomark measures itself: a payload that reported it would forge it."""

UNIT_SUFFIXES = ("_seconds", "_bytes", "_ratio", "_per_second")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}$")]


def _own_with_unit(name: str) -> str:
    if not name.endswith(UNIT_SUFFIXES):
        raise ValueError(f"a metric's name ends in its unit: {', '.join(UNIT_SUFFIXES)}")
    if name in _TAKEN:
        raise ValueError(f"{name} is a metric that isomark measures itself")
    return name


class _MetricFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$"), AfterValidator(_own_with_unit)]
    title: str = Field(min_length=1)
    unit: str = Field(min_length=1)
    direction: Direction
    definition: str = Field(min_length=20)


class _WorkloadFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    title: str = Field(min_length=1)
    description: str
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$")], ...] = ()
    load: Load
    payload: Name | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    instances: Annotated[int, Field(ge=2, le=1000)] | None = None
    metrics: tuple[_MetricFile, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> _WorkloadFile:
        if self.load in _SERVING and self.port is None and self.payload is None:
            raise ValueError(f"load = {self.load!r} needs a port")
        if self.payload is not None and (self.packages or self.port is not None):
            raise ValueError("packages and port are those of the workload whose payload it starts")
        if self.load in {"payload", "http"} and not self.metrics:
            raise ValueError(f"load = {self.load!r} needs at least one [[metrics]]")
        if (self.load == "density") != (self.instances is not None):
            raise ValueError("load = 'density' needs the number of instances, and no other has one")
        return self


def load_workload(folder: Path) -> Workload:
    """Read one workload's folder.

    Raises:
        SuiteError: ``workload.toml`` is malformed, or the payload is missing or cannot be executed.
        UsageError: there is no workload of the name whose payload it starts.
    """
    path = folder / "workload.toml"
    file = toml.load(path, _WorkloadFile)
    if file.name != folder.name:
        raise SuiteError(f"{path} is malformed", [f"name: {file.name!r} is not the folder's name {folder.name!r}"])
    loaded = Workload(
        name=file.name,
        title=file.title,
        description=file.description,
        packages=file.packages,
        load=file.load,
        metrics=tuple(Metric(**metric.model_dump()) for metric in file.metrics),
        folder=folder,
        port=file.port,
        instances=file.instances,
    )
    if file.payload is not None:
        return _with_payload_of(loaded, file.payload)
    if not os.access(folder / "payload" / "run", os.X_OK):
        raise SuiteError(f"{folder} is malformed", ["payload/run is missing or not executable"])
    return loaded


def _with_payload_of(borrower: Workload, name: str) -> Workload:
    require_known("workload", name, _folders())
    folder = _folders()[name]
    if toml.load(folder / "workload.toml", _WorkloadFile).payload is not None:
        raise SuiteError(f"{borrower.folder} is malformed", [f"payload: {name} has none of its own"])
    owner = load_workload(folder)
    if borrower.load in _SERVING and owner.port is None:
        raise SuiteError(f"{borrower.folder} is malformed", [f"payload: {name} has no port"])
    return replace(borrower, folder=owner.folder, packages=owner.packages, port=owner.port)


@cache
def _folders() -> dict[str, Path]:
    further = [Path(part) for part in os.environ.get(PATH_VARIABLE, "").split(":") if part]
    return {path.parent.name: path.parent for root in (BUILT_IN, *further) for path in root.glob("*/workload.toml")}


def workload_names() -> list[str]:
    """The names of all workloads that can be found, sorted."""
    return sorted(_folders())


def find_workload(name: str) -> Workload:
    """Load the workload called ``name``.

    Raises:
        UsageError: there is none of that name, or its folder is malformed.
    """
    require_known("workload", name, _folders())
    return load_workload(_folders()[name])
