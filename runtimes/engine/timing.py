"""What each step of a container's start took, as a table for people.

Three processes work on a start, partly at the same time: the command, the monitor that it forks, and the process that
becomes the container. Each does one step after the other, so a step ends where the next one of its process begins; the
command's and the container's last ones end where the container's command was executed, which is the monitor's last
entry. What is only waiting for another process says so. The clock is the host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Times = Mapping[str, Sequence[Sequence[str | float]]]
    Row = tuple[float, float, str, str]


def rows(times: Times) -> list[Row]:
    """Begin and length in milliseconds since the first step, whose step and what, in the order in which they began.

    ``times`` are the ``[step, seconds]`` of ``command``, ``monitor`` and ``container``, each in order.
    """
    begun = float(times["command"][0][1])
    end = float(times["monitor"][-1][1])
    found: list[Row] = []
    for who, steps in times.items():
        ends = [*(float(at) for _, at in steps[1:]), end]
        for (step, at), until in zip(steps, ends, strict=True):
            found.append(((float(at) - begun) * 1000, (until - float(at)) * 1000, who, str(step)))
    last = times["monitor"][-1][0]
    return sorted(row for row in found if (row[2], row[3]) != ("monitor", last))


def table(times: Times) -> str:
    """The rows as text, with the whole time at the end."""
    whole = (float(times["monitor"][-1][1]) - float(times["command"][0][1])) * 1000
    lines = [f"{'begin ms':>9} {'took ms':>9}  {'process':9}  step"]
    lines += [f"{begin:9.3f} {took:9.3f}  {who:9}  {step}" for begin, took, who, step in rows(times)]
    return "\n".join([*lines, f"{whole:9.3f} {'':9}  {'container':9}  its command runs", ""])
