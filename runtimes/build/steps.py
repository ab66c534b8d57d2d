"""Doing the instructions that change files: each makes a layer, or finds it in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError, UsageError
from bench.journal import Journal
from runtimes.build import copying, fetching, host_apt, running
from runtimes.build.cache import Cache, Made, Workplace, key_of
from runtimes.build.copying import Extra, Order
from runtimes.build.helper import ask
from runtimes.build.image import Image, Scope
from runtimes.build.instructions import Copy, Run, Workdir
from runtimes.build.telling import Telling
from runtimes.build.words import Reading, expand
from runtimes.container import cgroup
from runtimes.oci.layout import Layout
from runtimes.oci.upper import store_upper

FindSource = Callable[[str], Image]
"""Returns the stage or image that ``COPY --from`` names."""
_DOCUMENT_MODE: Final = 0o644


@dataclass(frozen=True)
class Surroundings:
    """What all steps of a build share. ``newest_seconds`` is the time that no file is later than, if any."""

    state: Path
    context: Path
    ignored: tuple[str, ...]
    layout: Layout
    cache: Cache
    journal: Journal
    scope: Scope
    network: str
    newest_seconds: int | None
    use_cache: bool
    telling: Telling

    def now(self) -> str:
        """When what is made now was made."""
        seconds = self.newest_seconds if self.newest_seconds is not None else int(time.time())
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Fill = Callable[[Workplace], None]


class Steps:
    """Does RUN, COPY, ADD and WORKDIR."""

    def __init__(self, around: Surroundings, find_source: FindSource) -> None:
        self._around = around
        self._find_source = find_source
        self.used_bridge = False

    def run(self, image: Image, step: Run) -> bool:
        """RUN; return whether the cache had it.

        Raises:
            ImageError: the command failed; the message has its last lines.
        """
        around = self._around
        line = running.line_of(step.command, image.shell)
        environment = running.step_environment(image)
        network = running.checked_network(step.network or around.network)
        facts = {
            "do": "run", "on": _chain(image), "words": line.words, "script": line.script, "environment": environment,
            "directory": image.working_directory, "user": image.config.get("User") or "", "network": network,
            "mounts": [[mount.kind, mount.target, sorted(mount.options.items())] for mount in step.mounts],
        }  # fmt: skip

        def fill(place: Workplace) -> None:
            with running.mounted(step.mounts, around.cache, image) as extras:
                extras.environment |= running.proxies(image, around.scope.given)
                if image.uses_host_apt and network != "none":
                    host_apt.provide(extras, place.files)
                self.used_bridge |= network == "bridge"
                name = f"build-{place.root.name.rpartition('-')[2]}"
                request = {
                    "do": "run",
                    **_written(image, around.cache, place),
                    "spec": running.spec_of(line, image, environment, network, extras, place),
                    "targets": running.targets_of(extras),
                    "name": name, "state": str(around.state), "network": network, "files": str(place.files),
                }  # fmt: skip
                with _owned_group(around.journal, name):
                    status = ask(request, around.journal, around.telling.hears)
                self._require_success(status, line.shown)

        made, cached = self._layer(facts, fill)
        arguments = [f"{name}={image.variables[name]}" for name in image.declared if name in image.variables]
        told = f"|{len(arguments)} {' '.join(arguments)} " if arguments else ""
        image.add_layer(made.layer, made.path, made.created, f"RUN {told}{' '.join(line.words)}")
        return cached

    def _require_success(self, status: int, command: str) -> None:
        if status == 0:
            return
        how = f"exited with status {status}" if status > 0 else f"was killed by signal {-status}"
        tail = [line for line in self._around.telling.tail if line.strip()]
        said = "".join(f"\n  | {line}" for line in tail)
        hint = {127: "is the program in the image?", 126: "is it executable?"}.get(status, "see its output above")
        raise ImageError(f"RUN {command[:200]} {how}{said}", hint=hint)

    def copy(self, image: Image, step: Copy) -> bool:
        """COPY and ADD; return whether the cache had it.

        Raises:
            ImageError: a source is missing, or the image has something in the way.
            UsageError: a source leads outside, or an option is malformed.
        """
        around = self._around
        scope = around.scope
        urls, names = self._divide(image, step)
        order = Order(
            sources=tuple(names),
            extras=(),
            target=image.resolved(scope.expand(step.target, image)),
            what=f"the image {step.stage}" if step.stage else "the context",
            ignored=() if step.stage else around.ignored,
            excluded=step.excluded,
            owner=scope.expand(step.owner, image),
            mode=scope.expand(step.mode, image),
            keeps_owner=bool(step.stage),
            unpacks=step.adds,
        )
        source = self._find_source(step.stage) if step.stage else None
        alone = step.links and _is_independent(order)
        with around.cache.workplace(around.journal) as place:
            checksum = scope.expand(step.checksum, image)
            if checksum:
                _require_one_url(urls, order, step)
                digest = checksum
            else:
                order = replace(order, extras=self._extras(image, step, urls, "", place))
                digest = self._survey(order, source, place)
            facts = {
                "do": "copy", "on": None if alone else _chain(image), "digest": digest, "target": order.target,
                "owner": order.owner, "mode": order.mode, "unpacks": order.unpacks,
            }  # fmt: skip

            def fill(place: Workplace) -> None:
                whole = replace(order, extras=self._extras(image, step, urls, checksum, place)) if checksum else order
                where = _written(image, around.cache, place) if not alone else {"place": _paths(place), "lowers": None}
                request = {"do": "copy", **where, "order": whole.to_json(), "source": self._source(source, place)}
                copied = ask(request, around.journal)
                if not checksum and copied != digest:
                    raise ImageError(f"{order.what} changed while it was copied", hint="build again")

            made, cached = self._layer(facts, fill, place)
        flags = "".join(
            f"--{name}={value} " for name, value in (("chown", order.owner), ("chmod", order.mode)) if value
        )
        told = [*names, *urls, *(f"<<{document.name}" for document in step.documents), scope.expand(step.target, image)]
        image.add_layer(
            made.layer, made.path, made.created, f"{'ADD' if step.adds else 'COPY'} {flags}{' '.join(told)}"
        )
        return cached

    def make_directory(self, image: Image, step: Workdir) -> bool:
        """WORKDIR; return whether the cache had it.

        Raises:
            ImageError: something else is there.
        """
        around = self._around
        path = image.resolved(around.scope.expand(step.path, image)).rstrip("/") or "/"
        if "\0" in path:
            raise UsageError("WORKDIR holds a null byte", hint="take it out: no path can hold one")
        image.config["WorkingDir"] = path
        if path == "/":
            image.note("WORKDIR /")
            return True
        user = str(image.config.get("User") or "")
        facts = {"do": "directory", "on": _chain(image), "path": path, "owner": user}

        def fill(place: Workplace) -> None:
            request = {"do": "directory", **_written(image, around.cache, place), "path": path, "owner": user}
            ask(request, around.journal)

        made, cached = self._layer(facts, fill)
        image.add_layer(made.layer, made.path, made.created, f"WORKDIR {path}")
        return cached

    def _layer(self, facts: Mapping[str, Any], fill: Fill, place: Workplace | None = None) -> tuple[Made, bool]:
        """Find the layer that ``facts`` decide, or make it."""
        around = self._around
        key = key_of({**facts, "newest": around.newest_seconds})
        if around.use_cache and (made := around.cache.find(key)) is not None:
            return made, True
        if place is not None:
            return self._make(key, fill, place), False
        with around.cache.workplace(around.journal) as own:
            return self._make(key, fill, own), False

    def _make(self, key: str, fill: Fill, place: Workplace) -> Made:
        around = self._around
        fill(place)
        layer, counts = store_upper(around.layout, place.upper, newest_seconds=around.newest_seconds)
        if counts.sockets:
            around.telling.says(f"{counts.sockets} sockets were left out of the layer")
        return around.cache.publish(key, place, layer, around.now())

    def _divide(self, image: Image, step: Copy) -> tuple[list[str], list[str]]:
        """The sources to download, and those to find in the tree."""
        sources = [self._around.scope.expand(source, image) for source in step.sources]
        urls = [source for source in sources if step.adds and fetching.is_url(source)]
        if not step.adds and (wrong := next((name for name in sources if name.startswith(fetching.SCHEMES)), None)):
            raise UsageError(f"COPY does not download {wrong[:100]}", hint="ADD does")
        return urls, [source for source in sources if source not in urls]

    def _extras(
        self, image: Image, step: Copy, urls: Sequence[str], checksum: str, place: Workplace
    ) -> tuple[Extra, ...]:
        """Write here-documents and downloads where the worker finds them."""
        extras: list[Extra] = []
        for url in urls:
            name = fetching.file_name(url)
            if not name and step.target.endswith("/"):
                raise UsageError(f"{url[:100]} does not say what its file is called", hint="name it in the target")
            path = place.files / f"download-{len(extras)}"
            fetching.download(url, path, checksum)
            extras.append(Extra(str(path), name))
        for document in step.documents:
            path = place.files / f"document-{len(extras)}"
            text = document.text
            if document.expands:
                text = expand(text, image.variables, Reading("\\", quotes_mean_nothing=True))
            path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
            path.chmod(_DOCUMENT_MODE)
            if "/" in document.name:
                raise UsageError(f"a here-document cannot be called {document.name!r}", hint="a file has a plain name")
            extras.append(Extra(str(path), document.name))
        return tuple(extras)

    def _survey(self, order: Order, source: Image | None, place: Workplace) -> str:
        if source is None:
            return copying.survey(order, str(self._around.context))
        lowers = source.lowers(self._around.cache.empty)
        if len(lowers) == 1:
            return copying.survey(order, lowers[0])
        request = {"do": "survey", "source": {"lowers": lowers, "at": str(place.source)}, "order": order.to_json()}
        digest: str = ask(request, self._around.journal)
        return digest

    def _source(self, source: Image | None, place: Workplace) -> dict[str, Any]:
        if source is None:
            return {"at": str(self._around.context)}
        lowers = source.lowers(self._around.cache.empty)
        return {"at": lowers[0]} if len(lowers) == 1 else {"lowers": lowers, "at": str(place.source)}


@contextmanager
def _owned_group(journal: Journal, name: str) -> Iterator[None]:
    """Own the cgroup that the worker makes and removes, and remove it where the worker could not."""
    entry = journal.own("cgroup", name=name)
    try:
        yield
    finally:
        cgroup.remove(entry.what)
        journal.gone(entry)


def _chain(image: Image) -> list[str]:
    """What decides an image's tree."""
    return [layer.diff_id for layer in image.layers]


def _written(image: Image, cache: Cache, place: Workplace) -> dict[str, Any]:
    return {"place": _paths(place), "lowers": image.lowers(cache.empty)}


def _paths(place: Workplace) -> dict[str, str]:
    return {"upper": str(place.upper), "work": str(place.work), "merged": str(place.merged)}


def _is_independent(order: Order) -> bool:
    """Whether a copy can be made without the image below it: nothing above the target can be in question.

    A target deeper down would bring directories along that hide the looks of the image's own.
    """
    names = order.owner.replace(":", "").isdecimal() or not order.owner
    return names and order.target.endswith("/") and order.target.count("/") == 2


def _require_one_url(urls: Sequence[str], order: Order, step: Copy) -> None:
    if len(urls) != 1 or order.sources or step.documents:
        raise UsageError("--checksum is for one URL and no other source", hint="use an ADD for each")
