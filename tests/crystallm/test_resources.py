from __future__ import annotations

from pathlib import Path

import pytest

from crystallm import resources
from crystallm.resources import project_root, resource_path


def test_a_checkout_reads_its_own_files(root: Path) -> None:
    assert project_root() == root
    assert resource_path("resources/CHANGELOG.md") == root / "resources" / "CHANGELOG.md"
    assert resource_path(Path("resources")).is_dir()


def test_an_installed_package_reads_the_files_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a folder of the same name that another package put beside it."""
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "a.txt").write_text("another package's")
    (tmp_path / "crystallm" / "_files" / "resources").mkdir(parents=True)
    (tmp_path / "crystallm" / "_files" / "resources" / "a.txt").write_text("ours")
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "crystallm")
    assert resource_path("resources/a.txt").read_text() == "ours"


def test_a_wrong_name_is_answered_with_the_closest() -> None:
    with pytest.raises(FileNotFoundError, match=r"resources/CHANGELOGS\.md.*closest is 'resources/CHANGELOG\.md'"):
        resource_path("resources/CHANGELOGS.md")
    with pytest.raises(FileNotFoundError, match="no 'nowhere/at/all'"):
        resource_path("nowhere/at/all")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "resources/../../secret"])
def test_nothing_outside_is_handed_out(name: str) -> None:
    with pytest.raises(ValueError, match="outside the project's folder"):
        resource_path(name)
