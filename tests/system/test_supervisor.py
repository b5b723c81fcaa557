"""Processes that are started, watched and ended together; small scripts stand for trainings."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from training.faults import context

from dualrate.training.distributed import LOST
from dualrate.training.launch import Supervisor


def supervised(folder: Path, script: str, *, retries: int = 0, grace: float = 0.5) -> tuple[int, list[str]]:
    """The exit code, and what was said. The script finds its number in `rank`, and how often it was started."""
    notes: list[str] = []
    started = (
        "import os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\n"
        f"file = pathlib.Path({str(folder)!r}) / os.environ['RANK']\n"
        "attempt = len(file.read_text()) if file.exists() else 0\nfile.write_text('.' * (attempt + 1))\n"
    )
    code = Supervisor([sys.executable, "-c", started + script], 2, notes.append, grace).run(retries)
    return code, notes


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(75 * rank)", 75),
        ("sys.exit(2 if rank else 76)", 2),  # the mistake, and not what the others made of it
        ("sys.exit(1 if rank else 75)", 1),
        ("sys.exit(76 * rank)", LOST),
    ],
)
def test_one_exit_code_for_all(tmp_path, script, code):
    assert supervised(tmp_path, script) == (code, [])


def test_they_are_told_what_torchrun_tells(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DUALRATE_THREADS")
    supervised(tmp_path, f"file.write_text(' '.join(os.environ[name] for name in {names}))")
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    port = told[0][4]
    assert told == [[str(rank), str(rank), "2", "127.0.0.1", port, "1"] for rank in range(2)]


def test_when_one_is_killed_all_start_again(tmp_path):
    script = "if rank and not attempt: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(0 if attempt else 76)"
    code, notes = supervised(tmp_path, script, retries=3)
    assert code == 0
    assert notes == ["process 1 of 2 was ended by SIGKILL", "all 2 processes start again (1 of 3 times)"]


def test_a_signal_that_comes_between_two_attempts_is_passed_on(tmp_path):
    def note(text: str) -> None:
        if "start again" in text:
            os.kill(os.getpid(), signal.SIGUSR1)

    script = f"sys.exit(76) if not pathlib.Path({str(tmp_path)!r}, 'again').exists() else time.sleep(60)"
    command = [sys.executable, "-c", f"import pathlib, sys, time\n{script}"]

    def started(text: str) -> None:
        (tmp_path / "again").touch()
        note(text)

    begin = time.monotonic()
    assert Supervisor(command, 2, started).run(1) == 128 + signal.SIGUSR1
    assert time.monotonic() - begin < 30


def test_that_ends_after_so_many_times(tmp_path):
    code, notes = supervised(tmp_path, "if rank: os.kill(os.getpid(), signal.SIGKILL)", retries=2)
    assert code == LOST
    assert sum("start again" in note for note in notes) == 2
    assert (tmp_path / "0").read_text() == "..."


def test_a_mistake_is_not_repeated(tmp_path):
    assert supervised(tmp_path, "sys.exit(2)", retries=3) == (2, [])
    assert (tmp_path / "0").read_text() == "."


def test_one_that_hangs_when_another_has_failed_is_ended_and_says_where_it_stood(tmp_path, capfd):
    code, notes = supervised(tmp_path, "if rank: sys.exit(76)\ndef stuck(): time.sleep(60)\nstuck()")
    assert code == LOST
    assert notes == ["process 0 of 2 hangs: it is ended"]
    assert "in stuck" in capfd.readouterr().err


WAITING = """
import os, signal, sys, time
from pathlib import Path
def saved(number, _):
    signal.signal(number, signal.SIG_DFL)
    Path(sys.argv[1], "saved" + os.environ["RANK"]).touch()
    if sys.argv[2] == "saves": sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, saved)
Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
while True: time.sleep(0.01)
"""


def supervise(folder: Path, how: str) -> None:
    with (folder / "notes").open("w") as file:
        command = [sys.executable, "-c", WAITING, str(folder), how]
        sys.exit(Supervisor(command, 2, lambda text: print(text, file=file, flush=True)).run(3))


def waiting(folder: Path, how: str) -> tuple[multiprocessing.process.BaseProcess, list[int]]:
    """A supervisor of two processes that wait for a signal, and their process numbers."""
    supervisor = context.Process(target=supervise, args=(folder, how))
    supervisor.start()
    files = [folder / "0", folder / "1"]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    return supervisor, [int(file.read_text()) for file in files]


def ended(supervisor: multiprocessing.process.BaseProcess) -> int | None:
    supervisor.join(60)
    return supervisor.exitcode


def until(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_to_all(tmp_path, number):
    supervisor, children = waiting(tmp_path, "saves")
    os.kill(supervisor.pid, number)
    assert ended(supervisor) == 75
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()
    assert not any(is_running(child) for child in children)


def test_a_second_signal_ends_all_at_once_and_nothing_starts_again(tmp_path):
    supervisor, children = waiting(tmp_path, "goes on")
    os.kill(supervisor.pid, signal.SIGTERM)
    until(lambda: (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists())
    os.kill(supervisor.pid, signal.SIGTERM)
    assert ended(supervisor) == 128 + signal.SIGTERM
    assert not any(is_running(child) for child in children)
    assert "again" not in (tmp_path / "notes").read_text()
