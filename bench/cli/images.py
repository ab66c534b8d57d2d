"""``isomark image …``: the commands on images. What they print and how; the work is in ``runtimes.oci``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.journal import Journal
    from runtimes.oci.images import Images, Stored
    from runtimes.oci.platform import Platform
    from runtimes.oci.session import Session

app = typer.Typer(
    name="image",
    help="Pull, push, build, look at and remove images.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A name like debian:12, or the first digits of an id.")]
PlatformOption = Annotated[str | None, typer.Option("--platform", help="Like linux/arm64/v8; this host's by default.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plain HTTP, for a registry on this host only.")]
CaFile = Annotated[Path | None, typer.Option("--ca-file", help="PEM file of the registry's authority.")]
Parallel = Annotated[int, typer.Option("--parallel", min=1, max=32, help="Layers at once.")]
Format = Annotated[str, typer.Option("--format", help="table or json.")]
Full = Annotated[bool, typer.Option("--no-trunc", help="Cut nothing short.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what it is called.")]

_EVERY_PLATFORM = "all"
_PARALLEL = 4


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(help="Like debian:12 or registry.example:5000/team/app@sha256:…")],
    platform: Annotated[str | None, typer.Option(help="Like linux/arm64/v8, or all; this host's by default.")] = None,
    insecure: Insecure = False,
    ca_file: CaFile = None,
    parallel: Parallel = _PARALLEL,
    unpack: Annotated[bool, typer.Option("--unpack/--no-unpack", help="Make it ready to run at once.")] = True,
    quiet: Quiet = False,
) -> None:
    """Fetch an image from a registry and unpack it.

    Every byte is checked against its digest; what was cut off goes on where it stopped.
    """
    from bench.cli.image_transfers import Transfers
    from bench.units import format_bytes
    from runtimes.oci.platform import Platform
    from runtimes.oci.pull import Pull
    from runtimes.oci.reference import Reference

    wanted = Reference.parse(reference)
    everything = platform == _EVERY_PLATFORM
    chosen = Platform.parse(platform) if platform and not everything else Platform.here()
    images = _images()
    with (
        _session(wanted.registry, insecure=insecure, ca_file=ca_file) as session,
        _journal() as journal,
        Transfers(quiet=quiet) as watcher,
    ):
        one = Pull(images, session, watcher, parallel)
        pulled = one.run_all(wanted) if everything else one.run(wanted, chosen, journal if unpack else None)
        if everything and unpack:
            images.tree(pulled.stored, journal)
    typer.echo(f"{wanted.familiar}@{pulled.digest}" if wanted.digest is None else wanted.familiar)
    if not quiet:
        fresh = f"{format_bytes(pulled.fresh_bytes)} fetched" if pulled.fresh_bytes else "nothing new"
        typer.echo(f"{fresh}; id {pulled.stored.id}", err=True)


@app.command()
def push(
    image: Image,
    name: Annotated[str | None, typer.Argument(help="Where to; what IMAGE is called by default.")] = None,
    insecure: Insecure = False,
    ca_file: CaFile = None,
    parallel: Parallel = _PARALLEL,
    quiet: Quiet = False,
) -> None:
    """Send an image to the registry that its name begins with.

    What the registry has is not sent again, or mounted there from another repository.
    """
    from bench.cli.image_transfers import Transfers
    from bench.units import format_bytes
    from runtimes.oci.push import Push
    from runtimes.oci.reference import Reference

    images = _images()
    stored = images.find(image)
    if name is None and not stored.reference:
        raise UsageError(f"{image} has no name", hint=f"isomark image push {image} REGISTRY/NAME:TAG")
    target = Reference.parse(name or stored.reference)
    if target.digest is not None:
        raise UsageError(f"cannot push to a digest: {target}", hint="name a tag to push to")
    with _session(target.registry, insecure=insecure, ca_file=ca_file) as session, Transfers(quiet=quiet) as watcher:
        pushed = Push(images, session, watcher, parallel).run(stored, target)
    typer.echo(f"{target.familiar}@{pushed.digest}")
    if not quiet:
        typer.echo(f"{format_bytes(pushed.sent_bytes)} sent" if pushed.sent_bytes else "nothing to send", err=True)


@app.command()
def build(
    context: Annotated[Path, typer.Argument(help="The directory that COPY copies from.")] = Path(),
    tags: Annotated[list[str] | None, typer.Option("--tag", "-t", help="What to call it; may be repeated.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Containerfile, or - for standard input.")] = None,
    arguments: Annotated[list[str] | None, typer.Option("--build-arg", help="NAME=value of an ARG.")] = None,
    target: Annotated[str, typer.Option(help="Stop at this stage.")] = "",
    labels: Annotated[list[str] | None, typer.Option("--label", help="NAME=value to add.")] = None,
    network: Annotated[str, typer.Option(help="host, bridge or none: what RUN sees.")] = "host",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step again.")] = False,
    refresh: Annotated[bool, typer.Option("--pull", help="Fetch base images again.")] = False,
    platform: PlatformOption = None,
    timestamp: Annotated[int | None, typer.Option(min=0, help="Seconds since 1970; nothing in it is later.")] = None,
    insecure: Insecure = False,
    ca_file: CaFile = None,
    quiet: Quiet = False,
) -> None:
    """Build an image from a Containerfile or Dockerfile."""
    import sys

    from bench.state import state_directory
    from runtimes import usernamespace
    from runtimes.build.command import BuildRequest, parse_assignments
    from runtimes.build.command import build as build_image

    request = BuildRequest(
        context=context,
        file=Path(file) if file and file != "-" else None,
        text=sys.stdin.read() if file == "-" else None,
        tags=tags or (),
        arguments=parse_assignments("--build-arg", arguments or ()),
        target=target,
        use_cache=not no_cache,
        network=network,
        labels=parse_assignments("--label", labels or ()),
        platform=platform or "",
        timestamp=timestamp,
        refresh=refresh,
    )
    usernamespace.enter()  # what an ordinary user's steps make has users that only exist there
    with _journal() as journal:
        bring = _puller(journal, insecure=insecure, ca_file=ca_file, quiet=quiet)
        built = build_image(
            request, state_directory(), journal, lambda line: None if quiet else typer.echo(line, err=True), bring
        )
    typer.echo(built.id)


@app.command("ls")
def list_(form: Format = "table", full: Full = False, quiet: Quiet = False) -> None:
    """List the images of the store."""
    from bench.cli import image_tables

    image_tables.print_images(_images(), form, full=full, quiet=quiet)


@app.command()
def inspect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names or ids.")],
    remote: Annotated[bool, typer.Option("--remote", help="Ask the registry, and fetch no layer.")] = False,
    platform: PlatformOption = None,
    insecure: Insecure = False,
    ca_file: CaFile = None,
) -> None:
    """Print all that is known of images, as JSON."""
    from bench.cli import image_tables
    from runtimes.oci.platform import Platform
    from runtimes.oci.reference import Reference

    if remote:
        found = []
        for text in images:
            reference = Reference.parse(text)
            with _session(reference.registry, insecure=insecure, ca_file=ca_file) as session:
                found.append(image_tables.describe_remote(session, reference))
    else:
        store = _images()
        chosen = Platform.parse(platform) if platform else None
        found = [image_tables.describe(store, store.find(text, chosen)) for text in images]
    image_tables.print_json(found)


@app.command()
def history(image: Image, form: Format = "table", full: Full = False) -> None:
    """Show how an image was made, newest step first."""
    from bench.cli import image_tables

    image_tables.print_history(_images().find(image), form, full=full)


@app.command()
def tag(image: Image, name: Annotated[str, typer.Argument(help="The new name, like team/app:1.2.")]) -> None:
    """Give an image one more name."""
    images = _images()
    typer.echo(images.tag(images.find(image), name))


@app.command("rm")
def remove(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names or ids.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if it has several names or is in use.")] = False,
) -> None:
    """Take names from images, and remove what then has none.

    What a container or a running transfer needs stays until it is gone.
    """
    from bench.errors import ImageError

    faults = []
    for text in images:
        try:
            for name in _images().remove(text, force=force):
                typer.echo(f"untagged {name}")
        except ImageError as error:
            faults.append(error)
    _collect(partial=False, verify=False)
    for fault in faults[:-1]:
        typer.echo(f"isomark: {fault.message}", err=True)
    if faults:
        raise faults[-1]


@app.command()
def prune(
    verify: Annotated[bool, typer.Option("--verify", help="Read every blob, and remove those that rotted.")] = False,
    build_cache: Annotated[bool, typer.Option("--build-cache", help="Also forget the steps of all builds.")] = False,
) -> None:
    """Remove blobs, trees and cut-off downloads that nothing needs."""
    if build_cache:
        from bench.cli import image_tables
        from bench.state import state_directory
        from runtimes.build.cache import prune as prune_steps

        with _journal() as journal:
            image_tables.print_pruned(prune_steps(state_directory(), journal))
    _collect(partial=True, verify=verify)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A tar, an OCI layout's directory, or - for standard input.")],
    name: Annotated[str | None, typer.Argument(help="What to call it; what the archive says by default.")] = None,
    platform: PlatformOption = None,
) -> None:
    """Take images from an archive.

    That is an OCI layout, what docker save wrote, or a root file system, as a tar of any compression.
    """
    import sys

    from runtimes.oci.importing import Importer
    from runtimes.oci.platform import Platform

    chosen = Platform.parse(platform) if platform else Platform.here()
    stream = sys.stdin.buffer if source == "-" else Path(source)
    for stored in Importer(_images(), chosen).take(stream, name):
        typer.echo(stored.reference)


@app.command()
def export(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names or ids.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The file to make, or - for standard output.")] = "-",
    form: Annotated[str, typer.Option("--format", help="oci (a tar), oci-dir, or docker (for docker load).")] = "oci",
) -> None:
    """Write images to an archive; the same images give the same bytes."""
    import sys

    from runtimes.oci.exporting import export as write

    if output == "-" and sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal", hint="isomark image export IMAGE -o FILE")
    store = _images()
    chosen = [store.find(text) for text in images]
    with _journal() as journal:
        write(store, chosen, sys.stdout.buffer if output == "-" else Path(output), form, journal)


@contextmanager
def _journal() -> Iterator[Journal]:
    """A journal for this command; what dead ones left is removed first."""
    from bench.clean import clean
    from bench.journal import Journal
    from bench.state import journal_directory, state_directory

    directory = journal_directory(state_directory())
    clean(directory)
    with Journal(directory) as journal:
        yield journal


def _images() -> Images:
    from bench.state import state_directory
    from runtimes.oci.images import Images

    return Images(state_directory())


def _puller(
    journal: Journal, *, insecure: bool, ca_file: Path | None, quiet: bool
) -> Callable[[str, Platform], Stored]:
    """What fetches a build's base images."""

    def bring(name: str, platform: Platform) -> Stored:
        from bench.cli.image_transfers import Transfers
        from runtimes.oci.pull import Pull
        from runtimes.oci.reference import Reference

        reference = Reference.parse(name)
        with (
            _session(reference.registry, insecure=insecure, ca_file=ca_file) as session,
            Transfers(quiet=quiet) as watcher,
        ):
            return Pull(_images(), session, watcher, _PARALLEL).run(reference, platform, journal).stored

    return bring


def _session(registry: str, *, insecure: bool, ca_file: Path | None) -> Session:
    from runtimes.oci.credentials import find_credentials
    from runtimes.oci.endpoint import Endpoint
    from runtimes.oci.session import Session

    return Session(Endpoint(registry, insecure, ca_file), find_credentials(registry))


def _collect(*, partial: bool, verify: bool) -> None:
    from bench.cli import image_tables

    with _journal() as journal:
        image_tables.print_collected(_images().collect(journal, partial=partial, verify=verify))
