"""A container as JSON in Docker's words (docker inspect), as far as it means something here; and templates over it."""

from __future__ import annotations

import json
import re

from bench.errors import UsageError
from runtimes.engine.config import LIMITS
from runtimes.engine.signals import signal_name
from runtimes.engine.volumes import data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.container import Container

NEVER = "0001-01-01T00:00:00Z"
"""How Docker writes that there was no such instant."""
_POLICIES = {"no": "no"}
_EXPRESSION = re.compile(r"{{\s*(json\s+)?\.([\w.]*)\s*}}")


def document(container: Container, state: dict[str, Any]) -> dict[str, Any]:
    """Everything about a container."""
    config = container.config
    command = [*config["entrypoint"], *config["arguments"]]
    network = state["network"] or {}
    return {
        "Id": container.id,
        "Created": config["created"],
        "Path": command[0],
        "Args": command[1:],
        "State": _state(state),
        "Image": config["manifest"],
        "ResolvConfPath": f"{container.path}/resolv.conf",
        "HostnamePath": f"{container.path}/hostname",
        "HostsPath": f"{container.path}/hosts",
        "LogPath": f"{container.path}/log" if config["log"]["driver"] != "none" else "",
        "Name": f"/{config['name']}",
        "RestartCount": state["restarts"],
        "Driver": (state.get("rootless") or {}).get("storage") or "overlay",
        "HostConfig": _host_config(config),
        "GraphDriver": {
            "Name": "overlay",
            "Data": {
                "LowerDir": config["tree"],
                "UpperDir": f"{container.path}/upper",
                "WorkDir": f"{container.path}/work",
            },
        },
        "Mounts": [_mount(container, mount) for mount in config["mounts"]],
        "Config": _config(config),
        "NetworkSettings": {
            "IPAddress": network.get("address") or "",
            "IPPrefixLen": network.get("prefix_length", 0),
            "Gateway": network.get("gateway") or "",
            "MacAddress": network.get("mac", ""),
            "Bridge": network.get("bridge") or "",
            "Ports": _ports(network),
        },
        "Rootless": state.get("rootless"),
        "Remap": state.get("remap"),
    }


def _state(state: dict[str, Any]) -> dict[str, Any]:
    status = state["status"]
    return {
        "Status": status,
        "Running": status in ("running", "paused"),
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": state["oom_killed"],
        "Dead": False,
        "Pid": state["process"][0] if state["process"] else 0,
        "ExitCode": state["exit_code"] or 0,
        "Error": state["error"] or "",
        "StartedAt": state["started"] or NEVER,
        "FinishedAt": state["finished"] or NEVER,
    }


def _host_config(config: dict[str, Any]) -> dict[str, Any]:
    resources, security = config["resources"], config["security"]
    names = {number: name for name, number in LIMITS.items()}
    return {
        "NetworkMode": config["network"],
        "PublishedPorts": config["ports"],
        "RestartPolicy": {"Name": config["restart"]["policy"], "MaximumRetryCount": config["restart"]["most"]},
        "AutoRemove": config["auto_remove"],
        "CapAdd": security["cap_add"],
        "CapDrop": security["cap_drop"],
        "Privileged": security["privileged"],
        "SecurityLevel": security["level"],
        "SecurityOpt": security["options"],
        "Dns": config["dns"],
        "ExtraHosts": config["add_hosts"],
        "GroupAdd": config["groups"],
        "PidMode": config["namespaces"]["pid"],
        "IpcMode": config["namespaces"]["ipc"],
        "UTSMode": config["namespaces"]["uts"],
        "UsernsMode": config["namespaces"]["userns"],
        "CgroupnsMode": config["namespaces"]["cgroupns"],
        "TimensMode": config["namespaces"].get("timens", "host"),
        "ReadonlyRootfs": config["read_only"],
        "ShmSize": config["shm_bytes"],
        "Sysctls": config["sysctls"],
        "Devices": [
            {"PathOnHost": each["source"], "PathInContainer": each["target"], "CgroupPermissions": each["access"]}
            for each in config["devices"]
        ],
        "Ulimits": [{"Name": names[number], "Soft": soft, "Hard": hard} for number, soft, hard in config["ulimits"]],
        "OomScoreAdj": config["oom_score_adj"] or 0,
        "Init": config["init"],
        "Memory": resources["memory_bytes"] or 0,
        "MemorySwap": resources["memory_swap_bytes"] or 0,
        "MemoryReservation": resources["memory_reservation_bytes"] or 0,
        "NanoCpus": round((resources["cpus"] or 0) * 1e9),
        "CpuShares": resources["cpu_shares"] or 0,
        "CpusetCpus": resources["cpuset_cpus"] or "",
        "CpusetMems": resources["cpuset_mems"] or "",
        "PidsLimit": resources["pids"],
        "LogConfig": {
            "Type": config["log"]["driver"],
            "Config": {"max-size": str(config["log"]["max_bytes"]), "max-file": str(config["log"]["max_files"])},
        },
    }


def _config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "Hostname": config["hostname"] or "",
        "Domainname": config["domainname"] or "",
        "User": config["user"],
        "Tty": config["tty"],
        "OpenStdin": config["stdin_open"],
        "StdinOnce": config["stdin_once"],
        "Env": [f"{name}={value}" for name, value in config["environment"].items()],
        "Cmd": config["arguments"],
        "Entrypoint": config["entrypoint"] or None,
        "Image": config["image"],
        "WorkingDir": config["cwd"],
        "Labels": config["labels"],
        "ExposedPorts": {port: {} for port in config["exposed"]},
        "StopSignal": signal_name(config["stop_signal"]),
        "StopTimeout": config["stop_timeout"],
        "Healthcheck": config["healthcheck"],
    }


def _mount(container: Container, mount: dict[str, Any]) -> dict[str, Any]:
    found = {
        "Type": mount["type"],
        "Source": mount["source"],
        "Destination": mount["target"],
        "RW": not mount["readonly"],
        "Propagation": mount["propagation"] if mount["type"] == "bind" else "",
    }
    if mount["type"] == "volume":
        found.update(Name=mount["name"], Source=data(container.place, mount["name"]), Driver="local")
    return found


def _ports(network: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in network.get("ports", []):
        binding = {"HostIp": port["host_ip"], "HostPort": str(port["host_port"])}
        found.setdefault(f"{port['port']}/{port['protocol']}", []).append(binding)
    return found


def pretty(value: object) -> str:
    """JSON for people."""
    return json.dumps(value, indent=4)


def formatted(form: str, value: dict[str, Any]) -> str:
    """``json``, or a template in which ``{{.A.B}}`` and ``{{json .A}}`` stand for values.

    Raises:
        UsageError: it names something that is not there, or has more than such values.
    """
    if form == "json":
        return json.dumps(value)
    rest = _EXPRESSION.sub("", form)
    if "{{" in rest:
        raise UsageError(f"option --format: {form!r}", hint="only {{.Name}}, {{.A.B}} and {{json .A}} are understood")
    return _EXPRESSION.sub(lambda found: _value(found[2], value, as_json=bool(found[1])), form).replace("\\t", "\t")


def _value(path: str, value: Any, *, as_json: bool) -> str:  # noqa: ANN401 - JSON
    for key in filter(None, path.split(".")):
        if not isinstance(value, dict) or key not in value:
            near = ", ".join(sorted(value)) if isinstance(value, dict) else "nothing"
            raise UsageError(f"option --format: there is no {key!r}", hint=f"there is {near}")
        value = value[key]
    if as_json or isinstance(value, (dict, list)):
        return json.dumps(value)
    return (
        {True: "true", False: "false", None: "<no value>"}.get(value, str(value))
        if not isinstance(value, (int, str)) or isinstance(value, bool)
        else str(value)
    )
