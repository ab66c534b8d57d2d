"""What is printed of images: tables on terminals, plain columns in pipes, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import ImageError, UsageError
from bench.units import format_bytes
from runtimes.oci.collect import Collected
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.images import Images, Stored
from runtimes.oci.indexes import index_entries
from runtimes.oci.platform import Platform
from runtimes.oci.reference import Reference
from runtimes.oci.text import printable
from runtimes.oci.trees import find_tree

if TYPE_CHECKING:
    from runtimes.build.cache import Pruned
    from runtimes.oci.session import Session

_SHORT_ID = 12
_SHORT_TEXT = 60
_GAP = "   "


def print_images(images: Images, form: str, *, full: bool, quiet: bool) -> None:
    """Print every name with its image, or with what is wrong with it."""
    listed = list(images.list())
    if quiet:
        _echo([name for name, _ in listed])
        return
    if _is_json(form):
        print_json(
            [
                {"reference": name, "error": image.message}
                if isinstance(image, ImageError)
                else {key: value for key, value in describe(images, image).items() if key not in ("config", "layers")}
                for name, image in listed
            ]
        )
        return
    rows = [
        (name, "damaged", "", "", printable(image.message), "")
        if isinstance(image, ImageError)
        else (
            name,
            image.id if full else image.id.partition(":")[2][:_SHORT_ID],
            printable(Platform.of(image.config)),
            _created(image)[:10],
            format_bytes(image.compressed_bytes),
            _unpacked(images, image),
        )
        for name, image in listed
    ]
    print_table(("image", "id", "platform", "created", "compressed", "unpacked"), rows)


def print_history(stored: Stored, form: str, *, full: bool) -> None:
    """Print the steps of an image with the layer that each made, newest first."""
    layers = iter(stored.manifest.layers)
    steps: list[tuple[dict[str, Any], Descriptor | None]] = []
    recorded = stored.config.get("history")
    for step in recorded if isinstance(recorded, list) else []:
        if not isinstance(step, dict):
            continue
        made = None if step.get("empty_layer") else next(layers, None)
        steps.append((step, made[0] if made else None))
    steps += [({}, layer) for layer, _ in layers]  # layers that nothing is told of
    if _is_json(form):
        keys = ("created", "created_by", "comment", "author")
        print_json(
            [
                {
                    **{key: step[key] for key in keys if key in step},
                    "layer": layer.digest if layer else None,
                    "compressed_bytes": layer.size if layer else None,
                }
                for step, layer in reversed(steps)
            ]
        )
        return
    rows = []
    for step, layer in reversed(steps):
        text = printable(step.get("created_by", ""), 10_000)
        short = text if full or len(text) <= _SHORT_TEXT else f"{text[: _SHORT_TEXT - 1]}…"
        rows.append(
            (
                printable(step.get("created", ""))[:10],
                short,
                format_bytes(layer.size) if layer else "no layer",
                printable(step.get("comment", "")),
            )
        )
    print_table(("created", "step", "compressed", "comment"), rows)


def describe(images: Images, stored: Stored) -> dict[str, Any]:
    """Everything known of an image, for JSON."""
    tree = find_tree(images.trees, stored.descriptor.digest)
    return {
        "reference": stored.reference or None,
        "id": stored.id,
        "digest": stored.descriptor.digest,
        "index_digest": stored.root.digest if stored.root != stored.descriptor else None,
        "media_type": stored.descriptor.media_type,
        "platform": str(Platform.of(stored.config)),
        "created": stored.config.get("created"),
        "compressed_bytes": stored.compressed_bytes,
        "unpacked_bytes": tree.unpacked_bytes if tree else None,
        "tree": str(tree.path) if tree else None,
        "layers": [{**layer.to_json(), "diff_id": diff_id} for layer, diff_id in stored.manifest.layers],
        "config": stored.config,
    }


def describe_remote(session: Session, reference: Reference) -> dict[str, Any]:
    """What a registry says of a reference, without any layer, for JSON."""
    from runtimes.oci.registry import Repository

    repository = Repository(session, reference.repository)
    document = repository.document(reference.target)
    platforms = None
    if "manifests" in document.value:
        entries = index_entries(document.value, str(reference))
        platforms = [{**entry.to_json(), "platform": str(Platform.of(entry.platform or {}))} for entry in entries]
    return {
        "reference": str(reference),
        "digest": document.descriptor.digest,
        "media_type": document.descriptor.media_type,
        "images": platforms,
        "manifest": document.value if platforms is None else None,
        "referrers": [entry.to_json() for entry in repository.referrers(document.descriptor.digest)],
    }


def print_collected(collected: Collected) -> None:
    """Say what was removed."""
    for digest in collected.rotten:
        _echo([f"rotten: {digest}"])
    trees = f", {collected.trees} unpacked" if collected.trees else ""
    _echo([f"removed {collected.blobs} blobs{trees}: {format_bytes(collected.blob_bytes)}"])


def print_pruned(pruned: Pruned) -> None:
    """Say what the build cache lost."""
    _echo([f"forgot {pruned.keys} build steps: {format_bytes(pruned.bytes)}"])


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their head: drawn on a terminal, columns of text elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*head, box=box.SIMPLE)
        for row in rows:
            table.add_row(*map(escape, row))
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    _echo([line.rstrip() for line in lines])


def print_json(value: object) -> None:
    """Print ``value`` as JSON for people and programs."""
    _echo([json.dumps(value, indent=2, ensure_ascii=not sys.stdout.isatty())])


def _echo(lines: Sequence[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _is_json(form: str) -> bool:
    if form not in ("table", "json"):
        raise UsageError(f"{form!r} is no format", hint="--format table or --format json")
    return form == "json"


def _created(stored: Stored) -> str:
    return printable(stored.config.get("created") or "")


def _unpacked(images: Images, stored: Stored) -> str:
    tree = find_tree(images.trees, stored.descriptor.digest)
    return format_bytes(tree.unpacked_bytes) if tree else ""
