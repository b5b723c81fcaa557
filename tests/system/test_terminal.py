"""Names of files and classes cannot write to a terminal: whatever prints them."""

import io
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from dualrate.system.progress import PlainReporter
from dualrate.system.terminal import CONTROLS, clean, one_message

EVIL = "a\x1b[2J\x07\x9b31m\u202eb\rc"


def test_control_characters_are_escaped_and_all_others_stay() -> None:
    assert clean(EVIL) == r"a\x1b[2J\x07\x9b31m\u202eb\rc"
    assert all(clean(chr(i)) != chr(i) for i in (*range(9), 11, 12, *range(14, 32), *range(127, 160)))
    plain = "\tcaf\u00e9 \u65e5\u672c \u06a9\u200c\u0647 \U0001f469\u200d\U0001f52c\n"
    assert (clean(plain), clean("\r 50%"), clean("\r   \r")) == (plain, "\r 50%", "\r   \r")


def test_progress_is_clean_outside_the_command_line_too() -> None:
    stream = io.StringIO()
    PlainReporter(stream=stream).note(f"reading {EVIL}")
    assert stream.getvalue() == f"reading {clean(EVIL)}\n"


@pytest.mark.parametrize(
    "code",
    ["print(EVIL)", "sys.stderr.write(EVIL)", "warnings.warn(EVIL)", "raise RuntimeError(EVIL)", "print('x', EVIL)"],
)
def test_all_that_a_command_prints_is_clean(code: str) -> None:
    begin = (
        "import sys, warnings; from dualrate.system.terminal import clean_streams; clean_streams(); clean_streams(); "
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}EVIL = {EVIL!r}; {code}"], capture_output=True, encoding="utf-8"
    )
    assert clean(EVIL) in done.stdout + done.stderr
    assert not CONTROLS.search(done.stdout + done.stderr)


def test_a_name_begins_no_message_of_its_own(tmp_path: Path) -> None:
    assert one_message(ValueError("a\nb\n  c\r\n")) == "a\\nb\n  c\r\\n"
    name = "x\ndualrate: all is well"
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset(f"train/{name}", (3, 4, 5, 6), "f4", chunks=(1, 4, 5, 6))
    command = [sys.executable, "-m", "dualrate", "train", "forecast", "--data.source"]
    for source in ("data.h5", f"{name}.h5"):
        done = subprocess.run([*command, source], capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("dualrate: ")
        assert r"x\ndualrate: all is well" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", EVIL, "--out", "x"],
        ["train", "auto", "--data.source", EVIL],
        [EVIL],
        ["sample", "x", "--out", "x", f"--{EVIL}"],
        ["sample", "x", "--out", "x", "--label", "y", "--grid", EVIL],
    ],
)
def test_messages_are_clean(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dualrate", *arguments], capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert done.returncode == 2
    assert re.search(r"a\\x1b\[2J", done.stderr)
    assert not CONTROLS.search(done.stdout + done.stderr)
