"""tools/soak.py: what it counts as the same, and a short storm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.soak import FEW, Soak, Tally, files, timeless

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_clock_says_may_differ_and_nothing_else():
    line = {"fd": 3.5, "seconds": 1.0, "cost": {"macs": 5, "latency": 2}, "rows": [{"seconds_per_image": 4, "n": 1}]}
    assert timeless(line) == {"fd": 3.5, "cost": {"macs": 5}, "rows": [{"n": 1}]}


def test_files_are_the_same_by_name_and_content_but_for_the_lock(tmp_path):
    for name, lock in (("a", "1"), ("b", "2")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "x.bin").write_bytes(b"x")
        (tmp_path / name / ".lock").write_text(lock)
    assert files("**/*")(tmp_path / "a") == files("**/*")(tmp_path / "b")
    (tmp_path / "b" / "inner" / "x.bin").write_bytes(b"y")
    assert files("**/*")(tmp_path / "a") != files("**/*")(tmp_path / "b")


def test_what_is_half_written_is_seen_there_and_beside_it(tmp_path):
    (tmp_path / "run" / "checkpoints" / ".tmp-step-1").mkdir(parents=True)
    (tmp_path / "run.json.0a1b2c3d.partial").touch()
    (tmp_path / "run" / "whole.json").touch()
    found = {file.name for file in Soak.unfinished(tmp_path / "run")}
    assert found == {".tmp-step-1", "run.json.0a1b2c3d.partial"}


def test_a_row_of_the_tally():
    assert Tally(3, 1, 2, 1, 5, ends=2).row("sample") == "| sample | 3 | 1 | 2 | 1 | 5 | 2 times the same bits |"
    assert Tally(wrong=["other bits"]).row("sample").endswith("| other bits |")


def test_times_are_those_of_all_processes_without_their_start(tmp_path, monkeypatch):
    """A start of 2 s each, and 30 s of work: 33 s by three processes, which make other bits."""
    work = {1: 30.0, 2: 31.5, 3: 33.0}

    def undisturbed(soak, name, job, size):
        whole = str(FEW) not in job.arguments
        return size < 3, 9.0, 2 * size + work[size] * whole

    monkeypatch.setattr(Soak, "undisturbed", undisturbed)
    found = list(Soak(tmp_path, 0).times("sample-several", 3000, 2, True))
    assert [same for same, _ in found] == [True, True, False]
    assert [words.split()[-4] for _, words in found] == ["1.000", "1.050", "1.100"]


@pytest.mark.slow
def test_a_short_storm_over_preparing(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tools.soak", "--kills", "3", "--jobs", "prepare", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("times the same bits |")
