"""Tools with which the tests make trouble do no more harm than they are to."""

import subprocess
import sys
from pathlib import Path

import pytest

ENTERS_FIRST = """
with somebody(first):
    (first / "entered").touch()
    time.sleep(0.2)
"""
LEAVES_LAST = """
wait_until((first / "entered").exists)
with somebody(second):
    time.sleep(0.5)
    (second / "file").touch()
"""


def started(work: str, folder: Path) -> subprocess.Popen[bytes]:
    made = "import time; from pathlib import Path; from trouble import somebody, wait_until"
    trees = f'first, second = (Path({str(folder)!r}) / name for name in ("first", "second"))'
    return subprocess.Popen([sys.executable, "-c", f"{made}\n{trees}\n{work}"], cwd=Path(__file__).parent)


@pytest.mark.timeout(120)
def test_two_processes_that_are_somebody_below_one_folder_do_not_shut_each_other_out(tmp_path):
    tmp_path.chmod(0o700)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    processes = [started(work, tmp_path) for work in (ENTERS_FIRST, LEAVES_LAST)]
    assert [process.wait() for process in processes] == [0, 0]
