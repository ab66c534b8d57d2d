"""What a container is asked to be: options and an image's wishes in, one JSON object out. Nothing is touched here."""

from __future__ import annotations

from bench.errors import UsageError
from runtimes import usernamespace
from runtimes.engine.clock import parse_duration
from runtimes.engine.container import SHORT
from runtimes.engine.containers import check_name
from runtimes.engine.mountopts import gather
from runtimes.engine.quantities import parse_cpus, parse_int, parse_size
from runtimes.engine.signals import parse_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtimes.engine.options import Options

VERSION = 1
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STOP_SECONDS = 10
SHM_BYTES = 64 * 1024**2
LOG_BYTES = 16 * 1024**2
LOG_FILES = 3
LEAST_MEMORY = 6 * 1024**2
"""Docker's own bound: with less, not even the first program starts."""
RESTARTS = ("no", "always", "unless-stopped", "on-failure")
SECURITY_LEVELS = ("off", "default", "strict")
LIMITS = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9,
    "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
"""Names of --ulimit -> resource (asm-generic/resource.h)."""
UNLIMITED = -1


def build(
    options: Options, image: Mapping[str, Any], *, ident: str, created: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """The config of a new container.

    ``image`` has ``reference``, ``manifest`` (its digest, which keeps the image from being collected), ``tree`` and
    ``config`` (image-spec, config.md, property ``config``);
    ``environment`` is the caller's, for ``-e NAME``.

    Raises:
        UsageError: an option is malformed, contradicts another, or there is no command.
    """
    wishes = image["config"]
    name = options.text("name") or ident[:SHORT]
    check_name(name)
    privileged = options.flag("privileged")
    network = _network(options)
    tty = options.flag("tty")
    hostname = options.text("hostname")
    entrypoint, arguments = _command(options, wishes)
    return {
        "version": VERSION,
        "id": ident,
        "name": name,
        "created": created,
        "image": image["reference"],
        "manifest": image["manifest"],
        "tree": image["tree"],
        "entrypoint": entrypoint,
        "arguments": arguments,
        "environment": _environment(options, wishes, environment, tty=tty),
        "cwd": options.text("workdir") or wishes.get("WorkingDir") or "/",
        "user": options.text("user") or wishes.get("User") or "",
        "groups": options.list("group-add"),
        "labels": {**(wishes.get("Labels") or {}), **_pairs(options.list("label"), "label")},
        "tty": tty,
        "stdin_open": options.flag("interactive"),
        "stdin_once": options.flag("interactive") and not options.flag("detach"),
        "auto_remove": options.flag("rm"),
        "restart": _restart(options),
        "stop_signal": parse_signal(options.text("stop-signal") or wishes.get("StopSignal") or "TERM"),
        "stop_timeout": parse_int(options.text("stop-timeout") or str(STOP_SECONDS), "stop-timeout", least=-1),
        "resources": _resources(options),
        "mounts": gather(
            options.list("volume"), options.list("mount"), options.list("tmpfs"), list(wishes.get("Volumes") or {})
        ),
        "network": network,
        "ports": options.list("publish"),
        "exposed": sorted({*(wishes.get("ExposedPorts") or {}), *options.list("expose")}),
        "publish_all": options.flag("publish-all"),
        "hostname": hostname if hostname is not None else None if _is(options, "uts", "host") else ident[:SHORT],
        "domainname": options.text("domainname"),
        "add_hosts": options.list("add-host"),
        "dns": options.list("dns"),
        "dns_search": options.list("dns-search"),
        "dns_options": options.list("dns-option"),
        "namespaces": {
            **{kind: _namespace(options, kind) for kind in ("pid", "ipc", "uts", "cgroupns", "timens")},
            "userns": _users(options),
        },
        "security": _security(options, privileged=privileged),
        "read_only": options.flag("read-only"),
        "devices": [_device(text) for text in options.list("device")],
        "shm_bytes": parse_size(options.text("shm-size") or str(SHM_BYTES), "shm-size"),
        "sysctls": _sysctls(options, network),
        "ulimits": [_ulimit(text) for text in options.list("ulimit")],
        "oom_score_adj": _optional_int(options, "oom-score-adj", -1000, 1000),
        "init": options.flag("init"),
        "log": _log(options),
        "healthcheck": wishes.get("Healthcheck"),
    }


def _command(options: Options, wishes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Entrypoint and arguments; a new entrypoint takes the image's arguments away (docker run, --entrypoint)."""
    entrypoint = list(wishes.get("Entrypoint") or [])
    arguments = list(wishes.get("Cmd") or [])
    if (chosen := options.text("entrypoint")) is not None:
        entrypoint, arguments = [chosen] if chosen else [], []
    if options.rest[1:]:
        arguments = options.rest[1:]
    if not entrypoint and not arguments:
        raise UsageError("no command: the image names none", hint="write one after the image's name")
    return entrypoint, arguments


def _environment(options: Options, wishes: Mapping[str, Any], own: Mapping[str, str], *, tty: bool) -> dict[str, str]:
    pairs = [DEFAULT_PATH, *(["TERM=xterm"] if tty else []), *(wishes.get("Env") or [])]
    found = dict(pair.partition("=")[::2] for pair in pairs)
    return {**found, **given_environment(options, own)}


def given_environment(options: Options, own: Mapping[str, str]) -> dict[str, str]:
    """What --env-file and --env say; a name without a value is taken from ``own``, if it is there.

    Raises:
        UsageError: a file cannot be read, or a name is empty.
    """
    texts: list[str] = []
    for path in options.list("env-file"):
        try:
            with open(path, encoding="utf-8") as file:
                texts += [line.lstrip() for line in file.read().splitlines() if line.strip()[:1] not in ("", "#")]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"option --env-file: cannot read {path}: {error}") from error
    found: dict[str, str] = {}
    for text in [*texts, *options.list("env")]:
        name, equals, value = text.partition("=")
        if not name or "\0" in text:
            raise UsageError(f"option --env: {text!r} has no name", hint="write it like NAME=value")
        if equals:
            found[name] = value
        elif name in own:
            found[name] = own[name]
    return found


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if "" in found or (option == "sysctl" and "" in found.values()):
        raise UsageError(f"option --{option}: {texts!r} has an empty name or value", hint="write it like name=value")
    return found


def _sysctls(options: Options, network: str) -> dict[str, str]:
    """Settings of namespaces that are the container's own: another one would be the host's."""
    found = _pairs(options.list("sysctl"), "sysctl")
    if found:
        from runtimes.sysctls import namespace_of

        spaces = {
            "network": network,
            "user": _users(options),
            **{kind: _namespace(options, kind) for kind in ("ipc", "uts")},
        }
        for name in found:
            try:
                kind, _ = namespace_of(name)
            except ValueError as error:
                raise UsageError(f"option --sysctl: {name} {error}", hint="sysctl -w sets it on the host") from error
            if spaces[kind] == "host":
                raise UsageError(
                    f"option --sysctl: {name} would change the host, whose {kind} namespace the container has",
                    hint="leave one of them out",
                )
    return found


def _restart(options: Options) -> dict[str, Any]:
    policy, colon, count = (options.text("restart") or "no").partition(":")
    if policy not in RESTARTS or (colon and policy != "on-failure"):
        raise UsageError(f"option --restart: {options.text('restart')!r} is no policy", hint=", ".join(RESTARTS))
    if policy != "no" and options.flag("rm"):
        raise UsageError("--rm and --restart contradict each other", hint="leave one of them out")
    return {"policy": policy, "most": parse_int(count, "restart", least=0) if colon else 0}


def _resources(options: Options) -> dict[str, Any]:
    memory = _size(options, "memory")
    if memory is not None and memory < LEAST_MEMORY:
        raise UsageError(f"option --memory: less than {LEAST_MEMORY >> 20}m, with which nothing starts")
    swap_text = options.text("memory-swap")
    swap = UNLIMITED if swap_text == "-1" else _size(options, "memory-swap")
    if swap is not None and swap != UNLIMITED and (memory is None or swap < memory):
        raise UsageError("option --memory-swap is memory and swap together", hint="at least as much as --memory")
    return {
        "memory_bytes": memory,
        "memory_swap_bytes": swap,
        "memory_reservation_bytes": _size(options, "memory-reservation"),
        "cpus": parse_cpus(cpus) if (cpus := options.text("cpus")) is not None else None,
        "cpu_shares": _optional_int(options, "cpu-shares", 2, 262144),
        "cpuset_cpus": options.text("cpuset-cpus"),
        "cpuset_mems": options.text("cpuset-mems"),
        "pids": None if (pids := _optional_int(options, "pids-limit", -1, None)) in (-1, 0) else pids,
    }


def _size(options: Options, name: str) -> int | None:
    text = options.text(name)
    return None if text is None else parse_size(text, name)


def _optional_int(options: Options, name: str, least: int, most: int | None) -> int | None:
    text = options.text(name)
    return None if text is None else parse_int(text, name, least=least, most=most)


def _network(options: Options) -> str:
    network = options.text("network") or "bridge"
    network = "bridge" if network == "default" else network
    kind, _, other = network.partition(":")
    if network not in ("bridge", "none", "host") and (kind != "container" or not other):
        raise UsageError(
            f"option --network: there is no network {network!r}", hint="bridge, none, host, container:NAME"
        )
    if options.list("publish") and network != "bridge":
        raise UsageError(f"--publish needs --network bridge, not {network}", hint="leave one of them out")
    return network


def _is(options: Options, kind: str, value: str) -> bool:
    return options.text(kind) == value


def _namespace(options: Options, kind: str) -> str:
    value = options.text(kind) or ("host" if kind == "timens" else "private")
    if value not in ("host", "private") and not (value.startswith("container:") and kind in ("pid", "ipc")):
        raise UsageError(f"option --{kind}: {value!r} is neither host nor private")
    return value


def _users(options: Options) -> str:
    """The host's users unless it is told otherwise; who is not root there cannot give them away."""
    value = options.text("userns") or ("host" if usernamespace.privileged() else "private")
    if value not in ("host", "private"):
        raise UsageError(f"option --userns: {value!r} is neither host nor private")
    if value == "host" and not usernamespace.privileged():
        raise UsageError(
            "option --userns host: an ordinary user's container always has users of its own", hint="leave it out"
        )
    return value


def _security(options: Options, *, privileged: bool) -> dict[str, Any]:
    level = options.text("security") or ("off" if privileged else "default")
    if level not in SECURITY_LEVELS:
        raise UsageError(f"option --security: there is no level {level!r}", hint=", ".join(SECURITY_LEVELS))
    return {
        "level": level,
        "privileged": privileged,
        "cap_add": options.list("cap-add"),
        "cap_drop": options.list("cap-drop"),
        "options": options.list("security-opt"),
    }


def _device(text: str) -> dict[str, str]:
    """``--device /dev/host[:/dev/inside][:rwm]``."""
    parts = text.split(":")
    access = "rwm"
    if len(parts) > 1 and set(parts[-1]) <= set("rwm"):
        access = parts.pop()
    if len(parts) > 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(f"option --device: {text!r}", hint="write it like /dev/fuse or /dev/sda:/dev/xvda:r")
    return {"source": parts[0], "target": parts[-1], "access": access}


def _ulimit(text: str) -> list[int]:
    """``--ulimit nofile=1024[:2048]`` as ``[resource, soft, hard]``."""
    name, _, value = text.partition("=")
    soft, _, hard = value.partition(":")
    if name not in LIMITS:
        raise UsageError(f"option --ulimit: there is no limit {name!r}", hint=", ".join(LIMITS))
    numbers = [parse_int(part, "ulimit", least=-1) for part in (soft, hard or soft)]
    if numbers[0] > numbers[1] != UNLIMITED:
        raise UsageError(f"option --ulimit: {text!r}: the soft limit is above the hard one")
    return [LIMITS[name], *numbers]


def _log(options: Options) -> dict[str, Any]:
    driver = options.text("log-driver") or "json-file"
    if driver not in ("json-file", "local", "none"):
        raise UsageError(f"option --log-driver: {driver!r} is not known", hint="json-file or none")
    given = _pairs(options.list("log-opt"), "log-opt")
    size, files = given.pop("max-size", None), given.pop("max-file", None)
    if given:
        raise UsageError(f"option --log-opt: {next(iter(given))!r} is not known", hint="max-size and max-file")
    return {
        "driver": "none" if driver == "none" else "json-file",
        "max_bytes": LOG_BYTES if size is None else max(1, parse_size(size, "log-opt")),
        "max_files": LOG_FILES if files is None else parse_int(files, "log-opt", least=1),
    }


def to_seconds(text: str | None, option: str) -> float | None:
    """A number of seconds or a duration; -1 means for ever.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(f"option --{option}: {error.message}", hint=error.hint) from error
