"""The pieces of GPU work, the most valuable first; tools/gpu_queue.py lists and runs them.

CIFAR-10's networks have equal GPU time, three shares of eight minutes each: heavy, medium and light alone three, and
dual-rate one of its encoder, heavy or medium, one of light and one of both together. Rates fall to zero with the time
that is given, half a cosine; what a pair starts from is a third of the way down. On a CPU pairs paid where they start
from smaller networks (docs/results/tried.md), so the one with the medium encoder is there too.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 480  # seconds of training a piece, which leaves two minutes for data, samples and what it leaves


@dataclass(frozen=True)
class Command:
    """line: run in the folder of the runs; {out}: where results go, {train} and {distill}: what recipes begin with,
    {dual_45}: the recipe of that pair

    smoke: options that make it a matter of seconds
    answers: the exit codes with which it has done what it is for
    """

    line: str
    smoke: str = ""
    answers: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Piece:
    """answers: which question; minutes: of one modern GPU, at most, then it is told to stop

    data:   whether it reads CIFAR-10
    begins: a piece whose run it copies and goes on with
    needs:  pieces whose folders it reads
    leaves: how its folder travels (tools/travel.py); empty: it has none, only `files`
    folder: which one; the run of its name if not given
    files:  beside what its commands print
    """

    name: str
    answers: str
    commands: tuple[Command, ...]
    minutes: int = 10
    data: bool = False
    begins: str = ""
    needs: tuple[str, ...] = ()
    leaves: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The folder that travels."""
        return self.folder or self.name

    @property
    def after(self) -> tuple[str, ...]:
        """The pieces before it."""
        return ((self.begins,) if self.begins else ()) + self.needs


def benchmark(name: str, answers: str, line: str, smoke: str, codes: tuple[int, ...] = (0,)) -> Piece:
    """One that leaves a file of figures."""
    return Piece(name, answers, (Command(f"{line} --out {{out}}/{name}.figures.json", smoke, codes),))


def annealed(seconds: int, until: int | None = None) -> str:
    """Options of a training whose rate falls to zero in so many seconds, and which ends then, or before."""
    return f"--fit.optim.decay cosine --fit.optim.decay-seconds {seconds} --fit.max-seconds {until or seconds}"


def training(model: str, part: int, of: int = 3) -> Piece:
    """A share of a network's training, from where the share before ended."""
    name, end = f"cifar10-{model}-{part}", annealed(of * SHARE, part * SHARE)
    line = f"dualrate train {{train}}{model} --data.source data {end} --out {name}"
    return Piece(
        name,
        f"{model} alone, {part} of {of} shares of GPU time",
        (Command(line, f"--fit.iterations {2 * part}"),),
        data=True,
        begins=f"cifar10-{model}-{part - 1}" if part > 1 else "",
        leaves="state" if part < of else "weights",
    )


def dual(name: str, recipe: str, encoder: str) -> Piece:
    parts = {"encoder": f"cifar10-{encoder}-1", "light": "cifar10-light-1"}
    starts = " ".join(f"--method.{role}-from {run}" for role, run in parts.items())
    line = f"dualrate train {recipe} --data.source data {starts} {annealed(SHARE)} --out {name}"
    return Piece(
        name,
        f"dual-rate, from one share of {encoder} and one of light",
        (Command(line, "--fit.iterations 2"),),
        data=True,
        needs=tuple(parts.values()),
        leaves="weights",
    )


def score(name: str, options: str = "") -> Command:
    return Command(f"dualrate evaluate {name}{options} --json --num 20000", "--num 256 --batch-size 64")


def judge() -> Piece:
    """Its score trains the feature net that all others are judged by, and which it leaves."""
    return Piece(
        "cifar10-judge",
        "the feature net that judges, and how good heavy is after its first share",
        (score("cifar10-heavy-1"),),
        data=True,
        needs=("cifar10-heavy-1",),
        leaves="folder",
        folder="cache/features",
    )


def report(name: str, pair: str, encoder: str) -> Piece:
    """Of one pair: more would not travel."""
    runs = {model: f"cifar10-{model}-3" for model in ("heavy", "medium", "light")} | {"dual": pair}
    entries = " ".join(f"{model}={run}" for model, run in runs.items())
    page = f"{name}-page"  # the record of a piece is NAME.json
    line = f"dualrate compare {entries} --count 20000 --minutes 8 --out {page}.html"
    return Piece(
        name,
        f"what dual-rate with a {encoder} encoder saves at equal quality in FLOPs and seconds, on natural images",
        (Command(line, "--screen 256 --count 256 --minutes 0.02"),),
        data=True,
        needs=(*runs.values(), "cifar10-judge"),
        files=tuple(f"{page}.{ending}" for ending in ("html", "json", "csv")),
    )


def student(steps: int, heavy: int | None = None) -> Piece:
    """Of the heavy network: dual-rate, started from the dual-rate model, or plain."""
    name = f"cifar10-student-{steps}" + (f"-{heavy}" if heavy else "")
    kind = f"--heavy {heavy} --student-from cifar10-dual" if heavy else "--student plain"
    line = f"dualrate distill {{distill}} --teacher cifar10-heavy-3 {kind} --steps {steps} --out {name}"
    fit = f"--fit.batch-size 128 --fit.no-compile {annealed(360)}"
    return Piece(
        name,
        f"{steps} steps, {heavy} heavy calls, distilled" if heavy else f"{steps} calls of one network, distilled",
        (Command(f"{line} {fit}", "--fit.batch-size 4 --fit.iterations 2"), score(name)),
        data=True,
        needs=("cifar10-heavy-3", *(["cifar10-dual"] if heavy else []), "cifar10-judge"),
        leaves="weights",
    )


LATE = "--method.times.heavy 1 8 --method.times.first 0.6 0.9"  # the plans that were any good elsewhere
SPEED = "benchmarks.gpu --models fashion-mnist-dual-45"
DEEP = "'light of 32 blocks of 48' 'light of 8 blocks of 96' 'light of 2 blocks of 192'"
LAYOUTS = f"benchmarks.gpu --models {DEEP} --batches 1 64"
QUEUE = (
    benchmark(
        "agreement", "is all of it right on CUDA and in bfloat16", "benchmarks.agreement", "--device cpu",
        codes=(0, 3),  # no is an answer, and what follows does not wait for yes
    ),
    *(
        benchmark(
            f"speed-{precision}",
            f"milliseconds of heavy and light calls, {precision}: eager, compiled, as CUDA graphs",
            f"{SPEED} --precision {precision}",
            "--device cpu --batches 1 --seconds 0 --steps 1",
        )
        for precision in ("bfloat16", "float32")
    ),
    training("heavy", 1),
    training("light", 1),
    dual("cifar10-dual", f"{{train}}dual {LATE}", "heavy"),
    judge(),
    training("medium", 1),
    dual("cifar10-dual-45", "{dual_45}", "medium"),
    *(training(model, part) for part in (2, 3) for model in ("heavy", "light", "medium")),
    report("cifar10-report", "cifar10-dual", "heavy"),
    report("cifar10-report-45", "cifar10-dual-45", "medium"),
    student(8, 4),
    student(4),
    student(8),
    student(8, 2),
    student(4, 2),
    *(
        benchmark(
            f"imagenet64-{what}",
            f"ImageNet-64's networks on made-up images: {question}, eager and compiled",
            f"benchmarks.imagenet {what}",
            "--device cpu --tiny --batch 2 --steps 4 --heavy 2 --seconds 0",
        )
        for what, question in (
            ("sampling", "dual-rate's speed-up in seconds against its ratio of FLOPs"),
            ("training", "images a second of training"),
        )
    ),
    benchmark(
        "speed-layouts", "is a deep and narrow light network slower than a wide one of equal FLOPs", LAYOUTS,
        "--device cpu --batches 1 --seconds 0 --steps 1",
    ),
)  # fmt: skip
