"""JSON by the interpreter's own C code alone: ``json`` compiles patterns for a third of a container's start."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

try:
    from _json import encode_basestring_ascii
    from _json import make_encoder as _make_encoder
    from _json import make_scanner as _make_scanner
except ImportError:  # another interpreter than CPython: the ordinary way, only slower
    import json

    _scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    encode_basestring_ascii = json.dumps

    def dumps(value: object) -> str:
        """Return ``value`` as JSON on one line."""
        return json.dumps(value, separators=(",", ":"))
else:

    class _Rules:
        """What ``json.JSONDecoder`` would be asked for."""

        strict = True
        object_hook = None
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = float
        memo: dict[str, str] = {}  # noqa: RUF012 - read by C code

    def _refuse(value: object) -> object:
        raise TypeError(f"{type(value).__name__} has no form in JSON")

    _scan = _make_scanner(_Rules)  # type: ignore[arg-type]  # it reads these attributes
    _encode = _make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)

    def dumps(value: object) -> str:
        """Return ``value`` as JSON on one line."""
        return "".join(_encode(value, 0))


quote = encode_basestring_ascii
"""A text as JSON."""


def loads(text: str) -> Any:  # noqa: ANN401 - as json declares it
    """Return the value in ``text``.

    Raises:
        ValueError: it is not JSON.
    """
    text = text.strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):  # the C code finds words for an error only if the package is loaded
        end = -1
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if end == len(text):
        return value
    import json  # the rare case may take its time, and says what is wrong and where

    return json.loads(text)
