"""Looking a name up among those known, with the nearest offered when it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from bench.errors import UsageError


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Check that ``name`` is one of ``known``.

    Raises:
        UsageError: it is not; the hint offers the nearest name, or all of them.
    """
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    raise UsageError(f"there is no {what} {name!r}", hint=hint)
