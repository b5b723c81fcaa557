"""Files written whole or not at all, and errors that say which file it was."""

import errno
import fcntl
import gzip
import json
import os
import runpy
import stat
from pathlib import Path

import pytest
import torch
from trouble import failing, forked, full_disk, unreadable

from dualrate.pipelines.folder import check_files
from dualrate.system import files
from dualrate.system.files import (
    append_record,
    naming,
    open_tensors,
    parse_json,
    read_bytes,
    read_json,
    read_records,
    tensors_of,
    whole,
    write_tensors,
    write_unsynced,
    write_whole,
    written_aside,
)

TENSORS = {"w": torch.arange(6.0).view(2, 3)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_error_gets_the_file_it_does_not_name():
    with pytest.raises(OSError, match=r"No space left on device: 'images\.npy'") as caught, naming("images.npy"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match=r"^grid\.png: broken stream$"), naming(Path("grid.png")):
        raise OSError("broken stream")


def test_other_errors_stay_what_they_are():
    with pytest.raises(FileNotFoundError, match="'inner'"), naming("outer"):
        Path("inner").read_text()
    with pytest.raises(OSError, match=r"^cut\.gz is cut$"), naming("cut.gz"):
        raise OSError("cut.gz is cut")
    with pytest.raises(gzip.BadGzipFile, match=r"^no gzip$"), naming("outer"):
        raise gzip.BadGzipFile("no gzip")
    with pytest.raises(ValueError, match=r"^wrong$"), naming("outer"):
        raise ValueError("wrong")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_reading_that_fails_names_the_file(tmp_path, monkeypatch, number):
    (tmp_path / "x.json").write_text("{}")
    failing(monkeypatch, tmp_path / "x.json", number)
    for read in (read_bytes, read_json):
        with pytest.raises(OSError, match=r"x\.json") as caught:
            read(tmp_path / "x.json")
        assert caught.value.errno == number


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x81", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json_is_one_error(content):
    with pytest.raises(ValueError, match=r"^x\.json is not JSON: "):
        parse_json(content, "x.json")


# Written whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "first")
    write_whole(tmp_path / "a.txt", b"second")
    assert (tmp_path / "a.txt").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("write", [write_whole, write_unsynced])
def test_a_file_that_cannot_be_written_stays_what_it_was(tmp_path, write):
    write(tmp_path / "a.txt", b"first")
    with full_disk(), pytest.raises(OSError, match=r"a\.txt'"):
        write(tmp_path / "a.txt", bytes(5000))
    with pytest.raises(IsADirectoryError), whole(tmp_path / "a.txt") as aside:
        (aside.write_text("half"), tmp_path.read_text())
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_tells_its_file_and_nothing_else_does(tmp_path):
    with whole(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        assert written_aside(aside.name) == "a.txt"
    for name in ("a.txt", "a.txt.partial", ".0123abcd.partial", "a.txt.0123abcg.partial", "a.txt.0123abcd.partial.x"):
        assert written_aside(name) is None


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    file = tmp_path / "a.txt"

    def dies() -> None:
        with whole(file) as aside:
            aside.write_text("half, and longer")
            os._exit(9)

    for _ in range(2):
        assert forked(dies) == 9
    (left,) = tmp_path.iterdir()
    assert written_aside(left.name) == "a.txt"
    write_whole(file, "new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "new"


def test_a_place_that_somebody_has_just_left_is_not_taken_for_one_s_own(tmp_path, monkeypatch):
    """Its file has its name by now, and would be written over."""
    flock, file = fcntl.flock, tmp_path / "a.txt"

    def late(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        (left,) = tmp_path.glob("*.partial")
        left.replace(file)

    monkeypatch.setattr("fcntl.flock", late)
    with whole(tmp_path / "a.txt") as aside:
        assert not aside.name.endswith(".00000000.partial")
        aside.write_text("new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "new"


def test_nothing_but_regular_files_of_sane_size_is_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    write_whole(tmp_path / "a.json", "[" + " " * 2**10 + "]")
    for name, kind in (("pipe", "a named pipe"), ("zero", "a device"), (".", "a directory")):
        for reading in (read_bytes, read_json, lambda path: open_tensors(path).__enter__()):
            with pytest.raises(ValueError, match=f"is {kind}; expected a file"):
                reading(tmp_path / name)
    with pytest.raises(ValueError, match="is a named pipe"):
        check_files(tmp_path)
    monkeypatch.setattr("dualrate.system.files.MOST_JSON", 2**10)
    with pytest.raises(ValueError, match=r"a\.json has more than 1,024 bytes"):
        read_json(tmp_path / "a.json")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^x\.json is not JSON: the key 'a' stands there twice"):
        parse_json(b'{"b": {"a": 1, "c": 2, "a": 3}}', "x.json")
    header = (
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    )
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with (
        pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file"),
        open_tensors(tmp_path / "a.safetensors"),
    ):
        pass
    with pytest.raises(ValueError, match="'w' stands"):
        tensors_of((tmp_path / "a.safetensors").read_bytes())


def test_two_writers_do_not_meet(tmp_path):
    with whole(tmp_path / "a.txt") as first, whole(tmp_path / "a.txt") as second:
        first.write_text("first, and longer")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first, and longer"


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_the_umask_says(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a.txt", "a")
        write_tensors(tmp_path / "a.safetensors", TENSORS)
        append_record(tmp_path / "a.jsonl", {})
    finally:
        os.umask(before)
    assert {mode(file) for file in tmp_path.iterdir()} == {expected}


# Tensors


def test_tensors_come_back(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"about": "them"})
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert torch.equal(file.get_tensor("w"), TENSORS["w"])
        assert file.metadata() == {"about": "them"}


def test_tensors_that_cannot_be_written_are_an_error_with_the_file(tmp_path):
    with full_disk(16), pytest.raises(OSError, match=r"a\.safetensors cannot be written: .*File too large"):
        write_tensors(tmp_path / "a.safetensors", TENSORS)


def test_other_content_and_no_permission_are_told_apart(tmp_path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, TENSORS)
    with unreadable(file, tmp_path), pytest.raises(PermissionError, match=r"a\.safetensors"), open_tensors(file):
        pass
    with pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file"), open_tensors(file) as opened:
        opened.get_tensor("other")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file"), open_tensors(file):
        pass


# Lines


def records(path: Path) -> list[dict]:
    return [record for _, record in read_records(path)]


def test_lines_come_back_and_none_from_no_file(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_records(path) == []
    for i in range(3):
        append_record(path, {"i": i})
    assert read_records(path) == [(f"{path}, line {i + 1}", {"i": i}) for i in range(3)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == records(path)


@pytest.mark.parametrize("torn", [b'{"i": 1', b'{"i": 1}', b"\0\0\0\0", b"\x80"])
def test_a_last_line_that_a_kill_cut_off_is_left_out_and_goes_with_the_next(tmp_path, torn):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"i": 0}\n' + torn)
    assert records(path) == [{"i": 0}]
    append_record(path, {"i": 2})
    assert records(path) == [{"i": 0}, {"i": 2}]


@pytest.mark.parametrize("line", [b"{", b"\x80\x81", b"[]", b"3", b"null", b'"text"', b"[" * 100_000, b"\0"])
def test_any_other_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"i": 0}\n\n' + line + b'\n{"i": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 is n.*; remove that line"):
        read_records(path)


def test_a_line_on_a_full_disk_is_an_error_with_the_file(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.jsonl'"):
        append_record(tmp_path / "a.jsonl", {"i": 0})


@pytest.mark.parametrize(
    ("limit", "memory"), [("1048576\n", 2**20), ("max\n", files.MEMORY), (str(2**63), files.MEMORY)]
)
def test_a_container_s_memory_is_its_limit(monkeypatch, limit, memory):
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert runpy.run_path(files.__file__)["MEMORY"] == memory
