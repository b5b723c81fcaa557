"""Threads of the `dualrate` command: as many as asked for, or as processors are idle; settled before torch loads."""

import os
import subprocess
import sys

import pytest

import dualrate_command
from dualrate.cli import codec as cli_codec
from dualrate.cli import data as cli_data
from dualrate.cli import main as cli_main
from dualrate_command import idle_processors, settings, ticks

STAT = """cpu  100 0 0 100 0 0 0 0 0 0
cpu0 {} 0 {} {} 10 0 0 0 7 7
cpu1 50 0 0 50 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (
            {"DUALRATE_THREADS": "5", "OMP_NUM_THREADS": "2"},
            {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "PASSIVE", "MKL_DYNAMIC": "FALSE"},
        ),
        (
            {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "2"},
            {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"},
        ),
    ],
)
def test_what_is_asked_for_goes_before_what_is_idle(environment, expected):
    assert settings(environment, idle=3) == expected


@pytest.mark.parametrize("asked", ["0", "many", "-1", "", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(asked):
    with pytest.raises(ValueError, match="DUALRATE_THREADS"):
        settings({"DUALRATE_THREADS": asked}, idle=3)


def test_ticks_of_a_processor_count_waiting_for_disks_as_idle_and_guests_once():
    assert ticks(STAT.format(30, 20, 40)) == {0: (50, 100), 1: (50, 100)}


def idle(monkeypatch, tmp_path, shares: list[float], quota: str = "max 100000") -> int:
    """What is found where each processor is idle for such a share of the time, in a container of this quota."""

    class Stat:
        reads = 0

        def exists(self):
            return True

        def read_text(self):
            self.reads += 1
            now = [(round(100 * self.reads * share), 100 * self.reads) for share in shares]
            return "".join(f"cpu{i} {total - free} 0 0 {free} 0 0 0 0\n" for i, (free, total) in enumerate(now))

    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(dualrate_command, "STAT", Stat())
    monkeypatch.setattr(dualrate_command, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    return idle_processors(0)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1, 1, 1], 3),
        ([1, 0.1, 0.9], 2),
        ([0, 0, 0], 1),
        ([0.3, 0.3, 0.3], 1),
        ([1, 1, 0, 1, 1], 2),  # processors that others may use are of no help
    ],
)
def test_the_idle_processors_that_may_be_used_are_counted(shares, expected, monkeypatch, tmp_path):
    assert idle(monkeypatch, tmp_path, shares) == expected


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)])
def test_a_container_has_no_more_than_its_quota(quota, expected, monkeypatch, tmp_path):
    assert idle(monkeypatch, tmp_path, [1, 1, 1], quota) == expected


def test_the_settings_are_there_before_openmp_reads_them():
    """OpenMP is asked to tell what it has read, at the moment it is loaded. `dualrate` begins anew as the command."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "DUALRATE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dualrate", "cost", "--help"],
        env={**own, "DUALRATE_THREADS": "3", "OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "usage: dualrate" in done.stdout
    *_, told = done.stderr.split("OPENMP DISPLAY ENVIRONMENT BEGIN")  # of the last process, if it began anew
    if "OMP_NUM_THREADS" not in told:
        pytest.skip("this torch's OpenMP does not tell its settings")
    assert "OMP_NUM_THREADS = '3'" in told
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_what_it_can_do_is_told_without_loading_anything(arguments, monkeypatch, capsys):
    code = (
        f"import sys, dualrate_command; sys.argv[1:] = {arguments}; dualrate_command.main(); "
        "assert not {'torch', 'numpy', 'dualrate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr(sys, "argv", ["dualrate", *arguments])
    with pytest.raises(SystemExit):
        cli_main.main()
    assert capsys.readouterr().out == done.stdout


def test_the_usage_has_every_command_with_its_first_line():
    kinds = {
        "data": cli_data,
        "codec": cli_codec,
        "train": cli_main.Train,
        "distill": cli_main.Distill,
        "retrofit": cli_main.Retrofit,
        **cli_main.COMMANDS,
    }
    lines = [f"  {name:9} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()]
    assert [line for line in dualrate_command.USAGE.read_text().splitlines() if line.startswith("  ")][1:] == lines


def test_a_wrong_number_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "dualrate_command", "cost", "--help"],
        env={**os.environ, "DUALRATE_THREADS": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("dualrate: DUALRATE_THREADS is")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_what_is_said(closed, tmp_path):
    """A file that is opened then has another number than a stream, here and in a process that is started."""
    code = (
        "import os, sys, dualrate_command; dualrate_command.settle_streams(); print('said', flush=True); "
        "print('said', file=sys.stderr, flush=True); sys.stderr.isatty(); "
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); assert number > 2; "
        "raise SystemExit(os.waitstatus_to_exitcode(os.system('echo said && echo said >&2')))"
    )
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "file")])
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "")


def test_a_letter_that_the_encoding_lacks_is_escaped():
    code = "import dualrate_command; dualrate_command.settle_streams(); print('\\u65e5 \\udce6')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u65e5 \\udce6\n", "")
