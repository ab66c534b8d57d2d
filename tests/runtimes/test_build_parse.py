"""What a Containerfile says, and a clear word about what it does not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from runtimes.build.instructions import (
    KEYWORDS,
    Arg,
    Cmd,
    Command,
    Copy,
    Entrypoint,
    Env,
    Expose,
    HealthCheck,
    Label,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    Step,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from runtimes.build.parse import parse, parse_trigger


def steps(text: str) -> list[Step]:
    return list(parse(f"FROM scratch\n{text}").stages[0].steps)


def only(text: str) -> Step:
    found = steps(text)
    assert len(found) == 1
    return found[0]


def test_stages_have_names_numbers_and_platforms() -> None:
    file = parse("FROM a AS One\nFROM --platform=linux/arm64 b as two\nfrom c")
    assert [(s.number, s.start.base, s.start.name, s.start.platform) for s in file.stages] == [
        (0, "a", "one", ""), (1, "b", "two", "linux/arm64"), (2, "c", "", "")]  # fmt: skip
    assert [s.title for s in file.stages] == ["one", "two", "2"]


def test_arguments_before_the_first_stage_are_global() -> None:
    file = parse("ARG A=1\nARG B C='x y'\nFROM x\nARG A")
    assert [argument.names for argument in file.arguments] == [(("A", "1"),), (("B", None), ("C", "'x y'"))]
    assert isinstance(file.stages[0].steps[0], Arg)


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("ENV a=b", [("a", "b")]),
        ("ENV a=b c=d", [("a", "b"), ("c", "d")]),
        ('ENV a="x y" b=c\\ d', [("a", '"x y"'), ("b", "c\\ d")]),
        ("ENV a", None),
        ("ENV a b c  d", [("a", "b c  d")]),
        ("ENV a=b c", None),
        ("ENV =b", None),
        ("ENV a= b=", [("a", ""), ("b", "")]),
        ("ENV", None),
        ('ENV a=""', [("a", '""')]),
    ],
)
def test_both_forms_of_env_and_label(line: str, pairs: list[tuple[str, str]] | None) -> None:
    for keyword, kind in (("ENV", Env), ("LABEL", Label)):
        text = line.replace("ENV", keyword)
        if pairs is None:
            with pytest.raises(UsageError, match=r"^Containerfile:2: "):
                only(text)
        else:
            step = only(text)
            assert isinstance(step, kind)
            assert list(step.pairs) == pairs


@pytest.mark.parametrize(
    ("rest", "command"),
    [
        ("echo hi", Command(("echo hi",), in_shell=True)),
        ('["echo", "hi"]', Command(("echo", "hi"), in_shell=False)),
        ('[ "a" ]  ', Command(("a",), in_shell=False)),
        ("['a']", Command(("['a']",), in_shell=True)),
        ('["a", ]', Command(('["a", ]',), in_shell=True)),
        ("[ -f x ] && y", Command(("[ -f x ] && y",), in_shell=True)),
        ('["unicode \\u00e9"]', Command(("unicode é",), in_shell=False)),
    ],
)
def test_commands_are_json_or_for_the_shell(rest: str, command: Command) -> None:
    for keyword in ("RUN", "CMD", "ENTRYPOINT"):
        step = only(f"{keyword} {rest}")
        assert isinstance(step, Run | Cmd | Entrypoint)
        assert step.command == command


def test_json_of_something_else_than_strings_is_refused() -> None:
    with pytest.raises(UsageError, match="something else than strings"):
        only('CMD ["a", 1]')


def test_an_empty_cmd_and_entrypoint_reset() -> None:
    assert only("CMD []") == Cmd(only("CMD []").place, Command((), in_shell=False))
    step = only("ENTRYPOINT []")
    assert isinstance(step, Entrypoint)
    assert step.command.words == ()


def test_copy_takes_flags_json_and_plain_words() -> None:
    step = only('COPY --from=x --chown=a:b --chmod=755 --link --exclude=*.o --exclude=y ["a b", "c", "/d/"]')
    assert isinstance(step, Copy)
    assert (step.sources, step.target, step.stage, step.owner, step.mode) == (("a b", "c"), "/d/", "x", "a:b", "755")
    assert step.links
    assert step.excluded == ("*.o", "y")
    assert not step.adds
    step = only("ADD --checksum=sha256:00 http://x/y z")
    assert isinstance(step, Copy)
    assert (step.adds, step.checksum, step.sources) == (True, "sha256:00", ("http://x/y",))


def test_simple_instructions() -> None:
    found = steps(
        'WORKDIR /a b\nUSER me:us\nEXPOSE 80 443/tcp\nVOLUME /x /y\nVOLUME ["/z"]\nSHELL ["/bin/bash", "-c"]\n'
        "STOPSIGNAL SIGQUIT\nMAINTAINER me <me@x>"
    )
    assert [vars(step) | {"place": None} for step in found] == [
        {"place": None, "path": "/a b"}, {"place": None, "name": "me:us"}, {"place": None, "ports": ("80", "443/tcp")},
        {"place": None, "paths": ("/x", "/y")}, {"place": None, "paths": ("/z",)},
        {"place": None, "words": ("/bin/bash", "-c")}, {"place": None, "signal": "SIGQUIT"},
        {"place": None, "name": "me <me@x>"},
    ]  # fmt: skip
    assert [type(step) for step in found] == [Workdir, User, Expose, Volume, Volume, Shell, StopSignal, Maintainer]


def test_health_checks() -> None:
    step = only("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f x || exit 1")
    assert isinstance(step, HealthCheck)
    assert step.command == Command(("curl -f x || exit 1",), in_shell=True)
    assert dict(step.times) == {"interval": 90_000_000_000, "timeout": 500_000_000}
    assert step.retries == 3
    none = only("HEALTHCHECK NONE")
    assert isinstance(none, HealthCheck)
    assert none.command is None


def test_lines_go_on_with_comments_and_empty_lines_in_between() -> None:
    file = parse("FROM scratch\nRUN a \\\n  # a comment\n    b \\\n\n # another \\\n  c\nUSER x")
    run, user = file.stages[0].steps
    assert isinstance(run, Run)
    assert run.command.words[0].split() == ["a", "b", "c"]
    assert (run.place.line, user.place.line) == (2, 8)
    assert file.warnings == ((5, "an empty line inside a continued one"),)


@pytest.mark.parametrize("ending", ["\\", "\\  ", "\\\t"])
def test_blanks_may_follow_the_escape(ending: str) -> None:
    step = only(f"RUN a {ending}\nb")
    assert isinstance(step, Run)
    assert step.command.words == ("a b",)


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    step = parse("\ufeffFROM scratch\r\nRUN a \\\r\n b\r\n").stages[0].steps[0]
    assert isinstance(step, Run)
    assert step.command.words == ("a  b",)


def test_a_hash_inside_a_line_is_no_comment() -> None:
    step = only("RUN echo # not a comment")
    assert isinstance(step, Run)
    assert step.command.words == ("echo # not a comment",)


def test_the_escape_directive_changes_continuation() -> None:
    file = parse("# syntax=docker/dockerfile:1\n# escape=`\nFROM scratch\nRUN a `\n b\nENV p=c:\\dir")
    run, env = file.stages[0].steps
    assert isinstance(run, Run)
    assert isinstance(env, Env)
    assert run.command.words == ("a  b",)
    assert env.pairs == (("p", "c:\\dir"),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# escape=\\\n# escape=`\nFROM x", "given twice"),
        ("# escape=x\nFROM x", "cannot be"),
    ],
)
def test_wrong_directives_are_refused(text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse(text)


def test_a_directive_after_anything_else_is_a_comment() -> None:
    assert parse("# hello\n# escape=`\nFROM x").escape == "\\"
    assert parse("# unknown=1\n# escape=`\nFROM x").escape == "\\"


def test_here_documents_of_run() -> None:
    step = only("RUN <<EOF\necho one\necho two\nEOF")
    assert isinstance(step, Run)
    assert [(d.name, d.text, d.expands) for d in step.command.documents] == [("EOF", "echo one\necho two\n", True)]
    step = only("RUN <<A cat > /a && <<'B' cat > /b\none\nA\ntwo $x\nB")
    assert isinstance(step, Run)
    assert [(d.name, d.raw, d.expands) for d in step.command.documents] == [
        ("A", "one\n", True), ("B", "two $x\n", False)]  # fmt: skip
    step = only("RUN <<-E\n\t\tone\n\ttwo\n\tE")
    assert isinstance(step, Run)
    assert step.command.documents[0].text == "one\ntwo\n"


def test_here_documents_of_copy() -> None:
    step = only('COPY <<a <<"b" plain /dir/\n$one\na\n$two\nb')
    assert isinstance(step, Copy)
    assert step.sources == ("plain",)
    assert [(d.name, d.text, d.expands) for d in step.documents] == [("a", "$one\n", True), ("b", "$two\n", False)]


def test_what_looks_like_a_here_document_and_is_none() -> None:
    for text in ("RUN cat <<<word", "RUN echo $((1<<2))", 'RUN ["sh", "-c", "cat <<EOF"]', "CMD cat <<EOF",
                 "RUN echo 'a <<EOF'"):  # fmt: skip
        step = only(text)
        assert isinstance(step, Run | Cmd)
        assert step.command.documents == ()


def test_comments_and_instructions_inside_a_here_document_are_its_text() -> None:
    found = steps("COPY <<E /x\n# no comment\nRUN not me\nback\\\nE\nUSER u")
    assert isinstance(found[0], Copy)
    assert found[0].documents[0].text == "# no comment\nRUN not me\nback\\\n"
    assert isinstance(found[1], User)
    assert found[1].place.line == 7


def test_onbuild_keeps_its_instruction_with_its_documents() -> None:
    step = only("ONBUILD COPY <<E /x\ntext\nE")
    assert isinstance(step, OnBuild)
    assert step.trigger == "COPY <<E /x\ntext\nE"
    again = parse_trigger(step.trigger, "\\", "base")
    assert isinstance(again, Copy)
    assert again.documents[0].text == "text\n"


@pytest.mark.parametrize("trigger", ["FROM x", "ONBUILD RUN x", "RUN a\nRUN b", "", "NOPE x", "MAINTAINER me"])
def test_a_malicious_trigger_in_an_image_is_refused(trigger: str) -> None:
    with pytest.raises(UsageError):
        parse_trigger(trigger, "\\", "base")


WRONG = [
    ("RUN x", "Containerfile:1: RUN stands before any FROM"),
    ("", "holds no instructions"),
    ("# only a comment", "holds no instructions"),
    ("ARG x", "has no FROM"),
    ("FROM", "Containerfile:1: FROM takes one argument, or three"),
    ("FROM a b", "Containerfile:1: FROM takes one argument, or three"),
    ("FROM a AS 1x", "a stage cannot be called '1x'"),
    ("FROM --platfrom=x a", "Containerfile:1: FROM has no flag --platfrom"),
    ("FROM a\nCOYP a b", "Containerfile:2: unknown instruction COYP"),
    ("FROM a\n\nRUN", "Containerfile:3: RUN has no command"),
    ("FROM a\nCOPY x", "Containerfile:2: COPY takes at least one source and a target"),
    ("FROM a\nCOPY x <<E\nE", "the target of COPY is a here-document"),
    ("FROM a\nCOPY --form=x a b", "COPY has no flag --form"),
    ("FROM a\nCOPY --from a b", "COPY --from has no value"),
    ("FROM a\nCOPY --from=a --from=b c d", "given twice"),
    ("FROM a\nCOPY --parents a b", "COPY --parents is not supported"),
    ("FROM a\nRUN --mount=type=secret,id=x y", "RUN --mount=type=secret is not supported"),
    ("FROM a\nRUN --mount=type=bind,target=/x y", "RUN --mount=type=bind is not supported"),
    ("FROM a\nRUN --mount=target=/x y", "RUN --mount=type=bind is not supported"),
    ("FROM a\nRUN --mount=type=zzz,target=/x y", "RUN --mount=type=zzz is unknown"),
    ("FROM a\nRUN --mount=type=cache y", "has no target"),
    ("FROM a\nRUN --mount=type=tmpfs,target=/x,mode=1 y", "has no option mode"),
    ("FROM a\nRUN --network=lan y", "RUN --network=lan is unknown"),
    ("FROM a\nRUN --security=insecure y", "is not supported"),
    ("FROM a\nRUN <<E\nx", "Containerfile:2: the here-document <<E does not end"),
    ("FROM a\nENV", "Containerfile:2: ENV names nothing"),
    ("FROM a\nARG =x", "ARG has a value without a name"),
    ("FROM a\nWORKDIR", "Containerfile:2: WORKDIR takes an argument"),
    ("FROM a\nSHELL /bin/sh", "SHELL takes the JSON form"),
    ("FROM a\nEXPOSE", "EXPOSE names nothing"),
    ('FROM a\nVOLUME [""]', "VOLUME has an empty path"),
    ("FROM a\nSTOPSIGNAL SIGNOPE", "'SIGNOPE' is no signal"),
    ("FROM a\nHEALTHCHECK", "unknown"),
    ("FROM a\nHEALTHCHECK CMD", "has no command"),
    ("FROM a\nHEALTHCHECK NONE x", "takes nothing else"),
    ("FROM a\nHEALTHCHECK --interval=5 CMD x", "'5' is no duration"),
    ("FROM a\nHEALTHCHECK --interval=1ns CMD x", "shorter than 1ms"),
    ("FROM a\nHEALTHCHECK --retries=x CMD x", "is no number"),
    ("FROM a\nONBUILD FROM x", "ONBUILD FROM is not allowed"),
    ("FROM a\nONBUILD ONBUILD RUN x", "ONBUILD ONBUILD is not allowed"),
    ("FROM a\nONBUILD RNU x", "unknown instruction RNU"),
    ('FROM a\nCOPY --chown="x a b', "a quote is not closed"),
]


@pytest.mark.parametrize(("text", "fault"), WRONG, ids=[text.rpartition("\n")[2][:30] or "empty" for text, _ in WRONG])
def test_what_is_wrong_is_named_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert fault in caught.value.message


@pytest.mark.parametrize(("typo", "meant"), [("COYP", "COPY"), ("RNU", "RUN"), ("ENTRYPONT", "ENTRYPOINT")])
def test_an_unknown_instruction_offers_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"FROM x\n{typo} y")
    assert caught.value.hint == f"did you mean {meant}?"


PIECES = st.sampled_from([
    "\n", " ", "\\\n", "\\", "#", "<<", "<<-", "EOF", "EOF\n", '"', "'", "[", "]", ",", "=", "--", "--from=",
    "--mount=", "type=cache", "$", "${", "}", "`", "\t", "\r\n", "x", "1", "/", "é", "\0", *KEYWORDS,
])  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join))
@settings(max_examples=1500, deadline=None)
def test_any_text_is_understood_or_refused(text: str) -> None:
    for whole in (text, f"FROM x\n{text}"):
        with contextlib.suppress(UsageError):
            parse(whole)


@given(st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=6), st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_argument_is_understood_or_refused(keywords: list[str], rest: str) -> None:
    with contextlib.suppress(UsageError):
        parse("FROM x\n" + "".join(f"{keyword} {rest}\n" for keyword in keywords))


def test_deeply_nested_json_is_a_plain_command() -> None:
    step = only("RUN " + "[" * 100_000)
    assert isinstance(step, Run)
    assert step.command.in_shell
