"""What doctor is told about processes and containers."""

from __future__ import annotations

from pathlib import Path

from small_tree import needs_root

from runtimes.checks import findings


@needs_root
def test_findings_name_cgroups_overlayfs_and_user_namespaces_and_leave_nothing(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert [finding.subject for finding in found] == ["cgroups", "overlayfs", "user namespaces"]
    assert all(finding.message for finding in found)
    assert all(finding.remedy for finding in found if finding.severity != "ok")
    assert [path.name for path in tmp_path.rglob("*")] == ["owned"]


@needs_root
def test_a_state_directory_that_cannot_be_written_is_a_problem_with_a_remedy() -> None:
    overlay = findings(Path("/proc/none"))[1]
    assert overlay.severity == "problem"
    assert overlay.remedy
