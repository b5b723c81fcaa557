"""Folders that are whole or absent, whatever happens while they are written, and manifests of their content."""

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
from trouble import failing, flips, full_disk, killed, unreadable

from dualrate.system.folders import MANIFEST, Damaged, Manifest, new_folder


def write(target: Path, text: str, *, replace: bool = False) -> None:
    with new_folder(target, replace=replace) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole or absent


def test_a_folder_appears_as_a_whole_with_its_parents(tmp_path):
    target = tmp_path / "deep" / "er" / "folder"
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert content(target) == {"a.txt": "a"}
    assert names(target.parent) == ["folder"]


def test_an_empty_folder_is_filled_and_keeps_its_permissions(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o2770)
    write(tmp_path / "folder", "new")
    assert content(tmp_path / "folder") == {"a.txt": "new", "b.txt": "new"}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o2770


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o755), (0o027, 0o750), (0o002, 0o775)])
def test_who_may_enter_a_folder_the_umask_says(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write(tmp_path / "folder", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == expected


def test_a_folder_that_holds_something_is_not_replaced_unless_asked(tmp_path):
    write(tmp_path / "folder", "old")
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "folder", "new")
    assert content(tmp_path / "folder") == {"a.txt": "old", "b.txt": "old"}
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "folder", "old")
    (tmp_path / "folder" / "more.txt").write_text("old")
    write(tmp_path / "folder", "new", replace=True)
    assert content(tmp_path / "folder") == {"a.txt": "new", "b.txt": "new"}
    assert names(tmp_path) == ["folder"]


def test_a_replacement_that_fails_restores_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "folder", "old")
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if target == tmp_path / "folder" and not path.name.endswith("-old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "folder", "new", replace=True)
    assert content(tmp_path / "folder") == {"a.txt": "old", "b.txt": "old"}
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path, replace):
    if replace:
        write(tmp_path / "folder", "old")
    before = names(tmp_path)
    with full_disk(), pytest.raises(OSError, match="too large"):
        write(tmp_path / "folder", "new" * 1000, replace=replace)
    with pytest.raises(KeyError), new_folder(tmp_path / "folder", replace=replace):
        raise KeyError
    assert names(tmp_path) == before
    assert not replace or content(tmp_path / "folder") == {"a.txt": "old", "b.txt": "old"}


@pytest.mark.parametrize("point", ["before rename", "in replacing", "after rename"])
@pytest.mark.parametrize("replace", [True, False])
def test_a_killed_writer_leaves_the_old_or_the_new_and_the_next_one_tidies_up(tmp_path, monkeypatch, point, replace):
    target = tmp_path / "a [folder]"
    if replace:
        write(target, "old")
    code = killed(monkeypatch, point, lambda: write(target, "new", replace=replace))
    assert code == (0 if point == "in replacing" and not replace else 9)
    expected = ("old" if replace else None) if point == "before rename" else "new"
    assert (content(target)["a.txt"] if target.exists() else None) == expected
    write(target, "next", replace=True)
    assert content(target) == {"a.txt": "next", "b.txt": "next"}
    assert names(tmp_path) == ["a [folder]"]


def test_a_writer_at_work_is_left_alone(tmp_path):
    with new_folder(tmp_path / "folder") as first:
        (first / "a.txt").write_text("first")
        write(tmp_path / "other", "other")
        write(tmp_path / "folder", "second")
        assert content(first) == {"a.txt": "first"}
        (tmp_path / "folder" / "a.txt").unlink()
        (tmp_path / "folder" / "b.txt").unlink()
    assert content(tmp_path / "folder") == {"a.txt": "first"}
    assert names(tmp_path) == ["folder", "other"]


# Manifests


@pytest.fixture
def listed(tmp_path):
    """A folder with a manifest of two of its files."""
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"content of {name}")
    Manifest.write(tmp_path, ["a.txt", "b.txt"])
    return tmp_path


def read(folder: Path) -> dict[str, bytes]:
    manifest = Manifest.read(folder, ["a.txt"])
    assert manifest is not None
    return {name: manifest.content(name) for name in manifest.entries}


def test_what_a_manifest_lists_is_read_and_the_rest_is_free(listed):
    (listed / "c.txt").write_text("changed")
    assert read(listed) == {"a.txt": b"content of a.txt", "b.txt": b"content of b.txt"}


def test_no_manifest_is_none(tmp_path):
    assert Manifest.read(tmp_path, []) is None
    assert Manifest.read(tmp_path / "nowhere", []) is None


@pytest.mark.parametrize("name", ["a.txt", "b.txt", MANIFEST])
def test_any_flipped_bit_is_found(listed, name):
    for flipped in flips((listed / name).read_bytes(), 600):
        (listed / name).write_bytes(flipped)
        with pytest.raises(Damaged, match=re.escape(f"{listed}/")):
            read(listed)


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", "[]", "{}", '{"files": []}', '{"files": {"a.txt": 3}}', '{"files": {"a.txt": {"size": 3}}}',
        '{"files": {"a.txt": {"size": 1e400, "sha256": ""}}}', '{"files": {"a.txt": {"size": 16, "sha256": [[]]}}}',
        "[" * 100_000, '{"files":' * 100_000, '{"files": {}}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_damage(listed, text):
    (listed / MANIFEST).write_text(text)
    with pytest.raises(Damaged, match=r"MANIFEST\.json: |a\.txt: "):
        read(listed)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.txt", "/etc/hostname", "a\0b", "\ud800", "x" * 300, "a/../a.txt"]
)
def test_a_manifest_cannot_reach_outside_nor_name_what_is_no_file(listed, name):
    manifest = json.loads((listed / MANIFEST).read_text())
    manifest["files"][name] = {"size": 0, "sha256": ""}
    (listed / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Damaged):
        read(listed)


@pytest.mark.parametrize("name", ["a.txt", MANIFEST])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_is_no_damage(listed, monkeypatch, name, number):
    failing(monkeypatch, listed / name, number)
    with pytest.raises(OSError, match=name) as caught:
        read(listed)
    assert not isinstance(caught.value, Damaged)
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["a.txt", MANIFEST, "."])
def test_a_file_of_somebody_else_is_no_damage(listed, name):
    with unreadable(listed / name, listed), pytest.raises(PermissionError):
        read(listed)
