"""Kill commands again and again at random moments, and see that they end with the bits that they have undisturbed.

    python -m tools.soak [--kills 100] [--seed 0] [--jobs train prepare ...] [--folder DIR]
    python -m tools.soak --jobs sample-several evaluate-several --kills 40 --images 3000 --times 5

A job is a `dualrate` command on tiny networks and made-up images. It is run once undisturbed, then in a new place,
where SIGKILL (mostly), SIGTERM or SIGINT ends the command or one of its processes, some of the time while it writes,
until the same command has come to its end; what it made must have the same bits, and no process and nothing half
written may be left. Then from the start, until all kills are done. Prints a table in markdown; ends with 1 if anything
differed. Commands fork from a server that has imported torch; the ranks of the training start as they always do.

A job of several is started by 1, 2 or 3 processes at a time, as torchrun starts them. --times: also undisturbed by each
number, in rounds; seconds of the CPU of all processes over those of one alone, each less what they take for few images,
which is mostly their start: 1 is ideal. Medians over rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from dualrate.training import checkpoint

AIMED = 0.3  # of the kills: they wait for something half written
STOPS = signal.SIGTERM, signal.SIGINT
FEW = 60  # images, which take little beside the start of the processes
MARK = "DUALRATE_SOAK"  # in the environment of all that a job starts
RECIPE = """
import dualrate as dr
from dualrate.experiment.data_config import DataConfig
from dualrate.training.config import FitConfig
def net(channels):
    levels = (dr.Level("conv", channels, 1), dr.Level("transformer", channels, 1))
    return dr.UViTConfig(28, 1, levels, 4, patch=2, embedding=16, head_dim=8)
def tiny():
    fit = FitConfig(150, batch_size=8, precision="float32", log_every=5, checkpoint_every=5, sample_every=100_000)
    method, data = dr.DenoisingConfig(dr.TimeSampler()), DataConfig("images.npz")
    return dr.Experiment("tiny", dr.TwoNetworks(net(16), net(8)), method, fit, data)
"""
CLOCK = (
    "second",
    "minute",
    "command",
    "time",
    "date",
    "version",
    "commit",
    "latency",
    "host",
    "peak_bytes",
    "batch_size",
)  # measured of a machine


@dataclass(frozen=True)
class Job:
    """arguments: of `dualrate`, with OUT for the place; bits: of that place, which must be the same; several: how
    many processes are launched, one of these numbers at each start."""

    arguments: Sequence[str]
    bits: Callable[[Path], object]
    several: tuple[int, ...] = (0,)


@dataclass
class Tally:
    """Counts of a job. starts: of the command; ends: how often it came to its end; wrong: what was not right."""

    killed: int = 0
    terminated: int = 0
    of_children: int = 0
    writing: int = 0
    starts: int = 0
    ends: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.killed + self.terminated

    def row(self, name: str) -> str:
        result = "; ".join(self.wrong) or f"{self.ends} times the same bits"
        cells = (name, self.killed, self.terminated, self.of_children, self.writing, self.starts, result)
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| job | SIGKILL | SIGTERM, SIGINT | of them to a process of the command | while something was written | starts "
    "| result |"
)


def files(pattern: str) -> Callable[[Path], object]:
    """A function that gives the names and hashes of the files of a place."""

    def hashes(place: Path) -> object:
        paths = sorted(file for file in place.glob(pattern) if file.is_file() and file.name != ".lock")
        return {str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest() for file in paths}

    return hashes


def trained(place: Path) -> object:
    """Every bit of the newest checkpoint, and what was logged."""
    newest = checkpoint.saved_paths(place / "checkpoints")[-1]
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return newest.name, files("*.safetensors")(newest), [timeless(line) for line in lines]


def features(place: Path) -> object:
    """Every bit of the kept features; beside them stands how long drawing took."""
    by_file = {file.name: load_file(file) for file in sorted(place.glob("*.safetensors"))}
    return {
        name: {key: tensor.numpy().tobytes() for key, tensor in tensors.items()} for name, tensors in by_file.items()
    }


def results(place: Path) -> object:
    """Every figure of the JSON beside a page."""
    return timeless(json.loads(place.with_suffix(".json").read_text()))


def timeless(value: object) -> object:
    """The value without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(word in k.lower() for word in CLOCK)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def jobs(folder: Path, images: int = 384) -> dict[str, Job]:
    """images: of jobs of several processes"""
    model = str(folder / "model")
    judge = ("--features", "fashion-mnist")
    training = ("train", "mine:tiny", "--out", "OUT", "--nproc", "2", "--retries", "1000")
    return {
        "train": Job(training, trained),
        "prepare": Job(
            ("data", "prepare", str(folder / "images"), "OUT", "--size", "64", "--shard-mib", "1", "--nproc", "2"),
            files("**/*"),
        ),
        "sample": Job(
            ("sample", model, "--out", "OUT", "--num", "96", "--batch-size", "8", "--steps", "8", "--npz",
             "--nproc", "2"),
            files("*.png"),
        ),
        "evaluate": Job(
            ("evaluate", model, "--keep", "OUT", "--num", "384", "--batch-size", "16", "--steps", "4",
             "--nproc", "2", *judge),
            features,
        ),
        "compare": Job(
            ("compare", f"a={model}:4/2", f"b={model}:6/2", "--out", "OUT.html", "--screen", "192", "--count", "384",
             "--minutes", "100", *judge),
            results,
        ),
        "sample-several": Job(
            ("sample", model, "--out", "OUT", "--num", str(images), "--batch-size", "10", "--steps", "8", "--npz"),
            files("*.[np]*"),
            (1, 2, 3),
        ),
        "evaluate-several": Job(
            ("evaluate", model, "--keep", "OUT", "--num", str(images), "--batch-size", "10", "--steps", "8", *judge),
            features,
            (1, 2, 3),
        ),
    }  # fmt: skip


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 28, 28, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(256) % 4)
    for index in range(900):
        place = folder / "images" / f"class{index % 3}" / f"{index}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(place)


def command(arguments: Sequence[str], folder: Path, log: Path, settings: dict[str, str]) -> None:
    """`dualrate <arguments>`, in this process."""
    os.setsid()
    os.chdir(folder)
    with log.open("a") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    os.environ |= settings | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    os.environ |= {"DUALRATE_CACHE": str(folder / "cache"), "DUALRATE_THREADS": "1"}
    sys.path.insert(0, str(folder))
    sys.argv = ["dualrate", *arguments]
    import torch

    from dualrate.cli.main import main

    torch.set_num_threads(1)
    main()


def processes(mark: str) -> Iterator[int]:
    """The numbers of the processes that carry a mark, which they have of the command that started them."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}\0".encode() in (place / "environ").read_bytes():
                yield int(place.name)
        except OSError:  # it has ended, or is somebody else's
            continue


def cpu_seconds(process: int) -> float:
    """Seconds of the CPU that a process has had; 0 of one that has ended."""
    try:
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


class Soak:
    """Jobs in a folder, and what becomes of them.

    pause: before a kill at most, a share of the time undisturbed; stops: share of the kills that are of STOPS
    """

    def __init__(self, folder: Path, seed: int, pause: float = 0.7, stops: float = 0.15) -> None:
        self.folder, self.rng, self.count = folder, random.Random(seed), 0
        self.pause, self.stops = pause, stops
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(
            ["dualrate.cli.main", "dualrate.drawing.samples", "dualrate.comparison.compare", "torch._dynamo"]
        )

    def start(self, job: Job, place: Path, size: int) -> tuple[list[BaseProcess], str]:
        """Processes of the job by rank; of size 0 a command that no launcher started."""
        self.count += 1
        mark = f"{os.getpid()}-{self.count}"
        arguments, settings = [argument.replace("OUT", str(place)) for argument in job.arguments], {MARK: mark}
        if size:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            settings["DUALRATE_TIMEOUT"] = "20"  # of a leader that was killed before the others reached it
        children = []
        for rank in range(max(1, size)):
            launched = {"RANK": str(rank), "WORLD_SIZE": str(size)} if size else {}
            of = (arguments, self.folder, place.with_suffix(".log"), settings | launched)
            children.append(self.server.Process(target=command, args=of))
            children[-1].start()
        return children, mark

    def undisturbed(self, name: str, job: Job, size: int) -> tuple[object, float, float]:
        """The bits that the job makes, its seconds, and those of the CPU of all its processes."""
        place, start = self.folder / f"{name}-straight-{size}", time.monotonic()
        shutil.rmtree(place, ignore_errors=True)
        children, _ = self.start(job, place, size)
        busy = [0.0] * len(children)
        while any(child.exitcode is None for child in children):
            busy = [max(before, cpu_seconds(child.pid or 0)) for before, child in zip(busy, children, strict=True)]
            time.sleep(0.02)
        if codes := [child.exitcode for child in children if child.exitcode]:
            raise RuntimeError(f"{name} ends with {codes}: {place.with_suffix('.log').read_text()[-2000:]}")
        return job.bits(place), time.monotonic() - start, sum(busy)

    def times(self, name: str, images: int, rounds: int, expected: object) -> Iterator[tuple[bool, str]]:
        """Whether each number of processes makes what is expected, and its seconds of the CPU in words."""
        whole, few = (jobs(self.folder, count)[name] for count in (images, FEW))
        seconds: dict[int, list[tuple[float, float]]] = {size: [] for size in whole.several}
        same = dict.fromkeys(whole.several, True)
        for size in [*whole.several] * rounds:
            bits, _, busy = self.undisturbed(name, whole, size)
            same[size] &= bits == expected
            seconds[size].append((busy, self.undisturbed(f"{name}-few", few, size)[2]))
        alone = [busy - start for busy, start in seconds[whole.several[0]]]
        for size, pairs in seconds.items():
            over = median((busy - start) / ideal for (busy, start), ideal in zip(pairs, alone, strict=True))
            busy, start = (median(column) for column in zip(*pairs, strict=True))
            of = f"{busy:.2f} s of the CPU by {size}, {start:.2f} s of {FEW} images"
            yield same[size], f"{of}: {over:.3f} of the ideal"

    def kill(self, children: Sequence[BaseProcess], mark: str, tally: Tally) -> None:
        """End the command, or one of its processes."""
        child = children[0]
        assert child.pid is not None
        victims = [number for number in processes(mark) if number != child.pid]
        victims += [fork.pid for fork in children[1:] if fork.pid and fork.exitcode is None]  # these carry no mark
        victim = self.rng.choice(victims) if victims and self.rng.random() < 0.5 else child.pid
        number = self.rng.choice(STOPS) if self.rng.random() < self.stops else signal.SIGKILL
        try:
            os.kill(victim, number)
        except ProcessLookupError:
            return
        tally.killed += number == signal.SIGKILL
        tally.terminated += number != signal.SIGKILL
        tally.of_children += victim != child.pid

    def storm(self, name: str, job: Job, expected: object, seconds: float, kills: int, tally: Tally) -> None:
        """Run a job from the start to the end, with `kills` at most on the way."""
        place, before = self.folder / f"{name}-{tally.ends}", tally.kills
        while True:
            started = time.time()
            children, mark = self.start(job, place, self.rng.choice(job.several))
            tally.starts, of_children = tally.starts + 1, tally.of_children
            while tally.kills - before < kills:
                wait([child.sentinel for child in children], self.rng.uniform(0.02, self.pause) * seconds)
                if self.rng.random() < AIMED:
                    self.wait_for_writing(children[0], place, started, seconds)
                if any(child.exitcode is not None for child in children):
                    break
                self.kill(children, mark, tally)
                time.sleep(0.02)
                tally.writing += any(self.unfinished(place, started))
            for child in children:
                child.join()
            self.wait_for_the_last(name, mark, tally)
            codes = {child.exitcode for child in children}
            if codes == {0}:
                break
            if 2 in codes and job.several == (0,) and tally.of_children > of_children:
                continue  # what cannot go on without its process ends with an error, and the same command goes on
            if not codes <= {0, -signal.SIGKILL, 75, 76, *(-stop for stop in STOPS), *(128 + stop for stop in STOPS)}:
                tail = place.with_suffix(".log").read_text()[-1500:]
                print(f"{name} ended with {codes}:\n{tail}", file=sys.stderr, flush=True)
                tally.wrong.append(f"exit codes {codes}")
                return
        tally.ends += 1
        if job.bits(place) != expected:
            tally.wrong.append(f"other bits in {place}")
        elif left := [str(path) for path in self.unfinished(place)]:
            tally.wrong.append(f"left over: {', '.join(left[:3])}")
        else:
            shutil.rmtree(place, ignore_errors=True)

    def wait_for_writing(self, child: BaseProcess, place: Path, started: float, seconds: float) -> None:
        """Wait until something is half written, the command has ended or the time is over."""
        end = time.monotonic() + seconds
        while child.exitcode is None and time.monotonic() < end and not any(self.unfinished(place, started)):
            time.sleep(0.001)

    @staticmethod
    def unfinished(place: Path, since: float = 0.0) -> Iterator[Path]:
        """Files that are half written in a place and beside it, since a time: not those that were left before."""
        for root, pattern in ((place, "**/*"), (place.parent, f".tmp-{place.name}*"), (place.parent, f"{place.name}*")):
            for file in root.glob(pattern):
                if file.name.startswith(".tmp-") or file.suffix == ".partial":
                    with suppress(FileNotFoundError):
                        if file.stat().st_mtime >= since:
                            yield file

    def wait_for_the_last(self, name: str, mark: str, tally: Tally) -> None:
        """Wait for the processes of a command that has ended, and tally those that outlive it for long."""
        end = time.monotonic() + 120
        while left := list(processes(mark)):
            if time.monotonic() > end:
                tally.wrong.append(f"{len(left)} processes left over")
                for number in left:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                return
            time.sleep(0.1)


def main() -> int:
    names = [*jobs(Path())]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all")
    parser.add_argument("--storm", type=int, default=5, help="kills at most before a job may come to its end")
    parser.add_argument("--pause", type=float, default=0.7, help="before a kill at most, a share of the whole time")
    parser.add_argument("--stops", type=float, default=0.15, help="share of the kills that are SIGTERM or SIGINT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=names, default=names)
    parser.add_argument("--images", type=int, default=384, help="of jobs of several processes")
    parser.add_argument("--times", type=int, default=0, help="rounds of jobs of several processes, undisturbed")
    parser.add_argument("--folder", type=Path, help="a new one, which stays; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.py").write_text(RECIPE)
        make_images(folder)
        soak, tallies = Soak(folder, options.seed, options.pause, options.stops), {}
        if set(options.jobs) - {"train", "prepare"}:
            training = Job(("train", "mine:tiny", "--out", str(folder / "model")), lambda place: None)
            soak.undisturbed("model", training, 0)
        for index, name in enumerate(options.jobs):
            job, tally = jobs(folder, options.images)[name], tallies.setdefault(name, Tally())
            share = options.kills // len(options.jobs) + (index < options.kills % len(options.jobs))
            expected, seconds, busy = soak.undisturbed(name, job, job.several[0])
            print(f"{name}: {seconds:.1f} s undisturbed, {busy:.1f} s of the CPU", file=sys.stderr, flush=True)
            for same, words in soak.times(name, options.images, options.times, expected) if options.times else ():
                tally.wrong += [f"other bits: {words}"] * (not same)
                print(f"{name}: {words}", file=sys.stderr, flush=True)
            while tally.kills < share and not tally.wrong:
                soak.storm(name, job, expected, seconds, min(options.storm, share - tally.kills), tally)
                print(tally.row(name), file=sys.stderr, flush=True)
        print("\n".join((HEAD, "| --- |" + " --- |" * 6, *(tally.row(name) for name, tally in tallies.items()))))
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
