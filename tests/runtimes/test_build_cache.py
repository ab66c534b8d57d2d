"""The layer cache: what hits, what misses, and that it is never half."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from building import MTIME, Site, base_members, left_behind, needs_root
from building import site as site  # noqa: PLC0414 - a fixture

from bench.clean import clean
from bench.errors import HostError, ImageError
from bench.journal import Journal
from bench.state import journal_directory
from runtimes.build.cache import Cache, blobs_in_use, prune
from runtimes.oci.descriptor import Descriptor

pytestmark = needs_root
KILLS = int(os.environ.get("ISOMARK_KILLS", "12"))
TEXT = """\
FROM base:1
ARG v=1
COPY d /d
RUN cat $(find /d -type f | sort) > /all
ENV after=$v
WORKDIR /w
COPY --from=base:1 /etc/group g
"""


def test_the_second_build_finds_everything_and_gives_the_same_image(site: Site) -> None:
    site.write("d/f")
    first = site.build(TEXT, timestamp=None)
    assert (first.cached, first.done) == (0, 4)
    time.sleep(1.1)
    again = site.build(TEXT, timestamp=None)
    assert (again.cached, again.done) == (4, 0)
    assert again.built.digest == first.built.digest, "also its times are those of the first"


def test_a_touched_file_hits_and_a_changed_one_misses(site: Site) -> None:
    file = site.write("d/f", "one")
    site.build(TEXT)
    os.utime(file, (MTIME, MTIME))
    os.chown(file, 7, 7)
    assert site.build(TEXT).done == 0, "neither time nor owner of a context file count"
    site.write("d/f", "two")
    changed = site.build(TEXT)
    assert changed.done == 4
    assert changed.read("all") == "two"
    site.write("d/f", "one")
    assert site.build(TEXT).done == 0, "the first content's layers are still there"


@pytest.mark.parametrize("change", ["mode", "name", "new", "link", "directory mode"])
def test_everything_else_about_a_source_counts(site: Site, change: str) -> None:
    file = site.write("d/f")
    site.build(TEXT)
    if change == "mode":
        file.chmod(0o600)
    elif change == "name":
        file.rename(file.with_name("g"))
    elif change == "new":
        (site.context / "d/empty").mkdir()
    elif change == "link":
        (site.context / "d/l").symlink_to("f")
    else:
        (site.context / "d").chmod(0o700)
    assert site.build(TEXT).done > 0


def test_what_is_ignored_or_not_named_does_not_count(site: Site) -> None:
    site.write("d/f")
    site.write("other")
    site.write(".dockerignore", "**/ignored\n")
    site.build(TEXT)
    site.write("d/ignored")
    site.write("other", "changed")
    assert site.build(TEXT).done == 0


@pytest.mark.parametrize(
    ("before", "after", "missed"),
    [
        ("RUN true", "RUN  true", 0),
        ("RUN true", "RUN true;", 1),
        ("RUN true", 'RUN ["true"]', 1),
        ("ENV a=1\nRUN true", "ENV a=2\nRUN true", 1),
        ("ARG a=1\nRUN true", "ARG a=2\nRUN true", 1),
        ("LABEL a=1\nRUN true", "LABEL a=2\nRUN true", 0),
        ("EXPOSE 80\nRUN true", "RUN true", 0),
        ("RUN true\nARG a=1", "RUN true\nARG a=2", 0),
        ("USER 0\nRUN true", "USER 1\nRUN true", 1),
        ("WORKDIR /\nRUN true", "WORKDIR /tmp\nRUN true", 2),
        ('RUN true', 'SHELL ["/bin/sh", "-ec"]\nRUN true', 1),
        ("RUN true", "RUN --network=none true", 0),
        ("RUN true", "RUN --mount=type=tmpfs,target=/t true", 1),
        ("COPY f /a", "COPY f /b", 1),
        ("COPY f /a", "COPY --chmod=600 f /a", 1),
        ("COPY f /a", "COPY --chown=1 f /a", 1),
        ("COPY f /a", "COPY ./f /x/../a", 0),
        ("COPY f g /d/", "COPY g f /d/", 1),
        ("COPY f /a\nCOPY g /b", "COPY g /b\nCOPY f /a", 2),
        ("COPY <<E /a\n1\nE", "COPY <<E /a\n2\nE", 1),
        ("COPY f /a", "ADD f /a", 1),
    ],
)  # fmt: skip
def test_what_decides_a_step_decides_its_key(site: Site, before: str, after: str, missed: int) -> None:
    site.write("f", "same")
    site.write("g", "same")
    site.build(f"FROM base:1\n{before}\n")
    result = site.build(f"FROM base:1\n{after}\n")
    if "COPY ./f" in after:
        assert result.read("a") == "same"
    assert result.done == missed


def test_a_build_argument_counts_only_where_it_is_declared(site: Site) -> None:
    text = "FROM base:1\nRUN true\nARG v\nRUN echo $v\n"
    site.build(text, arguments={"v": "1"})
    assert site.build(text, arguments={"v": "2"}).done == 1
    assert site.build(text, arguments={"v": "1", "other": "x"}).done == 0


def test_another_stage_counts_by_what_is_copied(site: Site) -> None:
    text = (
        "FROM base:1 AS build\nRUN echo {} > /notes && echo fixed > /out\nFROM scratch\nCOPY --from=build /out /out\n"
    )
    site.build(text.format(1))
    again = site.build(text.format(2))
    assert (again.done, again.cached) == (1, 1), "the stage ran again, and what it gives is the same"


def test_another_base_misses(site: Site) -> None:
    site.build("FROM base:1\nRUN true\n")
    site.image("base:2", [member for member in base_members() if member.path != "home"])
    assert site.build("FROM base:2\nRUN true\n").done == 1


def test_without_cache_all_is_done_again_and_comes_out_the_same(site: Site) -> None:
    site.write("d/f")
    text = TEXT + "RUN seq 1000 | sort > /sorted; ln /sorted /hard; touch /now\nCOPY <<E /doc\ntext\nE\n"
    first = site.build(text)
    time.sleep(1.1)
    os.utime(site.context / "d", None)
    again = site.build(text, use_cache=False)
    assert again.done == 6
    assert again.built.digest == first.built.digest


def test_two_states_build_the_same_image(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        site = Site(tmp_path / name / "state", tmp_path / name / "context")
        site.write("d/f", mode=0o640)
        digests.append(site.build(TEXT).built.digest)
        time.sleep(1.1)
    assert digests[0] == digests[1]


def _build_in_parallel(state: Path, context: Path, name: str) -> None:
    with (state / f"{name}.digest").open("w") as out:
        out.write(Site(state, context).build(TEXT).built.digest)


def test_parallel_builds_of_the_same_agree(site: Site) -> None:
    site.write("d/f", os.urandom(1_000_000).hex())
    fork = multiprocessing.get_context("fork")
    builders = [fork.Process(target=_build_in_parallel, args=(site.state, site.context, str(n))) for n in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(120)
    assert [builder.exitcode for builder in builders] == [0] * 4
    assert len({path.read_text() for path in site.state.glob("*.digest")}) == 1
    assert site.build(TEXT).done == 0
    assert left_behind(site.state) == []


def test_a_lost_blob_or_directory_is_a_miss(site: Site) -> None:
    site.write("d/f")
    site.build(TEXT)
    key = min((site.state / "build/keys").iterdir())
    digest = json.loads(key.read_text())["layer"]["digest"].removeprefix("sha256:")
    (site.layout.root / "blobs/sha256" / digest).unlink()
    assert site.build(TEXT).done >= 1
    shutil.rmtree(next((site.state / "build/layers").iterdir()))
    assert site.build(TEXT).done >= 1
    key.write_bytes(b"torn {")
    assert site.build(TEXT).done >= 1
    assert site.build(TEXT).done == 0


def test_a_failed_step_is_not_kept(site: Site) -> None:
    for _ in range(2):
        with pytest.raises(ImageError):
            site.build("FROM base:1\nRUN touch /x\nRUN touch /y; false\n")
    assert site.said.count("      CACHED") == 1
    assert left_behind(site.state) == []


def test_a_source_that_changes_meanwhile_is_found_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtimes.build import copying

    site.write("f", "before")
    survey = copying.survey

    def change(order: copying.Order, root: str | None) -> str:
        digest = survey(order, root)
        site.write("f", "after")
        return digest

    monkeypatch.setattr(copying, "survey", change)
    with pytest.raises(ImageError, match="the context changed while it was copied"):
        site.build("FROM scratch\nCOPY f /\n")
    assert list((site.state / "build/keys").iterdir()) == []


def test_the_collector_is_told_what_the_cache_needs(site: Site) -> None:
    site.write("d/f")
    result = site.build(TEXT)
    used = set(blobs_in_use(site.state))
    manifest = site.layout.document(site.images.load("", _descriptor(site, result.built.digest)).descriptor)
    assert {layer["digest"] for layer in manifest["layers"][1:]} == used


def _descriptor(site: Site, digest: str) -> Descriptor:
    from building import _manifests

    return _manifests(site.layout, digest)[0]


def test_prune_forgets_what_was_not_used_and_nothing_else(site: Site) -> None:
    site.write("d/f")
    site.build(TEXT)
    old = time.time() - 1000
    for key in (site.state / "build/keys").iterdir():
        os.utime(key, (old, old))
    site.build("FROM base:1\nRUN echo new > /new\nRUN --mount=type=cache,target=/c echo x > /c/f\n")
    with Journal(journal_directory(site.state)) as journal:
        pruned = prune(site.state, journal, unused_seconds=500)
        assert (pruned.keys, pruned.layers) == (4, 4)
        assert site.build("FROM base:1\nRUN echo new > /new\n").done == 0
        everything = prune(site.state, journal)
        assert everything.keys == 2
        assert list((site.state / "build/layers").iterdir()) == []
        assert list((site.state / "build/mounts").iterdir()) == []
        assert prune(site.state / "none", journal).keys == 0
    assert site.build(TEXT).done == 4
    assert left_behind(site.state) == []


def test_prune_waits_for_no_build_and_takes_nothing_from_it(site: Site) -> None:
    site.build("FROM base:1\nRUN true\n")
    with (
        Journal(journal_directory(site.state)) as journal,
        Cache(site.state, site.layout),
        pytest.raises(HostError, match="a build runs"),
    ):
        prune(site.state, journal)


def _build_quietly(state: Path, context: Path) -> None:
    os.close(2)
    Site(state, context).build(TEXT, use_cache=False)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_entries_only(site: Site) -> None:
    site.write("d/f", os.urandom(200_000).hex())
    expected = site.build(TEXT).built.digest
    seed = random.randrange(2**32)
    choose = random.Random(seed)
    begin = time.monotonic()
    site.build(TEXT, use_cache=False)
    length = time.monotonic() - begin
    for number in range(KILLS):
        builder = multiprocessing.get_context("fork").Process(target=_build_quietly, args=(site.state, site.context))
        builder.start()
        time.sleep(choose.uniform(0, length * 1.2))
        assert builder.pid is not None
        os.kill(builder.pid, signal.SIGKILL)
        builder.join()
        assert [removal for removal in clean(journal_directory(site.state)) if removal.fault] == [], f"seed {seed}"
        assert left_behind(site.state) == [], f"kill {number}, seed {seed}"
    again = site.build(TEXT)
    assert again.built.digest == expected
    checked = subprocess.run(["skopeo", "inspect", f"oci:{site.layout.root}:base:1"], capture_output=True, check=False)
    assert checked.returncode == 0
