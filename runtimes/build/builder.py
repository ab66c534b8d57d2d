"""One build: which stages are needed, their steps in order, and the image that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bench.errors import UsageError
from runtimes.build.bases import Bases
from runtimes.build.image import Image, configure
from runtimes.build.instructions import Arg, Containerfile, Copy, Run, Stage, Step, Workdir
from runtimes.build.lines import located
from runtimes.build.parse import parse_trigger
from runtimes.build.steps import Steps, Surroundings
from runtimes.build.variables import PREDEFINED, platform_arguments
from runtimes.build.words import Reading, expand
from runtimes.network import attach
from runtimes.oci.descriptor import CONFIG, MANIFEST, Descriptor, canonical_json
from runtimes.oci.layout import Layout
from runtimes.oci.platform import Platform

_QUIET: Final = (Arg,)
"""Instructions that are no step of their own for who watches."""


def global_arguments(file: Containerfile, given: Mapping[str, str], platform: Platform) -> dict[str, str]:
    """The variables of the global scope: automatic ones, and the ARGs before the first FROM.

    Raises:
        UsageError: a default is malformed.
    """
    values = platform_arguments(platform)
    values |= {name: value for name, value in given.items() if name in values}
    for argument in file.arguments:
        with located(file.name, argument.place.line):
            for name, default in argument.names:
                if name in given:
                    values[name] = given[name]
                elif default is not None:
                    values[name] = expand(default, values, Reading(file.escape))
    return values


class Builder:
    """Builds the stages of ``file``."""

    def __init__(self, file: Containerfile, around: Surroundings, bases: Bases, platform: Platform) -> None:
        self._file = file
        self._around = around
        self._bases = bases
        self._platform = platform
        self._telling = around.telling
        self._built: dict[int, Image] = {}
        self._external: dict[str, Image] = {}
        self._steps = Steps(around, self._find_source)
        self._now: Stage | None = None

    def build(self, target: str) -> Image:
        """Build the stage ``target``, a name or a number, or the last one; and what it needs, and nothing else.

        Raises:
            UsageError: the file asks for something that does not exist; the message begins with file and line.
            ImageError: a step failed.
        """
        stage = self._target(target)
        needed = self._needed(stage)
        self._telling.total = sum(1 + sum(_is_step(step) for step in each.steps) for each in needed)
        try:
            for each in needed:
                self._built[each.number] = self._build(each)
        finally:
            if self._steps.used_bridge:
                attach.retire(str(self._around.state))
        self._warn_about_unused()
        return self._built[stage.number]

    def _target(self, name: str) -> Stage:
        if not name:
            return self._file.stages[-1]
        stage = self._stage(name, len(self._file.stages))
        if stage is None:
            known = ", ".join(stage.title for stage in self._file.stages)
            raise UsageError(f"{self._file.name} has no stage {name[:60]!r}", hint=f"name one of: {known}")
        return stage

    def _stage(self, name: str, before: int) -> Stage | None:
        """The last stage before number ``before`` that is called ``name``, or has that number."""
        for stage in reversed(self._file.stages[:before]):
            if name.lower() == stage.start.name or (name.isdecimal() and int(name) == stage.number):
                return stage
        return None

    def _parent(self, stage: Stage) -> Stage | None:
        """The stage that ``stage`` is FROM."""
        name = self._base_name(stage)
        return None if name.isdecimal() else self._stage(name, stage.number)

    def _base_name(self, stage: Stage) -> str:
        with located(self._file.name, stage.start.place.line):
            name = expand(stage.start.base, self._around.scope.defaults, Reading(self._file.escape))
            if not name:
                raise UsageError(f"FROM {stage.start.base[:60]} names nothing", hint="give its argument a default")
            return name

    def _needed(self, target: Stage) -> list[Stage]:
        wanted: set[int] = set()
        pending = [target]
        while pending:
            stage = pending.pop()
            if stage.number not in wanted:
                wanted.add(stage.number)
                parent = self._parent(stage)
                copied = [self._stage(step.stage, stage.number) for step in stage.steps if isinstance(step, Copy)]
                pending += [each for each in (parent, *copied) if each is not None]
        return [stage for stage in self._file.stages if stage.number in wanted]

    def _build(self, stage: Stage) -> Image:
        self._now = stage
        with located(self._file.name, stage.start.place.line):
            self._telling.begins(stage.start.place.text)
            image, triggers = self._begin(stage)
        for step in triggers:
            with located(self._file.name, stage.start.place.line):
                self._do(image, step)
        for step in stage.steps:
            with located(self._file.name, step.place.line):
                self._do(image, step)
        return image

    def _begin(self, stage: Stage) -> tuple[Image, list[Step]]:
        """The image to begin with, and what its ONBUILDs ask of its children."""
        parent = self._parent(stage)
        name = self._base_name(stage)
        platform = self._stage_platform(stage)
        base = self._built[parent.number] if parent is not None else self._bases.find(name, platform)
        triggers = [parse_trigger(text, self._file.escape, name) for text in base.config.get("OnBuild") or []]
        if triggers:
            self._telling.says(f"{len(triggers)} triggers of {name}")
            self._telling.total += sum(_is_step(step) for step in triggers)
        image = base.child()
        if parent is None:
            image.arguments, image.declared = {}, []
        if platform != Platform.here() and any(isinstance(step, Run) for step in (*triggers, *stage.steps)):
            self._telling.warns(f"stage {stage.title} is for {platform}; its programs may not run on this host")
        return image, triggers

    def _stage_platform(self, stage: Stage) -> Platform:
        if not stage.start.platform:
            return self._platform
        return Platform.parse(expand(stage.start.platform, self._around.scope.defaults, Reading(self._file.escape)))

    def _do(self, image: Image, step: Step) -> None:
        if not _is_step(step):
            configure(image, step, self._around.scope)
            return
        self._telling.begins(step.place.text)
        if isinstance(step, Run):
            self._telling.ends(cached=self._steps.run(image, step))
        elif isinstance(step, Copy):
            self._telling.ends(cached=self._steps.copy(image, step))
        elif isinstance(step, Workdir):
            self._telling.ends(cached=self._steps.make_directory(image, step))
        else:
            configure(image, step, self._around.scope)

    def _find_source(self, name: str) -> Image:
        """What ``COPY --from=name`` copies from."""
        assert self._now is not None
        if "$" in name:
            raise UsageError(f"--from={name[:60]} cannot hold a variable", hint="give FROM the variable, in a stage")
        stage = self._stage(name, self._now.number)
        if stage is not None:
            return self._built[stage.number]
        if self._stage(name, len(self._file.stages)) is not None or name.isdecimal():
            raise UsageError(
                f"there is no stage {name[:60]!r} before this one", hint="a stage copies from earlier ones"
            )
        if name not in self._external:
            self._external[name] = self._bases.find(name, self._platform)
        return self._external[name]

    def _warn_about_unused(self) -> None:
        declared = {name for argument in self._file.arguments for name, _ in argument.names}
        declared |= {name for stage in self._file.stages for step in stage.steps if isinstance(step, Arg)
                     for name, _ in step.names}  # fmt: skip
        for name in self._around.scope.given:
            if name not in declared | PREDEFINED | {"SOURCE_DATE_EPOCH"} | platform_arguments(self._platform).keys():
                self._telling.warns(f"no ARG takes the build argument {name}")


def _is_step(step: Step) -> bool:
    return not isinstance(step, _QUIET)


def store_image(layout: Layout, image: Image, labels: Mapping[str, str]) -> tuple[Descriptor, str]:
    """Store the configuration and manifest of ``image``; return its manifest and its id."""
    config: dict[str, Any] = dict(image.config)
    if labels:
        config["Labels"] = {**(config.get("Labels") or {}), **labels}
    document: dict[str, Any] = {
        "architecture": image.platform.architecture,
        "os": image.platform.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
        "history": image.history,
    }
    optional = {"variant": image.platform.variant, "created": image.created, "author": image.author}
    document |= {key: value for key, value in optional.items() if value}
    stored = layout.add(CONFIG, canonical_json(document))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": stored.to_json(),
        "layers": [layer.descriptor.to_json() for layer in image.layers],
    }
    return layout.add(MANIFEST, canonical_json(manifest)), stored.digest
