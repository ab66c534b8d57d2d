"""``isomark volume create``, ``ls``, ``inspect``, ``rm`` and ``prune``."""

from __future__ import annotations

import json
import sys

from bench.errors import InstanceError, IsomarkError, UsageError
from runtimes.engine import volumes
from runtimes.engine.cli_show import table
from runtimes.engine.command import Command
from runtimes.engine.containers import check_name, new_id
from runtimes.engine.journal import Journal
from runtimes.engine.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.engine.options import Options, Table

CREATE: Table = (("label", "", "NAME=VALUE…", "A note on the volume"),)
LIST: Table = (("quiet", "q", "", "Only names"),)
REMOVE: Table = (("force", "f", "", "It is no error if there is none"),)
PRUNE: Table = (("all", "a", "", "Those with names too"), ("force", "f", "", "Accepted: prune asks nothing here"))


def create(options: Options) -> int:
    """Make a volume and print its name."""
    if len(options.rest) > 1:
        raise UsageError("create takes one name at most")
    if options.rest:
        check_name(options.rest[0])
    name = options.rest[0] if options.rest else new_id()
    labels = dict(text.partition("=")[::2] for text in options.list("label"))
    place = Place()
    place.ensure()
    with Journal(place.journals) as journal:
        volumes.make(place, name, journal, anonymous=not options.rest, labels=labels)
    sys.stdout.write(f"{name}\n")
    return 0


def ls(options: Options) -> int:
    """List volumes."""
    place = Place()
    found = volumes.every_volume(place)
    if options.flag("quiet"):
        sys.stdout.write("".join(f"{each['name']}\n" for each in found))
    else:
        rows = [[each["name"], "anonymous" if each["anonymous"] else "", each["created"]] for each in found]
        sys.stdout.write(table([["NAME", "", "CREATED"], *rows]))
    return 0


def inspect(options: Options) -> int:
    """Print what is known about volumes, as JSON."""
    place = Place()
    known = {each["name"]: each for each in volumes.every_volume(place)}
    for name in options.rest:
        if name not in known:
            raise InstanceError(f"there is no volume {name!r}", hint="isomark volume ls lists them")
    shown = [
        {
            "Name": name,
            "Driver": "local",
            "Mountpoint": volumes.data(place, name),
            "CreatedAt": known[name]["created"],
            "Labels": known[name]["labels"],
            "Anonymous": known[name]["anonymous"],
        }
        for name in options.rest
    ]
    sys.stdout.write(json.dumps(shown, indent=4) + "\n")
    return 0


def remove(options: Options) -> int:
    """Delete volumes with what is in them."""
    if not options.rest:
        raise UsageError("the volume's name is missing", hint="isomark volume ls lists them")
    place, status = Place(), 0
    with Journal(place.journals) as journal:
        for name in options.rest:
            try:
                check_volume(name)
                volumes.remove(place, name, journal)
            except IsomarkError as error:
                if options.flag("force") and error.message.startswith("there is no volume"):
                    continue
                sys.stderr.write(f"isomark: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
                status = 1
            else:
                sys.stdout.write(f"{name}\n")
    return status


def check_volume(name: str) -> None:
    """Check that ``name`` can be a volume's, so that it is no path.

    Raises:
        InstanceError: it cannot.
    """
    if "/" in name or name.startswith("."):
        raise InstanceError(f"there is no volume {name!r}", hint="isomark volume ls lists them")


def prune(options: Options) -> int:
    """Delete anonymous volumes that no container uses; with --all those with names too."""
    place = Place()
    with Journal(place.journals) as journal:
        for each in volumes.every_volume(place):
            if (each["anonymous"] or options.flag("all")) and not volumes.users(place, each["name"]):
                volumes.remove(place, each["name"], journal)
                sys.stdout.write(f"{each['name']}\n")
    return 0


COMMANDS = {
    "create": Command(create, CREATE, "[OPTIONS] [NAME]", "Make a volume."),
    "ls": Command(ls, LIST, "[OPTIONS]", "List volumes."),
    "inspect": Command(inspect, (), "VOLUME…", "Print what is known about volumes."),
    "rm": Command(remove, REMOVE, "[OPTIONS] VOLUME…", "Delete volumes with what is in them."),
    "prune": Command(prune, PRUNE, "[OPTIONS]", "Delete anonymous volumes that nobody uses."),
}
