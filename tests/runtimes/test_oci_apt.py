"""Images come from where the host's own packages come from; its apt is asked, not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import HostError, ImageError
from runtimes.oci import apt


def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, more: str = "") -> None:
    """Make ``text``, in a file called ``name``, the only sources that apt sees."""
    (tmp_path / name).write_text(text)
    (tmp_path / "none").mkdir()
    lines = [f'Dir::Etc::sourcelist "{tmp_path / name}";', f'Dir::Etc::sourceparts "{tmp_path}/none";', more]
    (tmp_path / "apt.conf").write_text("\n".join(lines))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


def deb822() -> str:
    """The host's Debian sources as stanzas, whichever way they are written here."""
    found = apt.sources()
    if ".sources" not in found:
        pytest.skip("this host's sources are one-line entries")
    return found[".sources"].strip()


def test_the_hosts_own_debian_sources_are_found() -> None:
    text = "\n".join(apt.sources().values())
    assert "bookworm" in text
    assert "Types:" in text or text.startswith("deb")


def test_a_stanza_is_found_among_comments_other_archives_and_disabled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = deb822()
    other = "Types: deb\nEnabled: no\nURIs: http://other.invalid/debian\nSuites: bookworm\nComponents: main"
    text = f"# a comment\n\n# another\n\n{other}\n\n\n# before\n# it\n{wanted}\n\n{other}\n"
    use(tmp_path, monkeypatch, "host.sources", text)
    assert apt.sources() == {".sources": wanted + "\n"}


def test_a_one_line_entry_is_found_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = dict(line.split(": ", 1) for line in deb822().split("\n\n")[0].splitlines())
    line = f"deb {fields['URIs']} {fields['Suites'].split()[0]} main # ours"
    use(tmp_path, monkeypatch, "host.list", f"# a comment\n\ndeb http://other.invalid/debian bookworm main\n{line}\n")
    assert apt.sources() == {".list": line + "\n"}


def test_a_host_without_debian_says_what_to_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch, "host.list", "deb http://other.invalid/debian bookworm main\n")
    with pytest.raises(ImageError) as caught:
        apt.sources()
    assert "apt-get update" in caught.value.hint


def test_proxies_reach_the_image_builder_and_index_targets_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch, "host.list", "", 'Acquire::http::Proxy "http://user:a%20b@proxy.invalid:3128/";')
    text = apt.settings()
    assert 'Acquire::http::Proxy "http://user:a%20b@proxy.invalid:3128/";' in text.splitlines()
    assert "IndexTargets" not in text


def test_broken_sources_are_an_error_with_apts_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch, "host.list", "nonsense\n")
    with pytest.raises(HostError, match=r"host\.list"):
        apt.sources()
