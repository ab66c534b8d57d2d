"""``isomark image build`` without its command line: asked by arguments, told by a callback."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench.errors import UsageError
from bench.journal import Journal
from runtimes.build.bases import Bases, Pull
from runtimes.build.builder import Builder, global_arguments, store_image
from runtimes.build.cache import Cache
from runtimes.build.ignore import Ignore, find_ignore
from runtimes.build.image import Scope
from runtimes.build.instructions import Containerfile
from runtimes.build.lines import MAX_BYTES
from runtimes.build.parse import parse
from runtimes.build.running import checked_network
from runtimes.build.steps import Surroundings
from runtimes.build.telling import Say, Telling
from runtimes.oci.images import Images
from runtimes.oci.platform import Platform
from runtimes.oci.reference import Reference

FILES: Final = ("Containerfile", "Dockerfile")
"""What is looked for in the context, in this order."""
EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"
_MAX_SECONDS: Final = 253402300799
"""The last second of the year 9999."""


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built.

    ``text`` stands for the file's content where it does not come from a file. ``timestamp`` (seconds since 1970) is
    the time of the image, and no file in it is later; ``None`` means SOURCE_DATE_EPOCH, or else today.
    ``refresh`` asks for base images anew.
    """

    context: Path
    file: Path | None = None
    text: str | None = None
    tags: Sequence[str] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    use_cache: bool = True
    network: str = "bridge"
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    timestamp: int | None = None
    refresh: bool = False


@dataclass(frozen=True)
class Built:
    """The image: the digest of its manifest, its id, its names, and how large its layers are as stored."""

    digest: str
    id: str
    names: tuple[str, ...]
    compressed_bytes: int


def build(request: BuildRequest, state: Path, journal: Journal, say: Say, pull: Pull | None = None) -> Built:
    """Build an image from a Containerfile into the store below ``state``.

    ``say`` gets a line at a time; ``pull`` brings base images that the store lacks.

    Raises:
        UsageError: the Containerfile or the request is wrong.
        ImageError: a step failed, or an image cannot be had.
        HostError: the host refuses something.
    """
    request = replace(request, context=request.context.absolute())
    if any("\0" in name + value for name, value in (*request.arguments.items(), *request.labels.items())):
        raise UsageError("a build argument or label holds a null byte", hint="leave it out")
    names = [_name(tag) for tag in request.tags]
    file = _read(request)
    images = Images(state)
    telling = Telling(say)
    for line, text in file.warnings:
        telling.warns(f"{file.name}:{line}: {text}")
    platform = Platform.parse(request.platform) if request.platform else Platform.here()
    scope = Scope(file.escape, request.arguments, global_arguments(file, request.arguments, platform))
    ignored = find_ignore(request.context, request.file)
    Ignore(ignored)
    with Cache(state, images.layout) as cache:
        around = Surroundings(
            state=state, context=request.context, ignored=ignored, layout=images.layout, cache=cache, journal=journal,
            scope=scope, network=checked_network(request.network), newest_seconds=_newest_seconds(request),
            use_cache=request.use_cache, telling=telling,
        )  # fmt: skip
        bases = Bases(images, journal, pull, telling.says, refresh=request.refresh)
        image = Builder(file, around, bases, platform).build(request.target)
        if around.newest_seconds is not None:
            image.created = around.now()
        descriptor, identity = store_image(images.layout, image, request.labels)
        for name in names:
            images.layout.tag(name, descriptor)
    size = sum(layer.descriptor.size for layer in image.layers)
    return Built(descriptor.digest, identity, tuple(names), size)


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, str]:
    """``NAME=value`` of a repeated option; a bare ``NAME`` takes its value from the environment, if it is there.

    Raises:
        UsageError: a name is missing.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"{option} {text[:40]!r} has no name", hint=f"write {option} NAME=value")
        if equals:
            values[name] = value
        elif name in os.environ:
            values[name] = os.environ[name]
    return values


def _name(tag: str) -> str:
    reference = Reference.parse(tag)
    if reference.digest is not None:
        raise UsageError(f"{tag[:100]} names a digest, which nobody knows beforehand", hint="write -t NAME:TAG")
    return reference.familiar


def _read(request: BuildRequest) -> Containerfile:
    if not request.context.is_dir():
        raise UsageError(f"the context {request.context} is no directory", hint="name the directory to COPY from")
    if request.text is not None:
        return parse(request.text, str(request.file or FILES[0]))
    path = request.file or _found(request.context)
    try:
        # not blocking: it could be a pipe
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path} is no regular file", hint="name the Containerfile with -f")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="name the Containerfile with -f") from error
    try:
        return parse(data.decode(), path.name if request.file is None else str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8", hint="is it a Containerfile?") from error


def _found(context: Path) -> Path:
    for name in FILES:
        if (context / name).exists():
            return context / name
    raise UsageError(f"{context} has no {' and no '.join(FILES)}", hint="name one with -f")


def _newest_seconds(request: BuildRequest) -> int | None:
    if request.timestamp is not None:
        return _checked_seconds(str(request.timestamp))
    text = request.arguments.get(EPOCH_VARIABLE) or os.environ.get(EPOCH_VARIABLE)
    return _checked_seconds(text) if text else None


def _checked_seconds(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_SECONDS:
        raise UsageError(f"{text[:40]!r} is no time", hint="give seconds since 1970, such as 1700000000")
    return int(text)
