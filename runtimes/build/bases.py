"""What a stage begins with: nothing, an image of the store, one that is pulled, or a Debian made here.

``isomark/debian:bookworm`` is made from the archive that the host's own packages come from, so that images can be
built where no registry is reachable. It names the public archive, as Debian's images do; while one of its stages runs
a step, apt uses the host's sources instead, which leave no trace in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.build.image import Image
from runtimes.oci.descriptor import LAYER_GZIP, Descriptor
from runtimes.oci.images import Images, Stored
from runtimes.oci.layer import Layer
from runtimes.oci.platform import Platform

NOTHING: Final = "scratch"
Pull = Callable[[str, Platform], Stored]
Say = Callable[[str], None]

_LAYER_TYPES: Final = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
"""The same bytes under the name that an OCI manifest gives them."""
_TEXTS: Final = ("User", "WorkingDir", "StopSignal")
_LISTS: Final = ("Env", "Cmd", "Entrypoint", "Shell", "OnBuild")
_OBJECTS: Final = ("Labels", "ExposedPorts", "Volumes", "Healthcheck")


class Bases:
    """Finds base images; ``pull`` brings what the store lacks, ``refresh`` asks for everything again."""

    def __init__(self, images: Images, journal: Journal, pull: Pull | None, say: Say, *, refresh: bool) -> None:
        self._images = images
        self._journal = journal
        self._pull = pull
        self._say = say
        self._refresh = refresh

    def find(self, name: str, platform: Platform) -> Image:
        """Return the image ``name`` as a stage begins with it.

        Raises:
            ImageError: there is no such image, or it is damaged.
            UsageError: ``name`` is no reference.
        """
        from runtimes.build import debian_base

        if name == NOTHING:
            return Image(platform)
        own = debian_base.suite_of(name)
        if own is not None:
            stored = debian_base.ensure(self._images, own, self._journal, self._say, refresh=self._refresh)
        else:
            stored = self._stored(name, platform)
        image = image_of(stored, self._images, self._journal)
        image.uses_host_apt = own is not None
        return image

    def _stored(self, name: str, platform: Platform) -> Stored:
        if self._pull is not None and self._refresh:
            return self._pull(name, platform)
        try:
            return self._images.find(name, platform)
        except ImageError:
            if self._pull is None:
                raise
        self._say(f"pulling {name}")
        return self._pull(name, platform)


def image_of(stored: Stored, images: Images, journal: Journal) -> Image:
    """Return ``stored`` as the beginning of a stage.

    Raises:
        ImageError: its configuration is malformed.
    """
    document = stored.config
    config = document.get("config") or {}
    history = document.get("history") or []
    _check(config, history, stored.reference or stored.descriptor.digest)
    created = document.get("created")
    return Image(
        platform=Platform.of(document),
        config={key: value for key, value in config.items() if value is not None},
        layers=[Layer(_renamed(descriptor), diff_id) for descriptor, diff_id in stored.manifest.layers],
        history=list(history),
        created=created if isinstance(created, str) else None,
        author=str(document.get("author") or ""),
        base=lambda: images.tree(stored, journal).path,
    )


def _check(config: object, history: object, what: str) -> None:
    if not isinstance(config, dict) or not isinstance(history, list):
        raise _malformed(what, "config")
    for key, value in config.items():
        if value is None:
            continue
        wrong = (
            (key in _TEXTS and not isinstance(value, str))
            or (key in _LISTS and not _is_texts(value))
            or (key in _OBJECTS and not isinstance(value, dict))
        )
        if wrong:
            raise _malformed(what, key)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)


def _malformed(what: str, key: str) -> ImageError:
    return ImageError(f"the image {what} has a malformed configuration ({key})", hint="choose another base")


def _renamed(descriptor: Descriptor) -> Descriptor:
    media_type = _LAYER_TYPES.get(descriptor.media_type, descriptor.media_type)
    return Descriptor(media_type, descriptor.digest, descriptor.size)
