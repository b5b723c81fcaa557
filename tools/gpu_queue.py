"""The queue of GPU work: pieces of at most ten minutes each, the most valuable first.

    python -m tools.gpu_queue                        lists them: done, part (begun, goes on) or never
    python -m tools.gpu_queue run NAME               runs one; --data your/cifar10 for those of CIFAR-10
    python -m tools.gpu_queue next                   runs the first that is not done and has what it needs
    python -m tools.gpu_queue table                  the table of dev/queue.md

    --out DIR    where pieces leave what they did and find what others left: its files are all that there is to know;
                 of each at most 7, of at most 16 MiB (out/queue)
    --work DIR   where runs are while they train; it may vanish between two pieces (runs/queue)
    --smoke      networks of a few channels on made-up images, for seconds of a CPU (out/queue-smoke, runs/queue-smoke)

So a rented machine without a network wants a checkout, the data, and the files of the pieces that a piece needs, and
gives its own back; packages that it lacks are found where PYTHONPATH says. A training whose time is over is told to
stop, saves, and goes on when its piece is run again; a comparison says in its figures what it left out. What is done is
not done again: to have it anew, take NAME.json away, and its folder in --work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tools import travel
from tools.gpu_pieces import QUEUE, Command, Piece

ROOT = Path(__file__).resolve().parent.parent
PIECES = {piece.name: piece for piece in QUEUE}
State = Literal["done", "part", "never"]
RESERVE = 75.0  # of a piece's seconds: for what was imported before its clock runs, for saving and packing
RECIPES = {"train": "cifar10-", "dual_45": "cifar10-dual-45", "distill": "cifar10"}
TINY = {"train": "tools.tiny:", "dual_45": "tools.tiny:dual_45", "distill": "tools.tiny:distilled"}


@dataclass(frozen=True)
class Places:
    """out: what pieces leave; work: runs while they train; data: CIFAR-10, or None"""

    out: Path
    work: Path
    data: Path | None = None
    smoke: bool = False

    def record(self, name: str) -> dict[str, Any]:
        """What a piece said at its end; empty if it never ran, or was a smoke test where this is none."""
        file = self.out / f"{name}.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("smoke") == self.smoke else {}


def state(name: str, places: Places) -> State:
    """done: it is finished and all that others read is there; part: begun; read from its files."""
    record = places.record(name)
    if not record:
        return "never"
    return "done" if record["done"] and not lost(name, places) else "part"


def lost(name: str, places: Places) -> list[str]:
    """The files of a piece that did not come along, but for what it printed."""
    files = places.record(name).get("files", [])
    return [file for file in files if file != f"{name}.txt" and not (places.out / file).is_file()]


def fetch(name: str, target: Path, places: Places) -> None:
    """Unpack the folder that a piece left, unless it is there."""
    if not target.exists():
        travel.unpack(places.record(name)["parts"], places.out, target)


def prepare(piece: Piece, places: Places) -> None:
    """Everything that the piece's commands read, in the folder they run in.

    Raises ValueError for data that is not given and pieces that are not done.
    """
    if missing := [name for name in piece.after if state(name, places) != "done"]:
        raise ValueError(
            f"{piece.name} needs {', '.join(missing)}: run them first, or bring their files to {places.out}"
        )
    places.work.mkdir(parents=True, exist_ok=True)
    if piece.data:
        link(places)
    for need in piece.needs:
        fetch(need, places.work / PIECES[need].place, places)
    for begun in (piece.name, piece.begins):
        if begun and places.record(begun).get("parts"):
            fetch(begun, places.work / piece.place, places)


def link(places: Places) -> None:
    """The data as `data` in the folder of the runs, so that its name is the same on every machine."""
    here = places.work / "data"
    if places.smoke and not here.exists():
        from tools.tiny import make_images

        make_images(here)
    if places.data is not None:
        here.unlink(missing_ok=True)
        here.symlink_to(places.data.resolve())
    if not here.exists():
        raise ValueError("say where your copy of CIFAR-10 is, a folder of images or parquet files: --data PATH")


def program(command: Command, places: Places) -> list[str]:
    """What runs a command."""
    names = {"out": shlex.quote(str(places.out.resolve())), **(TINY if places.smoke else RECIPES)}
    module, *options = shlex.split(command.line.format(**names) + (f" {command.smoke}" if places.smoke else ""))
    return [sys.executable, "-P", "-m", {"dualrate": "dualrate_command"}.get(module, module), *options]


def call(command: list[str], places: Places, seconds: float, printed: Path) -> int:
    """The exit code of a command, told to stop after `seconds` or when this process is. printed: for its output"""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "DUALRATE_CACHE": str(places.work.resolve() / "cache")}
    with printed.open("a") as file:
        child = subprocess.Popen(command, cwd=places.work, env=environment, stdout=file)
        before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
        try:
            return child.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            child.terminate()
        except KeyboardInterrupt:  # the child was interrupted too
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(RESERVE / 2)
        child.kill()
        return child.wait() or 75


def run(piece: Piece, places: Places) -> bool:
    """Run a piece and leave what it did. Returns whether it is done.

    Raises ValueError for what is missing before the start, for a piece that is done, and for a folder that cannot
    travel.
    """
    from dualrate.system.device import pick_device
    from dualrate.system.environment import environment
    from dualrate.system.files import write_whole

    start, printed = time.monotonic(), places.out / f"{piece.name}.txt"
    if places.record(piece.name).get("done"):
        missing = ", ".join(lost(piece.name, places))
        bring = f", but {missing} did not come along: bring that to {places.out}" if missing else ""
        raise ValueError(f"{piece.name} is done{bring}; to have it anew, take {piece.name}.json away")
    if places.smoke and replace(places, smoke=False).record(piece.name):
        raise ValueError(f"{places.out} holds what {piece.name} did in earnest: give a smoke test another --out")
    places.out.mkdir(parents=True, exist_ok=True)
    prepare(piece, places)
    printed.write_text("")
    codes: list[int] = []
    done = True
    for command in piece.commands:
        line = program(command, places)
        print(shlex.join(line[3:]), flush=True)
        left = 60 * piece.minutes - RESERVE - (time.monotonic() - start)
        codes.append(call(line, places, left, printed))
        done = codes[-1] in command.answers
        if not done:
            break
    parts = leave(piece, places, done=done)
    files = [printed.name, *parts, *copied(piece, places)]
    record = {"done": done, "smoke": places.smoke, "codes": codes, "seconds": round(time.monotonic() - start)}
    record |= {"files": files, "parts": parts, "environment": environment(pick_device(None))}
    write_whole(places.out / f"{piece.name}.json", json.dumps(record, indent=1) + "\n")
    settle(piece, places, done=done)
    print(printed.read_text(), end="")
    return done


def leave(piece: Piece, places: Places, *, done: bool) -> dict[str, str]:
    """Pack the piece's folder, if it has one that can travel; returns its parts and their sha256.

    Those that it left before are there until its record names the new ones: a kill in between costs this call alone.
    """
    folder, way = places.work / piece.place, piece.leaves if done else "state"
    if not piece.leaves or not (done or (folder / "checkpoints").is_dir()):
        return {}
    return travel.pack(folder, way, places.out, piece.name)


def settle(piece: Piece, places: Places, *, done: bool) -> None:
    """Delete parts that the record no longer names. A folder that is finished, here or by a piece before, is kept in
    parts alone, so that what follows is the same here and on another machine.
    """
    for part in places.out.glob(f"{piece.name}.*.[0-9][0-9]"):
        if part.name not in places.record(piece.name)["parts"]:
            part.unlink()
    folders = [PIECES[need].place for need in piece.needs] + ([piece.place] if done and piece.leaves else [])
    for folder in folders:
        shutil.rmtree(places.work / folder, ignore_errors=True)


def copied(piece: Piece, places: Places) -> list[str]:
    """The names of the files of figures that a piece leaves, those that it wrote elsewhere copied."""
    for name in piece.files:
        if (places.work / name).is_file():
            shutil.copy(places.work / name, places.out / name)
    return [name for name in (*piece.files, f"{piece.name}.figures.json") if (places.out / name).is_file()]


def ready(places: Places) -> Piece:
    """The first piece that is not done and has what it needs. Raises ValueError if there is none."""
    for piece in QUEUE:
        done = places.record(piece.name).get("done")  # be it that a file did not come along
        if not done and all(state(name, places) == "done" for name in piece.after):
            return piece
    raise ValueError(f"the queue is done: {places.out}")


def listing(places: Places) -> str:
    """A line a piece: its name, state and minutes, and what it answers."""
    return "\n".join(
        f"{piece.name:24}{state(piece.name, places):7}{piece.minutes:3} min  {piece.answers}" for piece in QUEUE
    )


def table() -> str:
    """The queue in Markdown, for dev/queue.md."""
    lines = ["| | piece | min | answers | needs | leaves |", "|---:|---|---:|---|---|---|"]
    for number, piece in enumerate(QUEUE, 1):
        needs = ", ".join([*piece.after, *(["data"] if piece.data else [])])
        leaves = piece.leaves or "figures"
        lines.append(f"| {number} | `{piece.name}` | {piece.minutes} | {piece.answers} | {needs} | {leaves} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("do", nargs="?", choices=("list", "run", "next", "table"), default="list")
    parser.add_argument("name", nargs="?", choices=PIECES, metavar="NAME", help="of the piece to run")
    parser.add_argument("--out", type=Path, help="what pieces leave; out/queue if not given")
    parser.add_argument("--work", type=Path, help="runs while they train; runs/queue if not given")
    parser.add_argument("--data", type=Path, help="your copy of CIFAR-10")
    parser.add_argument("--smoke", action="store_true", help="seconds of a CPU, on made-up images")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))  # where the package is not installed
    name = "queue-smoke" if options.smoke else "queue"
    out, work = options.out or ROOT / "out" / name, options.work or ROOT / "runs" / name
    places = Places(out, work, options.data, options.smoke)
    if options.do == "list":
        print(listing(places))
    elif options.do == "table":
        print(table(), end="")
    elif options.do == "run" and options.name is None:
        parser.error("say which piece: run NAME")
    else:
        try:
            piece = ready(places) if options.do == "next" else PIECES[options.name]
            done = run(piece, places)
        except (ValueError, OSError) as error:
            sys.exit(f"{error}")
        print(f"{piece.name}: {state(piece.name, places)}, in {places.out}", file=sys.stderr)
        sys.exit(0 if done else 75)


if __name__ == "__main__":
    main()
