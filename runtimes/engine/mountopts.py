"""What --volume, --mount and --tmpfs mean, as Docker reads them: one record for each mount.

    {"type": "bind"|"volume"|"tmpfs", "source": host path or "", "name": volume or None, "target": "/…",
     "readonly": bool, "propagation": "rprivate"…, "copy": bool, "make": bool, "options": "size=…" or "",
     "idmap": bool}

A volume without a name is anonymous and is made, with a name, when the container is. With ``idmap`` false the owners of
its files are the host's users for a container with users of its own (--userns private) as well.
"""

from __future__ import annotations

import os

from bench.errors import UsageError
from runtimes.engine.containers import check_name, new_id
from runtimes.engine.quantities import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_IGNORED = ("z", "Z", "cached", "delegated", "consistent", "default", "nosuid", "exec", "suid", "dev", "nodev")
"""SELinux labels and hints for other systems."""
_HINT = "write it like /host/path:/path:ro, name:/path or /path"
_TMPFS_OPTIONS = frozenset(["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"])
_TMPFS_FLAGS = frozenset(["rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev"])


def parse_volume(text: str) -> dict[str, Any]:
    """``-v [SOURCE:]TARGET[:OPTIONS]``.

    Raises:
        UsageError: it is malformed.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise UsageError(f"option --volume: {text!r} has an empty part or more than three", hint=_HINT)
    source = parts[0] if len(parts) > 1 else ""
    is_path = source.startswith(("/", "./", "../")) or source in (".", "..")
    mount = _mount("bind" if is_path else "volume", parts[-1] if len(parts) < 3 else parts[1], "volume")
    if is_path:
        mount["source"] = os.path.abspath(source)
        mount["make"] = True
    elif source:
        check_name(source)
        mount["name"] = source
    for option in parts[2].split(",") if len(parts) == 3 else ():
        _apply(mount, option, text)
    return mount


def _apply(mount: dict[str, Any], option: str, text: str) -> None:
    if option in ("ro", "rw"):
        mount["readonly"] = option == "ro"
    elif option == "nocopy":
        mount["copy"] = False
    elif option == "noidmap":
        mount["idmap"] = False
    elif option in PROPAGATIONS and mount["type"] == "bind":
        mount["propagation"] = option
    elif option not in _IGNORED:
        raise UsageError(
            f"option --volume: {text!r} has the unknown option {option!r}",
            hint=f"ro, rw, nocopy, noidmap, {', '.join(PROPAGATIONS)}",
        )


def parse_mount(text: str) -> dict[str, Any]:
    """``--mount type=bind,source=/host/path,target=/path,readonly``.

    Raises:
        UsageError: it is malformed.
    """
    given: dict[str, str] = {}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        given[_KEYS.get(key, key)] = value if equals else "true"
    kind = given.pop("type", "volume")
    if kind not in ("bind", "volume", "tmpfs"):
        raise UsageError(f"option --mount: {kind!r} is no type of mount", hint="bind, volume or tmpfs")
    if "target" not in given:
        raise UsageError(f"option --mount: {text!r} has no target", hint="write it like type=bind,source=/a,target=/b")
    mount = _mount(kind, given.pop("target"), "mount")
    source = given.pop("source", "")
    if kind == "bind":
        if not source.startswith("/"):
            raise UsageError(f"option --mount: the source {source!r} of a bind is not an absolute path")
        mount["source"] = os.path.normpath(source)
    elif kind == "volume" and source:
        check_name(source)
        mount["name"] = source
    _apply_keys(mount, given)
    if given:
        raise UsageError(f"option --mount: a {kind} mount knows no {next(iter(given))!r}")
    return mount


_KEYS = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "bind-propagation": "propagation",
    "volume-nocopy": "nocopy",
}


def _apply_keys(mount: dict[str, Any], given: dict[str, str]) -> None:
    mount["readonly"] = _boolean(given.pop("readonly", "false"))
    if mount["type"] == "bind" and "propagation" in given:
        mount["propagation"] = given.pop("propagation")
        if mount["propagation"] not in PROPAGATIONS:
            raise UsageError(
                f"option --mount: {mount['propagation']!r} is no propagation", hint=", ".join(PROPAGATIONS)
            )
    if mount["type"] == "volume" and "nocopy" in given:
        mount["copy"] = not _boolean(given.pop("nocopy"))
    if mount["type"] != "tmpfs" and "noidmap" in given:
        mount["idmap"] = not _boolean(given.pop("noidmap"))
    if mount["type"] == "tmpfs":
        options = []
        if "tmpfs-size" in given:
            options.append(f"size={parse_size(given.pop('tmpfs-size'), 'mount')}")
        if "tmpfs-mode" in given:
            options.append(f"mode={_octal(given.pop('tmpfs-mode'))}")
        mount["options"] = ",".join(options)


def parse_tmpfs(text: str) -> dict[str, Any]:
    """``--tmpfs /path[:size=64m,mode=1777,exec]``.

    Raises:
        UsageError: it is malformed.
    """
    target, _, options = text.partition(":")
    mount = _mount("tmpfs", target, "tmpfs")
    kept = []
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key in _TMPFS_FLAGS:
            mount["readonly"] = key == "ro" or (mount["readonly"] and key != "rw")
            if key in ("exec", "suid", "dev"):
                mount["flags"] = [*mount["flags"], key]
        elif key in _TMPFS_OPTIONS and value:
            kept.append(f"size={parse_size(value, 'tmpfs')}" if key == "size" and not value.endswith("%") else option)
        else:
            raise UsageError(
                f"option --tmpfs: {option!r} is no option of a tmpfs",
                hint=", ".join(sorted(_TMPFS_OPTIONS | _TMPFS_FLAGS)),
            )
    mount["options"] = ",".join(kept)
    return mount


def _mount(kind: str, target: str, option: str) -> dict[str, Any]:
    if not target.startswith("/"):
        raise UsageError(f"option --{option}: {target!r} is not an absolute path in the container", hint=_HINT)
    target = os.path.normpath("/" + target.lstrip("/"))
    if target == "/":
        raise UsageError(f"option --{option}: nothing can be mounted over the container's root")
    return {
        "type": kind,
        "source": "",
        "name": None,
        "anonymous": False,
        "target": target,
        "readonly": False,
        "propagation": "rprivate",
        "copy": True,
        "make": False,
        "options": "",
        "flags": [],
        "idmap": True,
    }


def _boolean(value: str) -> bool:
    if value not in ("true", "false", "1", "0"):
        raise UsageError(f"option --mount: {value!r} is neither true nor false")
    return value in ("true", "1")


def _octal(value: str) -> str:
    try:
        return f"{int(value, 8):o}"
    except ValueError:
        raise UsageError(f"option --mount: {value!r} is no mode in octal digits") from None


def gather(volumes: list[str], mounts: list[str], tmpfs: list[str], of_image: list[str]) -> list[dict[str, Any]]:
    """Every mount of a container, outer targets before inner ones; the image's volumes where nothing else is.

    Raises:
        UsageError: one is malformed, or two have the same target.
    """
    wanted = [
        *(parse_volume(text) for text in volumes),
        *(parse_mount(text) for text in mounts),
        *(parse_tmpfs(text) for text in tmpfs),
    ]
    targets = [mount["target"] for mount in wanted]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"two mounts have the target {target}")
    for path in of_image:
        volume = _mount("volume", path, "volume")
        if volume["target"] not in targets:
            wanted.append(volume)
            targets.append(volume["target"])
    for mount in wanted:
        if mount["type"] == "volume" and mount["name"] is None:
            mount.update(name=new_id(), anonymous=True)
    return sorted(wanted, key=_depth)


def _depth(mount: dict[str, Any]) -> int:
    return len(str(mount["target"]).split("/"))
