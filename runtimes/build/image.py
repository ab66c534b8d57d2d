"""The image that a stage is so far, and what the instructions that change no file do to it."""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.errors import UsageError
from runtimes.build.instructions import (
    Arg,
    Cmd,
    Command,
    Entrypoint,
    Env,
    Expose,
    HealthCheck,
    Label,
    Maintainer,
    OnBuild,
    Shell,
    Step,
    StopSignal,
    User,
    Volume,
)
from runtimes.build.signals import checked_signal
from runtimes.build.variables import environment, environment_lines
from runtimes.build.words import Reading, expand, split
from runtimes.oci.layer import Layer
from runtimes.oci.platform import Platform

_DEFAULT_SHELL: Final = ("/bin/sh", "-c")
_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_HEALTH_KEYS: Final = {
    "interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval",
}  # fmt: skip


@dataclass
class Image:
    """An image in the making. ``config`` is what an image configuration has under that key.

    ``base`` makes, or finds, the tree that the first layers unpack to, and is ``None`` for an image from nothing;
    ``uppers`` are the directories of the layers that this build added to it, lowest first.
    """

    platform: Platform
    config: dict[str, Any] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    created: str | None = None
    author: str = ""
    base: Callable[[], Path] | None = None
    uppers: list[Path] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)
    """The names of the ARGs in scope, in their order, with and without a value."""
    has_command: bool = False
    """Whether CMD was given in this stage."""
    uses_host_apt: bool = False
    """Whether it is made from a Debian of our own, whose archive is the host's; see ``bases``."""

    def child(self) -> Image:
        """What a stage FROM this one begins with: all but its triggers."""
        other = copy.copy(self)
        other.config = {key: value for key, value in copy.deepcopy(self.config).items() if key != "OnBuild"}
        other.layers, other.uppers, other.history = [*self.layers], [*self.uppers], [*self.history]
        other.arguments, other.declared = dict(self.arguments), [*self.declared]
        other.has_command = False
        return other

    @property
    def environment(self) -> dict[str, str]:
        """The variables that ENV set, here and in the bases."""
        return environment(self.config.get("Env") or [])

    @property
    def variables(self) -> dict[str, str]:
        """What instructions can refer to: ENV wins over ARG."""
        return {**self.arguments, **self.environment}

    @property
    def working_directory(self) -> str:
        """Absolute."""
        return str(self.config.get("WorkingDir") or "/")

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs a command line."""
        return tuple(self.config.get("Shell") or _DEFAULT_SHELL)

    def lowers(self, empty: Path) -> list[str]:
        """The directories that are its tree, topmost first; unpacks the base if that was not done yet."""
        lowest = self.base() if self.base is not None else empty
        # what the same layer says further down is hidden by it, and overlayfs refuses a directory twice
        uppers = dict.fromkeys(str(path) for path in reversed(self.uppers))
        return [*uppers, str(lowest)]

    def note(self, text: str, *, created: str | None = None, empty: bool = True) -> None:
        """Add a line to the history; without ``created`` it is as old as the image so far."""
        row: dict[str, Any] = {"created_by": text, "comment": "isomark"}
        if (at := created or self.created) is not None:
            row["created"] = at
        if empty:
            row["empty_layer"] = True
        self.history.append(row)

    def add_layer(self, layer: Layer, path: Path, created: str, text: str) -> None:
        """Put a layer that this build made on top."""
        self.layers.append(layer)
        self.uppers.append(path)
        self.created = created
        self.note(text, created=created, empty=False)

    def resolved(self, path: str) -> str:
        """``path`` made absolute by the working directory, and cleaned; a trailing slash stays."""
        joined = posixpath.normpath(posixpath.join("/", self.working_directory, path))
        cleaned = f"/{joined.lstrip('/')}"
        names_directory = path.endswith("/") or posixpath.basename(path) in (".", "..", "")
        return f"{cleaned.rstrip('/')}/" if names_directory else cleaned

    def command_words(self, command: Command) -> list[str]:
        """What is executed for ``command``."""
        return [*self.shell, *command.words] if command.in_shell else list(command.words)


@dataclass(frozen=True)
class Scope:
    """What the build brings along: arguments from the command line and those before the first FROM."""

    escape: str
    given: Mapping[str, str]
    defaults: Mapping[str, str]

    def expand(self, text: str, image: Image) -> str:
        """Replace variables in one word of ``image``'s stage."""
        return expand(text, image.variables, Reading(self.escape))


def configure(image: Image, step: Step, scope: Scope) -> None:
    """Do what ``step`` does to the configuration.

    Raises:
        UsageError: a value is malformed.
    """
    _APPLIERS[type(step)](image, step, scope)


def _arg(image: Image, step: Arg, scope: Scope) -> None:
    shown = []
    for name, default in step.names:
        value = scope.given.get(name)
        if value is None and default is not None:
            value = scope.expand(default, image)
        if value is None:
            value = scope.defaults.get(name)
        if value is not None:
            image.arguments[name] = value
        if name not in image.declared:
            image.declared.append(name)
        shown.append(name if value is None else f"{name}={value}")
    image.note(f"ARG {' '.join(shown)}")


def _env(image: Image, step: Env, scope: Scope) -> None:
    pairs = _expanded(image, step.pairs, scope)
    image.config["Env"] = environment_lines({**image.environment, **dict(pairs)})
    image.note(f"ENV {_shown(pairs)}")


def _label(image: Image, step: Label, scope: Scope) -> None:
    pairs = _expanded(image, step.pairs, scope)
    image.config["Labels"] = {**(image.config.get("Labels") or {}), **dict(pairs)}
    image.note(f"LABEL {_shown(pairs)}")


def _expanded(image: Image, pairs: Sequence[tuple[str, str]], scope: Scope) -> list[tuple[str, str]]:
    """Names and values with variables as they were before this instruction."""
    expanded = [(scope.expand(name, image), scope.expand(value, image)) for name, value in pairs]
    for name, value in expanded:
        if not name:
            raise UsageError(
                "a name is empty once its variables are replaced",
                hint="give its variable a value: ARG NAME=default, or --build-arg",
            )
        if "\0" in name + value:
            raise UsageError(
                f"{name[:40]!r} or its value holds a null byte", hint="take it out: no variable or label can hold one"
            )
    return expanded


def _shown(pairs: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{name}={value}" for name, value in pairs)


def _cmd(image: Image, step: Cmd, _: Scope) -> None:
    image.config["Cmd"] = image.command_words(step.command)
    image.has_command = True
    image.note(f"CMD {_quoted(image.config['Cmd'])}")


def _entrypoint(image: Image, step: Entrypoint, _: Scope) -> None:
    """A command inherited from the base was for the base's entry point."""
    image.config["Entrypoint"] = image.command_words(step.command) if step.command.words else None
    if not image.has_command:
        image.config.pop("Cmd", None)
    image.note(f"ENTRYPOINT {_quoted(image.config['Entrypoint'] or [])}")


def _quoted(words: Sequence[str]) -> str:
    return "[" + " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words) + "]"


def _user(image: Image, step: User, scope: Scope) -> None:
    image.config["User"] = scope.expand(step.name, image)
    image.note(f"USER {image.config['User']}")


def _expose(image: Image, step: Expose, scope: Scope) -> None:
    words = [word for port in step.ports for word in split(port, image.variables, Reading(scope.escape))]
    ports: dict[str, dict[str, str]] = {port: {} for word in words for port in _ports(word)}
    image.config["ExposedPorts"] = {**(image.config.get("ExposedPorts") or {}), **ports}
    image.note(f"EXPOSE {' '.join(ports)}")


def _ports(text: str) -> list[str]:
    found = _PORT.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if found is None or not 0 < first <= last <= 65535:
        raise UsageError(f"{text[:40]!r} is no port", hint="write it like 80, 53/udp or 8000-8010")
    return [f"{port}/{(found[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _volume(image: Image, step: Volume, scope: Scope) -> None:
    paths = [scope.expand(path, image) for path in step.paths]
    if "" in paths:
        raise UsageError(
            "VOLUME has an empty path once its variables are replaced",
            hint="give its variable a value: ARG NAME=default, or --build-arg",
        )
    image.config["Volumes"] = {**(image.config.get("Volumes") or {}), **{path: {} for path in paths}}
    image.note(f"VOLUME [{' '.join(paths)}]")


def _shell(image: Image, step: Shell, _: Scope) -> None:
    image.config["Shell"] = list(step.words)
    image.note(f"SHELL [{' '.join(step.words)}]")


def _stop_signal(image: Image, step: StopSignal, scope: Scope) -> None:
    image.config["StopSignal"] = checked_signal(scope.expand(step.signal, image))
    image.note(f"STOPSIGNAL {image.config['StopSignal']}")


def _health_check(image: Image, step: HealthCheck, _: Scope) -> None:
    if step.command is None:
        image.config["Healthcheck"] = {"Test": ["NONE"]}
    else:
        kind = "CMD-SHELL" if step.command.in_shell else "CMD"
        check: dict[str, Any] = {"Test": [kind, *step.command.words]}
        check |= {_HEALTH_KEYS[name]: value for name, value in step.times if value}
        if step.retries:
            check["Retries"] = step.retries
        image.config["Healthcheck"] = check
    image.note(step.place.text)


def _on_build(image: Image, step: OnBuild, _: Scope) -> None:
    image.config["OnBuild"] = [*(image.config.get("OnBuild") or []), step.trigger]
    image.note(step.place.text)


def _maintainer(image: Image, step: Maintainer, _: Scope) -> None:
    image.author = step.name
    image.note(f"MAINTAINER {step.name}")


_APPLIERS: Final[Mapping[type, Callable[[Image, Any, Scope], None]]] = {
    Arg: _arg,
    Cmd: _cmd,
    Entrypoint: _entrypoint,
    Env: _env,
    Expose: _expose,
    HealthCheck: _health_check,
    Label: _label,
    Maintainer: _maintainer,
    OnBuild: _on_build,
    Shell: _shell,
    StopSignal: _stop_signal,
    User: _user,
    Volume: _volume,
}
