"""From statements to instructions: what each of them takes, and a clear word about anything else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

from bench.errors import UsageError
from runtimes.build.durations import nanoseconds
from runtimes.build.instructions import (
    KEYWORDS,
    Arg,
    Cmd,
    Command,
    Containerfile,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    HealthCheck,
    Label,
    Maintainer,
    OnBuild,
    Pair,
    Place,
    Run,
    Shell,
    Stage,
    Step,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from runtimes.build.lines import Document, Statement, here_word, json_list, located, read_statements, statement_of
from runtimes.build.mounts import mount_of
from runtimes.build.signals import checked_signal
from runtimes.build.words import is_space

_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_BLANKS: Final = re.compile(r"[\t\v\f\r ]+")
_ON_BUILD: Final = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)
_NETWORKS: Final = ("default", "none", "host")
_HEALTH_TIMES: Final = ("interval", "timeout", "start-period", "start-interval")


def parse(text: str, name: str = "Containerfile") -> Containerfile:
    """Return what the Containerfile ``text`` says; ``name`` stands in messages.

    Raises:
        UsageError: it is malformed; the message begins with ``name`` and the line.
    """
    source = read_statements(text, name)
    arguments: list[Arg] = []
    stages: list[tuple[From, list[Step]]] = []
    for statement in source.statements:
        with located(name, statement.line):
            instruction = parse_statement(statement, source.escape)
            if isinstance(instruction, From):
                stages.append((instruction, []))
            elif stages:
                stages[-1][1].append(instruction)
            elif isinstance(instruction, Arg):
                arguments.append(instruction)
            else:
                raise UsageError(f"{statement.keyword} stands before any FROM", hint="begin with FROM IMAGE")
    if not stages:
        raise UsageError(f"{name} has no FROM", hint="begin with FROM IMAGE, or FROM scratch")
    numbered = [Stage(number, start, tuple(steps)) for number, (start, steps) in enumerate(stages)]
    return Containerfile(name, source.escape, tuple(arguments), tuple(numbered), tuple(source.warnings))


def parse_trigger(text: str, escape: str, name: str) -> Step:
    """Return the instruction that ``ONBUILD`` left in an image called ``name``.

    Raises:
        UsageError: it is not exactly one instruction, or none that a child may run.
    """
    source = read_statements(text, f"ONBUILD of {name}")
    instruction = parse_statement(source.statements[0], escape)
    if len(source.statements) != 1 or isinstance(instruction, From | OnBuild | Maintainer):
        raise UsageError(
            f"the image {name} has the trigger {text[:100]!r}, which is not one instruction",
            hint="build FROM another image, or mend its ONBUILD",
        )
    return instruction


def parse_statement(statement: Statement, escape: str) -> From | Step:
    """Return the instruction that ``statement`` is.

    Raises:
        UsageError: nothing is called so, or what it takes is wrong.
    """
    reader = _READERS.get(statement.keyword)
    if reader is None:
        near = difflib.get_close_matches(statement.keyword, KEYWORDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYWORDS)}"
        raise UsageError(f"unknown instruction {statement.keyword[:40]}", hint=hint)
    return reader(_Parts(statement, escape))


class _Parts:
    """A statement while it is read: its flags are taken one by one, and what is left is too many."""

    def __init__(self, statement: Statement, escape: str) -> None:
        self.keyword = statement.keyword
        self.rest = statement.rest
        self.documents = statement.documents
        self.place = Place(statement.line, statement.source)
        self.escape = escape
        self._flags = list(statement.flags)

    def flags(self, name: str) -> list[str]:
        """Every value of ``--name=value``."""
        found = [flag for flag in self._flags if flag.partition("=")[0] == f"--{name}"]
        self._flags = [flag for flag in self._flags if flag not in found]
        if any("=" not in flag for flag in found):
            raise UsageError(f"{self.keyword} --{name} has no value", hint=f"write --{name}=…")
        return [flag.partition("=")[2] for flag in found]

    def flag(self, name: str) -> str:
        """The value of ``--name=value``, empty if it is not there."""
        found = self.flags(name)
        if len(found) > 1:
            raise UsageError(f"{self.keyword} --{name} is given twice", hint="leave one out")
        return found[0] if found else ""

    def switch(self, name: str) -> bool:
        """``--name``, ``--name=true`` or ``--name=false``."""
        found = [flag for flag in self._flags if flag.partition("=")[0] == f"--{name}"]
        self._flags = [flag for flag in self._flags if flag not in found]
        value = found[-1].partition("=")[2].lower() if found else "false"
        if value not in ("", "true", "false"):
            raise UsageError(
                f"{self.keyword} --{name} is true or false, not {value[:40]!r}", hint=f"write it like --{name}=true"
            )
        return value != "false"

    def no_more_flags(self, *known: str) -> None:
        """Refuse what nobody took."""
        if self._flags:
            flag = self._flags[0].partition("=")[0]
            near = difflib.get_close_matches(flag, [f"--{name}" for name in known], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(f'--{k}' for k in known) or 'none'}"
            raise UsageError(f"{self.keyword} has no flag {flag[:60]}", hint=hint)

    def words(self) -> list[str]:
        """The JSON form's strings, or the words between blanks, untouched."""
        listed = json_list(self.rest)
        return listed if listed is not None else self.plain_words()

    def plain_words(self) -> list[str]:
        """The words between blanks; there is no JSON form."""
        return [word for word in _BLANKS.split(self.rest) if word]

    def quoted_words(self) -> list[str]:
        """The words, with quotes, escapes and variables still in them."""
        return _quoted_words(self.rest, self.escape)

    def whole(self) -> str:
        """All of it as one argument."""
        if not self.rest:
            raise UsageError(f"{self.keyword} takes an argument", hint=f"write {self.keyword} and what it shall be")
        return self.rest


def _quoted_words(text: str, escape: str) -> list[str]:
    words: list[str] = []
    word = ""
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'":
            word += text[at : at + 2] if at + 1 < len(text) else ""
            at += 2
            continue
        if not quote and is_space(char):
            words += [word] if word else []
            word = ""
        else:
            if char == quote:
                quote = ""
            elif not quote and char in "'\"":
                quote = char
            word += char
        at += 1
    return [*words, word] if word else words


def _from(parts: _Parts) -> From:
    platform = parts.flag("platform")
    parts.no_more_flags("platform")
    words = parts.plain_words()
    if len(words) == 1:
        return From(parts.place, words[0], "", platform)
    if len(words) != 3 or words[1].upper() != "AS":
        raise UsageError("FROM takes one argument, or three", hint="write FROM IMAGE, or FROM IMAGE AS NAME")
    name = words[2].lower()
    if not _STAGE_NAME.fullmatch(name):
        raise UsageError(
            f"a stage cannot be called {words[2][:60]!r}", hint="letters, digits, '_', '-', '.', the first a letter"
        )
    return From(parts.place, words[0], name, platform)


def _arg(parts: _Parts) -> Arg:
    parts.no_more_flags()
    names: list[tuple[str, str | None]] = []
    for word in parts.quoted_words():
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError("ARG has a value without a name", hint="write ARG NAME=default")
        names.append((name, value if equals else None))
    if not names:
        raise UsageError("ARG names nothing", hint="write ARG NAME, or ARG NAME=default")
    return Arg(parts.place, tuple(names))


def _pairs(parts: _Parts) -> tuple[Pair, ...]:
    """``name=value …``, or the old form ``name value``, which takes the whole line."""
    parts.no_more_flags()
    words = parts.quoted_words()
    if not words:
        raise UsageError(f"{parts.keyword} names nothing", hint=f"write {parts.keyword} NAME=value")
    if "=" not in words[0]:
        halves = _BLANKS.split(parts.rest, maxsplit=1)
        if len(halves) != 2:
            raise UsageError(f"{parts.keyword} {words[0][:60]} has no value", hint=f"write {parts.keyword} NAME=value")
        return ((halves[0], halves[1]),)
    pairs: list[Pair] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{word[:60]!r} is not NAME=value", hint="quote a value that holds spaces")
        pairs.append((name, value))
    return tuple(pairs)


def _command(parts: _Parts) -> Command:
    listed = json_list(parts.rest)
    if listed is not None:
        return Command(tuple(listed), in_shell=False)
    return Command((parts.rest,) if parts.rest else (), in_shell=True, documents=parts.documents)


def _run(parts: _Parts) -> Run:
    mounts = tuple(mount_of(text) for text in parts.flags("mount"))
    network = parts.flag("network")
    security = parts.flag("security")
    parts.no_more_flags("mount", "network", "security")
    if network not in ("", *_NETWORKS):
        raise UsageError(f"RUN --network={network[:40]} is unknown", hint=f"it is one of {', '.join(_NETWORKS)}")
    if security not in ("", "sandbox"):
        raise UsageError(f"RUN --security={security[:40]} is not supported", hint="every step runs in the sandbox")
    command = _command(parts)
    if not command.words:
        raise UsageError("RUN has no command", hint='write RUN COMMAND or RUN ["program", "argument"]')
    return Run(parts.place, command, mounts, "" if network == "default" else network)


def _copy(parts: _Parts) -> Copy:
    adds = parts.keyword == "ADD"
    values = {name: parts.flag(name) for name in ("chown", "chmod", *(["checksum"] if adds else ["from"]))}
    links, excluded = parts.switch("link"), tuple(parts.flags("exclude"))
    for unsupported, why in (("parents", "name each directory"), ("keep-git-dir", "clone it first"),
                             ("unpack", "COPY never unpacks and ADD of a local archive always does")):  # fmt: skip
        if parts.switch(unsupported):
            raise UsageError(f"{parts.keyword} --{unsupported} is not supported", hint=why)
    parts.no_more_flags(*values, "link", "exclude")
    words = parts.words()
    if len(words) < 2:
        raise UsageError(
            f"{parts.keyword} takes at least one source and a target", hint=f"{parts.keyword} SOURCE… TARGET"
        )
    *sources, target = words
    if here_word(target) is not None:
        raise UsageError(f"the target of {parts.keyword} is a here-document", hint="a target is a path")
    documents = _own_documents(parts, sources)
    return Copy(
        parts.place,
        adds,
        tuple(word for word in sources if not documents or here_word(word) is None),
        documents,
        target,
        stage=values.get("from", ""),
        owner=values["chown"],
        mode=values["chmod"],
        links=links,
        excluded=excluded,
        checksum=values.get("checksum", ""),
    )


def _own_documents(parts: _Parts, sources: Sequence[str]) -> tuple[Document, ...]:
    """The here-documents among ``sources``, in their order."""
    by_name = {document.name: document for document in parts.documents}
    names = [found[0] for word in sources if (found := here_word(word)) is not None]
    return tuple(by_name[name] for name in names if name in by_name)


def _one(parts: _Parts) -> str:
    parts.no_more_flags()
    return parts.whole()


def _expose(parts: _Parts) -> Expose:
    parts.no_more_flags()
    return Expose(parts.place, tuple(_some(parts, parts.plain_words(), "PORT")))


def _volume(parts: _Parts) -> Volume:
    parts.no_more_flags()
    paths = [path.strip() for path in parts.words()]
    if "" in paths:
        raise UsageError("VOLUME has an empty path", hint="write VOLUME /path")
    return Volume(parts.place, tuple(_some(parts, paths, "PATH")))


def _some(parts: _Parts, words: list[str], what: str) -> list[str]:
    if not words:
        raise UsageError(f"{parts.keyword} names nothing", hint=f"write {parts.keyword} {what}…")
    return words


def _shell(parts: _Parts) -> Shell:
    parts.no_more_flags()
    words = json_list(parts.rest)
    if not words:
        raise UsageError("SHELL takes the JSON form", hint='write it like SHELL ["/bin/bash", "-c"]')
    return Shell(parts.place, tuple(words))


def _entrypoint(parts: _Parts) -> Entrypoint:
    parts.no_more_flags()
    return Entrypoint(parts.place, _command(parts))


def _cmd(parts: _Parts) -> Cmd:
    parts.no_more_flags()
    return Cmd(parts.place, _command(parts))


def _health_check(parts: _Parts) -> HealthCheck:
    words = parts.rest.split(None, 1)
    kind = words[0].upper() if words else ""
    times = tuple((name, nanoseconds(value)) for name in _HEALTH_TIMES if (value := parts.flag(name)))
    retries = parts.flag("retries") or "0"
    parts.no_more_flags(*_HEALTH_TIMES, "retries")
    if not retries.isdecimal() or len(retries) > 9:
        raise UsageError(f"HEALTHCHECK --retries={retries[:40]} is no number", hint="write it like --retries=3")
    if kind == "NONE":
        if len(words) > 1 or times:
            raise UsageError("HEALTHCHECK NONE takes nothing else", hint="write HEALTHCHECK NONE alone")
        return HealthCheck(parts.place, None, (), 0)
    if kind != "CMD":
        raise UsageError(f"HEALTHCHECK {kind[:40]} is unknown", hint="write HEALTHCHECK CMD command, or NONE")
    parts.rest = words[1].strip() if len(words) > 1 else ""
    command = _command(parts)
    if not command.words:
        raise UsageError("HEALTHCHECK CMD has no command", hint="write HEALTHCHECK CMD COMMAND")
    return HealthCheck(parts.place, command, times, int(retries))


def _on_build(parts: _Parts) -> OnBuild:
    parts.no_more_flags()
    inner = statement_of(parts.whole(), parts.escape, parts.place.line, parts.documents)
    if inner.keyword in ("ONBUILD", "FROM", "MAINTAINER"):
        raise UsageError(f"ONBUILD {inner.keyword} is not allowed", hint="write it in the Containerfile that is built")
    parse_statement(inner, parts.escape)  # an error shows here, not in the children
    trigger = _ON_BUILD.sub("", parts.place.text, count=1)
    tails = "".join(f"\n{document.raw}{document.name}" for document in parts.documents)
    return OnBuild(parts.place, trigger + tails)


def _stop_signal(parts: _Parts) -> StopSignal:
    signal = _one(parts)
    if "$" not in signal:
        checked_signal(signal)
    return StopSignal(parts.place, signal)


_READERS: Final = cast(
    "Mapping[str, Callable[[_Parts], From | Step]]",
    {
        "ADD": _copy,
        "ARG": _arg,
        "CMD": _cmd,
        "COPY": _copy,
        "ENTRYPOINT": _entrypoint,
        "ENV": lambda parts: Env(parts.place, _pairs(parts)),
        "EXPOSE": _expose,
        "FROM": _from,
        "HEALTHCHECK": _health_check,
        "LABEL": lambda parts: Label(parts.place, _pairs(parts)),
        "MAINTAINER": lambda parts: Maintainer(parts.place, _one(parts)),
        "ONBUILD": _on_build,
        "RUN": _run,
        "SHELL": _shell,
        "STOPSIGNAL": _stop_signal,
        "USER": lambda parts: User(parts.place, _one(parts)),
        "VOLUME": _volume,
        "WORKDIR": lambda parts: Workdir(parts.place, _one(parts)),
    },
)
