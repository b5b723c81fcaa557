"""The queue of GPU work: its order, what a piece leaves and finds, and that it fits through a narrow door."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import agreement
from dualrate.cli.main import main
from dualrate.recipes import cifar10
from dualrate.runs.store import load
from dualrate.runs.train import train
from dualrate.system.progress import PlainReporter
from dualrate.training import checkpoint
from tools import gpu_queue, tiny, travel
from tools.gpu_pieces import QUEUE, Command, Piece
from tools.gpu_queue import PIECES, Places, state

ROOT = Path(__file__).resolve().parent.parent
DOOR = 64 * 2**20  # bytes that a rented machine gives back, in 8 files


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "out").mkdir()
    return Places(tmp_path / "out", tmp_path / "work", smoke=True)


def left(places: Places, name: str, *, done: bool = True, files: tuple[str, ...] = (), smoke: bool = True) -> None:
    """As if a piece had run."""
    record = {"done": done, "smoke": smoke, "files": files, "parts": {}}
    (places.out / f"{name}.json").write_text(json.dumps(record))


def test_names_are_used_once_and_pieces_come_after_those_they_need() -> None:
    names = [piece.name for piece in QUEUE]
    assert len(set(names)) == len(names)
    for i, piece in enumerate(QUEUE):
        assert set(piece.after) <= set(names[:i])
        assert piece.minutes <= 10
        assert piece.commands
        assert piece.leaves in {"", *travel.WAYS}


def test_the_page_lists_the_same_queue() -> None:
    assert gpu_queue.table() in (ROOT / "dev" / "queue.md").read_text()


def test_equal_shares_of_time() -> None:
    """Dual-rate's own share and those of its two parts are the three of every network alone."""
    for name in ("cifar10-dual", "cifar10-dual-45"):
        assert seconds_of(name) == (480, 480)
    for model in ("heavy", "medium", "light"):
        assert [seconds_of(f"cifar10-{model}-{part}") for part in (1, 2, 3)] == [(480 * i, 1440) for i in (1, 2, 3)]


def seconds_of(name: str) -> tuple[int, int]:
    """When a training ends, and when its rate is zero: none is left with a rate that stays."""
    words = PIECES[name].commands[0].line.split()
    assert words[words.index("--fit.optim.decay") + 1] == "cosine"
    end, zero = (int(words[words.index(f"--fit.{option}") + 1]) for option in ("max-seconds", "optim.decay-seconds"))
    return end, zero


def test_state_is_what_the_files_say(places: Places) -> None:
    assert state("agreement", places) == "never"
    left(places, "agreement", done=False)
    assert state("agreement", places) == "part"
    left(places, "agreement", files=("agreement.txt", "agreement.figures.json"))
    assert state("agreement", places) == "part"  # a file did not come along
    (places.out / "agreement.figures.json").touch()
    assert state("agreement", places) == "done"
    assert state("agreement", replace(places, smoke=False)) == "never"
    assert "agreement               done " in gpu_queue.listing(places)


def test_the_next_piece_is_the_first_that_has_what_it_needs(places: Places) -> None:
    for piece in QUEUE:
        if piece.name not in ("cifar10-heavy-1", "cifar10-dual", "cifar10-report"):
            left(places, piece.name)
    assert gpu_queue.ready(places).name == "cifar10-heavy-1"
    left(places, "cifar10-heavy-1")
    assert gpu_queue.ready(places).name == "cifar10-dual"
    left(places, "cifar10-dual")
    left(places, "cifar10-report")
    with pytest.raises(ValueError, match="the queue is done"):
        gpu_queue.ready(places)


def test_a_piece_says_what_it_lacks(places: Places) -> None:
    with pytest.raises(ValueError, match="cifar10-dual needs cifar10-heavy-1, cifar10-light-1: run them first"):
        gpu_queue.prepare(PIECES["cifar10-dual"], places)
    with pytest.raises(ValueError, match="--data PATH"):
        gpu_queue.prepare(PIECES["cifar10-heavy-1"], replace(places, smoke=False))


def test_folders_travel_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(travel, "PART", 1000)
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    out.mkdir()
    content = bytes(range(256)) * 10
    (source / "deep" / "file").write_bytes(content)
    parts = travel.pack(source, "folder", out, "name")
    assert [part.rpartition(".")[2] for part in sorted(parts)] == ["00", "01", "02"]
    assert sorted(path.name for path in out.iterdir()) == sorted(parts)
    assert max(path.stat().st_size for path in out.iterdir()) == 1000
    travel.unpack(parts, out, tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "file").read_bytes() == content
    second = out / sorted(parts)[1]
    damaged = bytearray(second.read_bytes())
    damaged[500] ^= 1
    second.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{second.name} is missing or damaged"):
        travel.unpack(parts, out, tmp_path / "other")
    second.unlink()
    with pytest.raises(ValueError, match=rf"{second.name} is missing or damaged"):
        travel.unpack(parts, out, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_goes_on_from_what_travelled(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places.out.parent)
    tiny.make_images(Path("data"), count=60)
    light = tiny.light()
    short = replace(light, data=replace(light.data, source="data"), fit=replace(light.fit, iterations=3))
    quiet = PlainReporter(seconds=1e9)
    train(short, Path("run"), progress=quiet)
    piece = replace(PIECES["cifar10-light-1"], name="run")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        travel.state(Path("data"), Path("copy"))
    parts = gpu_queue.leave(piece, replace(places, work=Path()), done=False)
    travel.unpack(parts, places.out, Path("copy"))
    whole, cut = (checkpoint.load(checkpoint.saved_paths(Path(run) / "checkpoints")[-1]) for run in ("run", "copy"))
    assert sum(tensor.nbytes for tensors in cut.tensors.values() for tensor in tensors.values()) == 4 * sum(
        tensor.numel() for tensor in whole.tensors["model"].values()
    )
    for average in (False, True):
        for name, tensor in whole.weights(average=average).items():
            torch.testing.assert_close(cut.weights(average=average)[name].float(), tensor, rtol=2**-8, atol=0)
    assert load("copy", note=quiet.note).iteration == 3
    more = replace(short, fit=replace(short.fit, iterations=5))
    assert train(more, Path("copy"), progress=quiet).iteration == 5
    assert len(gpu_queue.leave(piece, replace(places, work=Path()), done=True)) == 1


def test_what_a_piece_leaves_fits_through_the_door() -> None:
    """4 bytes a parameter of a state, 2 of an auxiliary; in parts, beside 4 files of figures."""
    with torch.device("meta"):
        counts = {
            made.name: sum(p.numel() for p in made.build()[0].parameters())
            for made in (
                *(cifar10.single("heavy"), cifar10.single("medium"), cifar10.single("light")),
                *(cifar10.dual(), cifar10.dual_45()),
            )
        }
    states = {name: 4 * count for name, count in counts.items()}
    states["student"] = states["cifar10-dual"] + 2 * counts["cifar10-heavy"]
    for size in states.values():
        assert size * 1.01 < DOOR - 4 * 2**20
        assert -(-size // travel.PART) + 4 <= 8
    for piece in (PIECES["cifar10-report"], PIECES["cifar10-report-45"]):
        needed = [need.removeprefix("cifar10-").removesuffix("-3") for need in piece.needs if need != "cifar10-judge"]
        released = sum(2 * counts[f"cifar10-{name}"] for name in needed)
        assert released < DOOR - 15 * 2**20  # beside a checkout


def test_a_command_is_stopped_in_time(places: Places) -> None:
    places.work.mkdir()
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75)));"
        "print('started', flush=True); time.sleep(60)"
    )
    start, printed = time.monotonic(), places.out / "printed"
    assert gpu_queue.call([sys.executable, "-c", program], places, 2, printed) == 75
    assert time.monotonic() - start < 30
    assert printed.read_text() == "started\nsaved\n"


def test_a_piece_whose_command_fails_is_not_done(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_THREADS", "none")  # refused before anything is loaded
    failing = Piece("failing", "nothing", (Command("dualrate no-such-command"), Command("dualrate --version")))
    assert not gpu_queue.run(failing, places)
    assert places.record("failing")["codes"] == [2]
    assert state("failing", places) == "part"


def test_a_piece_that_is_done_is_not_done_again(places: Places) -> None:
    left(places, "agreement", files=("agreement.txt", "agreement.00"))
    with pytest.raises(ValueError, match=r"is done, but agreement.00 did not come along: .*take agreement.json away"):
        gpu_queue.run(PIECES["agreement"], places)


def test_parts_stay_until_the_record_names_the_new_ones(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a kill while they are packed, or a full disk, costs no more than this call."""
    piece = Piece("going", "nothing", (Command("dualrate --version"),), leaves="folder")
    before, folder = places.out / "going.0000.00", places.work / "going"
    before.write_text("before")
    folder.mkdir(parents=True)
    (folder / "file").write_text("now")
    monkeypatch.setattr(gpu_queue, "call", lambda *of: 0)
    with monkeypatch.context() as full:
        full.setattr("dualrate.system.files.write_whole", lambda path, content: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gpu_queue.run(piece, places)
    assert before.read_text() == "before"
    assert (folder / "file").exists()
    assert gpu_queue.run(piece, places)
    assert not before.exists()
    assert not folder.exists()  # what follows reads what travels
    travel.unpack(places.record("going")["parts"], places.out, folder)
    assert (folder / "file").read_text() == "now"


def test_packages_are_found_where_the_caller_has_them(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rented machine lacks some, and its users install them in a folder."""
    elsewhere = places.out / "with space"
    (elsewhere / "carried").mkdir(parents=True)
    (elsewhere / "carried" / "__init__.py").touch()
    places.work.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    assert (
        gpu_queue.call([sys.executable, "-c", "import carried, dualrate_command"], places, 60, places.out / "printed")
        == 0
    )
    line = gpu_queue.program(Command("benchmarks.gpu --out {out}/name.json"), replace(places, out=elsewhere))
    assert line[-1] == str(elsewhere / "name.json")


def test_a_no_is_an_answer(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whether a device computes as it should: what follows does not wait for a yes."""
    for code, done in ((0, True), (1, False), (agreement.TOO_LARGE, True)):
        monkeypatch.setattr(gpu_queue, "call", lambda *of, code=code: code)
        (places.out / "agreement.json").unlink(missing_ok=True)
        assert gpu_queue.run(PIECES["agreement"], places) is done


def test_a_smoke_test_leaves_what_was_done_in_earnest(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it begins in folders of its own."""
    left(places, "failing", files=("failing.00",), smoke=False)
    (places.out / "failing.00").write_text("weights")
    before = {path.name: path.read_bytes() for path in places.out.iterdir()}
    with pytest.raises(ValueError, match="another --out"):
        gpu_queue.run(Piece("failing", "nothing", (Command("dualrate no-such-command"),)), places)
    assert {path.name: path.read_bytes() for path in places.out.iterdir()} == before
    asked: list[Places] = []
    monkeypatch.setattr(gpu_queue, "listing", lambda places: asked.append(places) or "")
    for option in ([], ["--smoke"]):
        monkeypatch.setattr(sys, "argv", ["gpu_queue", *option])
        gpu_queue.main()
    assert asked[0].out != asked[1].out
    assert asked[0].work != asked[1].work


def test_training_goes_on_in_the_next_piece(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces, and nothing but their files in between. In this process, for its time."""

    def here(command: list[str], places: Places, seconds: float, printed: Path) -> int:
        assert command[1:4] == ["-P", "-m", "dualrate_command"]
        monkeypatch.chdir(places.work)
        monkeypatch.setattr(sys, "argv", command[3:])
        main()
        return 0

    monkeypatch.setattr(gpu_queue, "call", here)
    monkeypatch.setenv("DUALRATE_CACHE", str(places.out.parent / "cache"))
    for name in ("cifar10-light-1", "cifar10-light-2"):
        assert gpu_queue.run(PIECES[name], places)
        assert state(name, places) == "done"
        monkeypatch.chdir(places.out)
        shutil.rmtree(places.work)
    ends = []
    for name in ("cifar10-light-1", "cifar10-light-2"):
        travel.unpack(places.record(name)["parts"], places.out, places.work / name)
        last = checkpoint.load(checkpoint.saved_paths(places.work / name / "checkpoints")[-1]).state
        ends.append(last["iteration"])
    assert ends == [2, 4]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_piece_runs_on_a_cpu(places: Places) -> None:
    run = [sys.executable, "-m", "tools.gpu_queue", "next", "--smoke"]
    run += ["--out", str(places.out), "--work", str(places.work)]
    for piece in QUEUE:
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (piece.name, done.stderr[-2000:])
        assert state(piece.name, places) == "done"
        assert len(places.record(piece.name)["files"]) <= 7
