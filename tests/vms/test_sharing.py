"""A host that cannot share directories with guests is told so before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.driver import Lab
from bench.errors import DriverUnavailable
from vms.driver import qemu
from vms.options import DEFAULTS, DomainOptions
from vms.sharing import require_sharing

ROOT = DomainOptions(root="virtiofs")


@pytest.fixture
def described(tmp_path: Path) -> tuple[Path, Path]:
    """The distribution's descriptions, with one of a virtiofsd in them, and the administrator's, with none."""
    daemon, ours, theirs = tmp_path / "virtiofsd", tmp_path / "usr", tmp_path / "etc"
    daemon.touch(0o755)
    ours.mkdir()
    theirs.mkdir()
    (ours / "50-virtiofsd.json").write_text(json.dumps({"type": "fs", "binary": str(daemon)}))
    (ours / "50-gpu.json").write_text(json.dumps({"type": "gpu", "binary": "/bin/true"}))
    return ours, theirs


def test_who_shares_nothing_needs_nothing(tmp_path: Path) -> None:
    require_sharing(DEFAULTS, [tmp_path])


def test_a_directory_is_shared_by_a_daemon_that_is_there(described: tuple[Path, Path], tmp_path: Path) -> None:
    require_sharing(DomainOptions(virtiofs=tmp_path), described)


@pytest.mark.parametrize("lack", ["program", "permission", "description", "hidden", "torn"])
def test_a_virtiofsd_that_is_missing_is_told_with_its_package(
    lack: str, described: tuple[Path, Path], tmp_path: Path
) -> None:
    match lack:
        case "program":
            (tmp_path / "virtiofsd").unlink()
        case "permission":
            (tmp_path / "virtiofsd").chmod(0o644)
        case "description":
            (described[0] / "50-virtiofsd.json").unlink()
        case "hidden":
            (described[1] / "50-virtiofsd.json").touch()
        case "torn":
            (described[0] / "50-virtiofsd.json").write_text("{")
    with pytest.raises(DriverUnavailable, match="virtiofsd") as caught:
        require_sharing(DomainOptions(virtiofs=tmp_path), described)
    assert "apt-get install virtiofsd" in caught.value.hint


def test_a_root_is_shared_by_root_only(described: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DriverUnavailable, match="root only") as caught:
        require_sharing(ROOT, described)
    assert 'root = "disk"' in caught.value.hint
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    require_sharing(ROOT, described)


def test_a_directory_that_is_not_there_makes_the_driver_unavailable(lab: Lab, tmp_path: Path) -> None:
    plain = qemu(lab)
    missing = tmp_path / "none"
    configured = plain.configured({"virtiofs": str(missing)})
    try:
        plain.check()
        with pytest.raises(DriverUnavailable, match=str(missing)) as caught:
            configured.check()
        missing.mkdir()
        configured.check()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    finally:
        configured.close()
        plain.close()
    assert "make it" in caught.value.hint
