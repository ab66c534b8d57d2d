"""The command ``script/xen-lab``."""

from __future__ import annotations

import sys
import time

from bench.errors import IsomarkError
from bench.state import state_directory
from xenlab import keeper

USAGE = """\
usage: script/xen-lab up|down|status

  up      start a real Xen in an emulated machine and print libvirt's URI of it; the first time takes a minute or two
  down    end it and remove what it wrote
  status  print the URI of the one that is up, or exit with 1

It is kept below ISOMARK_STATE (/var/lib/isomark), in labs/xen."""
_BEGUN = time.monotonic()


def main(arguments: list[str]) -> int:
    """Do what ``arguments`` ask and return the exit status."""
    state = state_directory()
    match arguments:
        case ["up"]:
            print(keeper.up(state, _say))
        case ["down"]:
            print("the lab is down" if keeper.down(state) else "no lab was up")
        case ["status"]:
            uri = keeper.running(state)
            print(uri or "no lab is up")
            return 0 if uri else 1
        case ["keep"]:  # what `up` leaves behind
            keeper.keep(state)
        case ["--help" | "-h"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def _say(text: str) -> None:
    print(f"xen-lab: {time.monotonic() - _BEGUN:5.1f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except IsomarkError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
