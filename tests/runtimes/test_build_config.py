"""Containerfiles and the image configuration that must come of them; nothing is run here."""

from __future__ import annotations

import os
from typing import Any

import pytest
from building import EPOCH, Site, base_members, needs_root
from building import site as site  # noqa: PLC0414 - a fixture

from bench.errors import ImageError, UsageError
from bench.journal import Journal
from runtimes.build.command import BuildRequest, build
from runtimes.oci.descriptor import CONFIG, MANIFEST, canonical_json
from runtimes.oci.layer import store_layer, tar_chunks

pytestmark = needs_root
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

TABLE: list[tuple[str, dict[str, Any]]] = [
    ("FROM scratch\nCMD a", {"Cmd": ["/bin/sh", "-c", "a"]}),
    ('FROM scratch\nCMD ["a", "b"]', {"Cmd": ["a", "b"]}),
    ("FROM base:1\n", {"Cmd": ["sh"], "Env": [PATH]}),
    ('FROM base:1\nENTRYPOINT ["e"]', {"Entrypoint": ["e"], "Cmd": None}),
    ('FROM base:1\nCMD ["c"]\nENTRYPOINT ["e"]', {"Entrypoint": ["e"], "Cmd": ["c"]}),
    ('FROM base:1\nENTRYPOINT ["e"]\nCMD ["c"]', {"Entrypoint": ["e"], "Cmd": ["c"]}),
    ('FROM scratch\nENTRYPOINT ["e"]\nENTRYPOINT []', {"Entrypoint": None}),
    ('FROM scratch\nSHELL ["/bin/bash", "-x", "-c"]\nCMD a\nENTRYPOINT b c',
     {"Shell": ["/bin/bash", "-x", "-c"], "Cmd": ["/bin/bash", "-x", "-c", "a"],
      "Entrypoint": ["/bin/bash", "-x", "-c", "b c"]}),
    ("FROM scratch\nENV a=1 b='x y'\nENV a=2 c=$a-$b", {"Env": ["a=2", "b=x y", "c=1-x y"]}),
    ("FROM scratch\nENV old form of  it", {"Env": ["old=form of  it"]}),
    ("FROM scratch\nENV a=1\nENV b=${a}${none:-0}${a:+9}", {"Env": ["a=1", "b=109"]}),
    ("FROM base:1\nENV X=y", {"Env": [PATH, "X=y"]}),
    ("FROM base:1\nENV PATH=/x:$PATH", {"Env": [f"PATH=/x:{PATH[5:]}"]}),
    ("FROM scratch\nARG a=1\nARG b=$a\nLABEL x=$a$b y=\"$a b\"", {"Labels": {"x": "11", "y": "1 b"}}),
    ("FROM scratch\nARG a=arg\nENV a=env\nLABEL x=$a", {"Labels": {"x": "env"}}),
    ("FROM scratch\nENV a=env\nARG a=arg\nLABEL x=$a", {"Labels": {"x": "env"}}),
    ("ARG a=global\nFROM scratch\nLABEL x=[$a]", {"Labels": {"x": "[]"}}),
    ("ARG a=global\nFROM scratch\nARG a\nLABEL x=[$a]", {"Labels": {"x": "[global]"}}),
    ("ARG a=global\nFROM scratch\nARG a=own\nLABEL x=[$a]", {"Labels": {"x": "[own]"}}),
    ("FROM scratch\nARG TARGETOS\nLABEL os=$TARGETOS none=$TARGETARCH.", {"Labels": {"os": "linux", "none": "."}}),
    ("FROM scratch AS a\nARG v=1\nENV e=2\nFROM a\nLABEL x=$v$e", {"Labels": {"x": "12"}, "Env": ["e=2"]}),
    ("FROM scratch AS a\nARG v=1\nFROM scratch\nLABEL x=[$v]", {"Labels": {"x": "[]"}}),
    ("FROM scratch\nUSER app:staff\nSTOPSIGNAL SIGQUIT", {"User": "app:staff", "StopSignal": "SIGQUIT"}),
    ("FROM scratch\nARG u=me\nUSER $u", {"User": "me"}),
    ("FROM scratch\nEXPOSE 80 443/tcp 53/UDP 8000-8002",
     {"ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}}),
    ("FROM scratch\nARG p='80 81'\nEXPOSE $p", {"ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
    ('FROM scratch\nVOLUME /a /b\nVOLUME ["/c d"]', {"Volumes": {"/a": {}, "/b": {}, "/c d": {}}}),
    ("FROM scratch\nWORKDIR /", {"WorkingDir": "/"}),
    ("FROM base:1\nWORKDIR /a\nWORKDIR b\nWORKDIR ../c/./", {"WorkingDir": "/a/c"}),
    ("FROM base:1\nENV d=/x\nWORKDIR $d/y", {"WorkingDir": "/x/y"}),
    ("FROM base:1\nWORKDIR ../../../x", {"WorkingDir": "/x"}),
    ("FROM scratch\nHEALTHCHECK --interval=5s --retries=2 CMD a b",
     {"Healthcheck": {"Test": ["CMD-SHELL", "a b"], "Interval": 5 * 10**9, "Retries": 2}}),
    ('FROM scratch\nHEALTHCHECK CMD ["a"]', {"Healthcheck": {"Test": ["CMD", "a"]}}),
    ("FROM scratch\nHEALTHCHECK CMD a\nHEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
    ("FROM scratch\nONBUILD RUN x\nONBUILD COPY a b", {"OnBuild": ["RUN x", "COPY a b"]}),
    ("FROM scratch\nLABEL \"a b\"=c d.e='f g' multi=\"1\\\n2\"", {"Labels": {"a b": "c", "d.e": "f g", "multi": "12"}}),
    ("# escape=`\nFROM scratch\nENV p=C:\\dir\nLABEL q=`$p", {"Env": ["p=C:\\dir"], "Labels": {"q": "$p"}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TABLE, ids=[text.partition("\n")[2][:50] for text, _ in TABLE])
def test_the_configuration_is(site: Site, text: str, expected: dict[str, Any]) -> None:
    run = site.build(text).run
    assert {key: run.get(key) for key in expected} == expected


def test_arguments_from_the_command_line_win_and_show_in_the_history(site: Site) -> None:
    text = "ARG base=scratch\nFROM $base\nARG a=1\nARG b\nARG c=3\nLABEL x=$a$b$c"
    result = site.build(text, arguments={"a": "A", "b": "B", "unused": "x"})
    assert result.run["Labels"] == {"x": "AB3"}
    assert [row["created_by"] for row in result.config["history"]] == ["ARG a=A", "ARG b=B", "ARG c=3", "LABEL x=AB3"]
    assert any("no ARG takes the build argument unused" in line for line in result.said)


def test_a_base_can_be_chosen_by_argument(site: Site) -> None:
    assert site.build("ARG v\nFROM base:${v:-none}\n", arguments={"v": "1"}).run["Cmd"] == ["sh"]
    with pytest.raises(UsageError, match=r"^Containerfile:2: FROM \$v names nothing"):
        site.build("ARG v\nFROM $v\n")


def test_onbuild_runs_in_children_once_and_is_not_inherited(site: Site) -> None:
    site.build("FROM scratch\nONBUILD LABEL from=parent\nONBUILD ENV x=y\n", tags=["parent"])
    child = site.build("FROM parent\nLABEL own=$x\n", tags=["child"])
    assert child.run["Labels"] == {"from": "parent", "own": "y"}
    assert "OnBuild" not in child.run
    assert site.build("FROM child\n").run["Labels"] == {"from": "parent", "own": "y"}


def test_onbuild_works_between_stages(site: Site) -> None:
    result = site.build("FROM scratch AS a\nONBUILD LABEL x=1\nFROM a\n")
    assert result.run["Labels"] == {"x": "1"}
    assert "OnBuild" not in result.run


def test_labels_of_the_command_line_are_added(site: Site) -> None:
    assert site.build("FROM scratch\nLABEL a=1 b=2", labels={"b": "3", "c": "4"}).run["Labels"] == {
        "a": "1", "b": "3", "c": "4"}  # fmt: skip


def test_the_target_can_be_a_name_or_a_number_and_nothing_else_is_built(site: Site) -> None:
    text = "FROM scratch AS a\nLABEL l=a\nFROM scratch AS b\nLABEL l=b\nFROM nowhere.invalid/x\n"
    assert site.build(text, target="a").run["Labels"] == {"l": "a"}
    assert site.build(text, target="1").run["Labels"] == {"l": "b"}
    assert site.build(text, target="B").run["Labels"] == {"l": "b"}
    with pytest.raises(UsageError, match="has no stage 'c'") as caught:
        site.build(text, target="c")
    assert "a, b, 2" in caught.value.hint


def test_history_layers_and_times_fit_together(site: Site) -> None:
    site.write("f")
    result = site.build("FROM base:1\nENV a=b\nCOPY f /f\nWORKDIR /w\nMAINTAINER me\n")
    history = result.config["history"]
    assert [row["created_by"] for row in history] == ["test", "ENV a=b", "COPY f /f", "WORKDIR /w", "MAINTAINER me"]
    assert [row.get("empty_layer", False) for row in history] == [False, True, False, False, True]
    assert len(result.config["rootfs"]["diff_ids"]) == result.layers == 3
    assert result.config["created"] == "2023-11-14T22:13:20Z"
    assert result.config["author"] == "me"
    assert (result.config["os"], result.config["rootfs"]["type"]) == ("linux", "layers")


def test_the_image_gets_its_names_and_an_id(site: Site) -> None:
    result = site.build("FROM scratch\nLABEL a=b", tags=["one", "localhost:5000/two:3"])
    assert result.built.names == ("one:latest", "localhost:5000/two:3")
    assert site.images.find("one").descriptor.digest == result.built.digest
    assert site.images.find(result.built.id).descriptor.digest == result.built.digest


def test_the_time_is_sources_date_epoch_or_the_option(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("f")
    text = "FROM scratch\nCOPY f /\n"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert site.build(text, timestamp=None).config["created"] == "2001-09-09T01:46:40Z"
    assert site.build(text, timestamp=EPOCH).config["created"] == "2023-11-14T22:13:20Z"
    given = site.build(text, timestamp=None, arguments={"SOURCE_DATE_EPOCH": "0"})
    assert given.config["created"] == "1970-01-01T00:00:00Z"
    for wrong in ("x", "-1", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UsageError, match="is no time"):
            site.build(text, timestamp=None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("FROM scratch\nENV $x=1", "Containerfile:2: a name is empty once its variables are replaced"),
        ("FROM scratch\nENV a=${", "Containerfile:2: a substitution names no variable"),
        ("FROM scratch\nEXPOSE 70000", "Containerfile:2: '70000' is no port"),
        ("FROM scratch\nEXPOSE 9-8", "Containerfile:2: '9-8' is no port"),
        ("FROM scratch\nEXPOSE x", "Containerfile:2: 'x' is no port"),
        ("FROM scratch\nSTOPSIGNAL $x", "Containerfile:2: '' is no signal"),
        ("FROM scratch\nVOLUME $x", "Containerfile:2: VOLUME has an empty path"),
        ("FROM scratch AS x\nCOPY --from=y a b\nFROM x AS y", "Containerfile:2: there is no stage 'y' before"),
        ("FROM scratch\nCOPY --from=0 a b", "Containerfile:2: there is no stage '0' before"),
        ("FROM scratch\nCOPY --from=7 a b", "Containerfile:2: there is no stage '7' before"),
        ("FROM scratch\nCOPY --from=$x a b", "Containerfile:2: --from=$x cannot hold a variable"),
        ("FROM scratch\nCOPY http://x/y z", "Containerfile:2: COPY does not download"),
        ("FROM scratch\nADD https://x/y.git z", "Containerfile:2: ADD of the git repository"),
        ("FROM --platform=a/b/c/d scratch", "Containerfile:1: 'a/b/c/d' is not a platform"),
        ("FROM UPPER CASE x", "Containerfile:1: FROM takes"),
        ("FROM Bad_Name!", "Containerfile:1: "),
        ("ARG x=${\nFROM scratch", "Containerfile:1: a substitution names no variable"),
        ("FROM isomark/debian:sarge", "Containerfile:1: isomark/debian has no 'sarge'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(site: Site, text: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        site.build(text)
    assert fault in caught.value.message


def test_a_base_that_is_not_here_says_how_to_get_it(site: Site) -> None:
    with pytest.raises(ImageError, match=r"^Containerfile:2: no image nowhere:1 here") as caught:
        site.build("# x\nFROM nowhere:1")
    assert "isomark image pull nowhere:1" in caught.value.hint


def test_what_the_store_lacks_is_pulled(site: Site) -> None:
    asked: list[str] = []

    def pull(name: str, platform: object) -> Any:
        asked.append(f"{name} {platform}")
        return site.images.find("base:1")

    with Journal(site.state / "owned") as journal:
        request = BuildRequest(site.context, text="FROM elsewhere:2\n", tags=["got"])
        build(request, site.state, journal, site.said.append, pull)
    assert len(asked) == 1
    assert asked[0].startswith("elsewhere:2 linux/")
    assert site.images.find("got").config["config"]["Cmd"] == ["sh"]


@pytest.mark.parametrize("config", [
    {"Env": "x"}, {"Env": [1]}, {"Env": ["a=\0"]}, {"Cmd": {}}, {"Labels": []}, {"User": 7}, {"OnBuild": [None]}, [],
])  # fmt: skip
def test_a_base_with_a_malformed_configuration_is_refused(site: Site, config: Any) -> None:
    layer = store_layer(site.layout, tar_chunks(base_members()[:1]))
    document = {"architecture": "amd64", "os": "linux", "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}  # fmt: skip
    stored = site.layout.add(CONFIG, canonical_json(document))
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": stored.to_json(),
                "layers": [layer.descriptor.to_json()]}  # fmt: skip
    site.layout.tag("evil:1", site.layout.add(MANIFEST, canonical_json(manifest)))
    if config == []:  # as nothing at all
        assert site.build("FROM evil:1\n").run == {}
        return
    with pytest.raises(ImageError, match="malformed configuration"):
        site.build("FROM evil:1\n")


def test_the_file_is_found_in_the_context_and_named_in_messages(site: Site) -> None:
    def run(**options: Any) -> None:
        with Journal(site.state / "owned") as journal:
            build(BuildRequest(site.context, **options), site.state, journal, site.said.append)

    with pytest.raises(UsageError, match="has no Containerfile and no Dockerfile"):
        run()
    site.write("Dockerfile", "FROM scratch\nNOPE\n")
    with pytest.raises(UsageError, match=r"^Dockerfile:2: unknown instruction NOPE"):
        run()
    site.write("Containerfile", "FROM scratch\n")
    run()
    other = site.write("sub/file", "FROM scratch\nX\n")
    with pytest.raises(UsageError, match=f"{other}:2: unknown"):
        run(file=other)
    with pytest.raises(UsageError, match="cannot read"):
        run(file=site.context / "none")
    site.write("binary", b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
        run(file=site.context / "binary")
    os.mkfifo(site.context / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        run(file=site.context / "pipe")
