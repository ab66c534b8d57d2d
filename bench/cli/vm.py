"""``isomark vm …``: the virtual servers that run now. What is printed and how; the work is in ``vms``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vms.connection import Connection
    from vms.ours import OwnDomain

app = typer.Typer(
    name="vm",
    help="Look at the virtual servers that isomark runs now.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What ls prints, or the first digits of its UUID.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what they are called.")]
Force = Annotated[bool, typer.Option("--force", help="Take it from whoever reads it now; a trial then fails.")]


@app.command("ls")
def list_(quiet: Quiet = False) -> None:
    """List them, at every libvirt that the drivers use.

    Those are ISOMARK_LIBVIRT_URI (qemu:///system) and ISOMARK_XEN_URI (xen:///system). Domains that isomark did not
    start are not listed.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from bench.units import format_bytes
    from vms.connection import shown

    with _own() as (domains, _):
        if quiet:
            for own in domains:
                typer.echo(own.name)
            return
        table = Table("name", "uuid", "state", "cpus", "memory", "run", "at", box=box.SIMPLE)
        for own in domains:
            size, place = format_bytes(own.memory_bytes), shown(own.address, own.address)
            table.add_row(own.name, own.uuid, own.state, str(own.cpus), size, escape(own.owner), escape(place))
    Console(soft_wrap=True).print(table)


@app.command()
def xml(name: Name) -> None:
    """Print the domain XML of one, as libvirt completed it."""
    from vms.connection import told
    from vms.ours import find_own

    with _own() as (domains, _), told("libvirt does not show the domain"):
        typer.echo(find_own(name, domains).handle.XMLDesc(0).rstrip())


@app.command()
def console(name: Name, force: Force = False) -> None:
    """Attach to the console of one; Ctrl-] leaves.

    Xen's guests and those of other hosts have a console that libvirt holds. A QEMU guest of this host
    connects its own to the run that started it: it can be looked at, and Ctrl-C leaves.
    """
    from bench.cli.vm_console import attach
    from vms.ours import find_own

    with _own() as (domains, connections):
        own = find_own(name, domains)
        attach(connections[own.address], own, force=force)


@contextmanager
def _own() -> Iterator[tuple[list[OwnDomain], dict[str, Connection]]]:
    """Our domains and the connections to them; says on standard error which libvirt does not answer."""
    import os

    from vms.connection import Connection
    from vms.ours import addresses, own_domains
    from vms.xen import XEN_PV

    connections = {address: Connection(address) for address in dict.fromkeys(addresses())}
    try:
        domains, silent = own_domains(connections.values())
        for error in silent:
            # most hosts have no Xen, and who does not name one does not miss it
            if XEN_PV.default_uri not in error.message or os.environ.get(XEN_PV.uri_variable):
                typer.echo(f"{error.message}\n  hint: {error.hint}", err=True)
        yield domains, connections
        domains.clear()
    finally:
        for connection in connections.values():
            connection.close()
