"""Parts that macOS or Windows lacks are not needed: tried on the system that is here, without them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reader import ROOT

from dualrate.system.files import reserve


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_a_run_is_trained_read_drawn_and_rolled_out_without_what_a_system_lacks(tmp_path, system):
    places = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("bare.py"), system, tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": places, "DUALRATE_CACHE": str(tmp_path / "cache")},
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert "usage: dualrate COMMAND" in run.stdout


@pytest.mark.parametrize("number", [None, "EOPNOTSUPP", "EINVAL"])
def test_a_file_gets_its_place_on_the_disk_where_the_system_reserves_none(tmp_path, monkeypatch, number):
    """A file system may refuse what the system has."""

    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, number), "not here")

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    path, size = tmp_path / "sparse", 3 * 2**20 + 5
    path.write_bytes(b"head")
    os.truncate(path, size)
    before = path.stat().st_blocks * 512
    with path.open("r+b") as file:
        reserve(file, 4, size)
    assert before < size <= path.stat().st_blocks * 512
    assert path.read_bytes() == b"head" + bytes(size - 4)
