"""Trains one of the models behind docs/results.md: `make reproduce-train MODEL=<name>`; the same command resumes.

Every run is one `dualrate train` or `dualrate distill` command, printed before it starts; it writes runs/<name>. The
natural16 and flat runs need DATA=<your copy of CIFAR-10>.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from released import ROOT, require_released

ALIKE = (  # in equal time
    *("heavy", "medium-45", "medium-25", "light", "light-10", "light-05"),
    *("dual-45", "dual-25", "dual-17"),
)
LIGHT_BESIDE = "--method.freeze-encoder --fit.iterations 19500 --method.encoder-from"  # half as long again as its own
OF_HEAVY_SIZE = (
    "--networks.encoder.levels.0.channels 64 --networks.encoder.levels.1.channels 192 "
    "--networks.encoder.levels.1.blocks 6 --networks.encoder.head-dim 64"
)
LATE = "--method.times.heavy 1 8 --method.times.first 0.6 0.9"  # the plans that pay: few heavy calls, the first late


def at_constant_rate(recipe: str, iterations: int = 7000, more: str = "") -> str:
    """As the models of older pages were trained, dual-rate ones with the heavy network for encoder and for any plan."""
    dual = f"{OF_HEAVY_SIZE} --method.times.heavy 4 32 --method.times.first None" if recipe == "dual-45" else ""
    return f"fashion-mnist-{recipe} --fit.optim.decay none --fit.iterations {iterations} {dual} {more}"


def from_heavy(iterations: int, more: str = "") -> str:
    return at_constant_rate("dual-45", iterations, f"--method.encoder-from weights/fashion-mnist-heavy {more}")


def retrofit(iterations: int, more: str = "") -> str:
    return from_heavy(iterations, f"--method.freeze-encoder {more}")


DECODERS = {"heavy": 3700, "medium": 6550, "small": 8500, "light": 12_700, "dual": 2140, "retrofit": 1800}  # iterations
DECODER = "fashion-mnist-decoder --codec runs/latents/first --heavy runs/decoder-heavy --light runs/decoder-light"
RUNS = {
    **{f"settle-{name}": f"fashion-mnist-{name}" for name in ALIKE},
    "settle-retrofit": f"fashion-mnist-dual-45 {OF_HEAVY_SIZE} {LIGHT_BESIDE} weights/fashion-mnist-heavy-annealed",
    "settle-retrofit-45": f"fashion-mnist-dual-45 {LIGHT_BESIDE} weights/fashion-mnist-medium-45",
    "heavy": at_constant_rate("heavy"),
    "heavy-long": at_constant_rate("heavy", 10_000),
    "medium": at_constant_rate("medium-45", 10_000, "--networks.model.levels.1.blocks 4"),
    "light": at_constant_rate("light"),
    "light-long": at_constant_rate("light", 11_094),
    "dual": from_heavy(3000, "--method.light-from weights/fashion-mnist-light"),
    "heavy-1500": at_constant_rate("heavy", 1500),
    "dual-early": at_constant_rate("dual-45", 7029, "--method.encoder-from runs/heavy-1500"),
    "joint": from_heavy(2000),
    "shared-2": from_heavy(2700, "--method.times.draws 2 --fit.batch-size 64 --fit.ema-halflife 25000"),
    "shared-4": from_heavy(3400, "--method.times.draws 4 --fit.batch-size 32 --fit.ema-halflife 12500"),
    **{f"retrofit-{n}": retrofit(n) for n in (500, 1500, 3500, 7000)},
    "dropout-0": retrofit(1500, "--method.times.dropout 0"),
    "last-level": retrofit(1500, "--networks.context.levels 1"),
    "width-2": retrofit(1500, "--networks.context.width 2"),
    "width-8": retrofit(1500, "--networks.context.width 8"),
    "no-head": retrofit(1500, "--networks.encoder.no-head"),
    "flat-retrofit": f"cifar10-flat-dual --method.encoder-from runs/flat-heavy --method.freeze-encoder {LATE}",
    **{f"flat-{name}": f"cifar10-flat-{name}" for name in ("heavy", "medium", "light")},
    "latents": "fashion-mnist-latents --first.fit.iterations 4000 --base.fit.iterations 1500",  # both stages
    **{f"decoder-{kind}": f"{DECODER} --kind {kind} --fit.iterations {n}" for kind, n in DECODERS.items()},
    "decoder-dual-medium": f"{DECODER} --kind dual --encoder medium --fit.iterations 2860",
    **{
        f"natural16-{name}": f"natural16-{name}"
        for name in ("heavy", "medium-45", "medium-25", "light", "light-10", "dual-25")
    },
}
RUNS |= {  # of those on the front
    f"{name}-seed{seed}": f"{RUNS[name]} --fit.seed {seed}"
    for name in (
        *("settle-medium-45", "settle-medium-25", "settle-light", "settle-light-10"),
        *("settle-dual-45", "settle-dual-25", "settle-dual-17", "natural16-light", "natural16-dual-25"),
    )
    for seed in (1, 2)
}
OF_HEAVY = "fashion-mnist --teacher weights/fashion-mnist-heavy"
OF_DUAL = f"{OF_HEAVY} --student dual --student-from weights/fashion-mnist-dual"
BY_B = "--student dual --rollout full"  # moment matching's algorithm B


def taught_by(teacher: str, plan: tuple[int, int], pair: str = "", single: str = "") -> str:
    """plan: steps and heavy calls; pair, single: what it begins as, if not as its teacher"""
    begin = f"--student-from weights/fashion-mnist-{pair} " if pair else ""
    begin += f"--encoder-from weights/fashion-mnist-{single} " if single else ""
    return f"fashion-mnist --teacher weights/fashion-mnist-{teacher} {BY_B} {begin}--steps {plan[0]} --heavy {plan[1]}"


def small_students(again: str = "", seed: str = "") -> dict[str, str]:
    """Taught by medium-25, all of them. again: names the other training of the networks, whose students these are."""
    teacher = f"medium-25{again}"
    made = {
        "25-8-4": taught_by(teacher, (8, 4), pair=f"dual-25{again}"),
        "25-8-2": taught_by(teacher, (8, 2), pair=f"dual-25{again}"),
        "25-16-2": taught_by(teacher, (16, 2), pair=f"dual-25{again}"),
        "light-10-8": taught_by(teacher, (8, 8), single=f"light-10{again}"),
        "light-10-10": taught_by(teacher, (10, 10), single=f"light-10{again}"),
        "light-8": taught_by(teacher, (8, 8), single=f"light{again}"),
        "medium-25-4": taught_by(teacher, (4, 4)),
        "medium-25-6": taught_by(teacher, (6, 6)),
    }
    return {f"settle-student-{name}{again}": command + seed for name, command in made.items()}


STUDENTS = {
    "student-plain-4": f"{OF_HEAVY} --student plain --steps 4",
    "student-plain-8": f"{OF_HEAVY} --student plain --steps 8",
    "student-segment": f"{OF_DUAL} --steps 8 --heavy 4 --rollout segment",
    "student-full": f"{OF_DUAL} --steps 8 --heavy 4 --rollout full",
    "student-segment-seed1": f"{OF_DUAL} --steps 8 --heavy 4 --rollout segment --fit.seed 1",
    "student-full-seed1": f"{OF_DUAL} --steps 8 --heavy 4 --rollout full --fit.seed 1",
    "student-teacher-4-4": f"{OF_HEAVY} --student dual --steps 4 --heavy 4 --rollout full",
    "student-full-4-4": f"{OF_DUAL} --steps 4 --heavy 4 --rollout full",
    **{
        f"settle-student-{n}-{h}": taught_by("heavy-annealed", (n, h), "retrofit") for n, h in ((8, 4), (8, 2), (16, 2))
    },
    **{f"settle-student-45-{n}-{h}": taught_by("medium-45", (n, h), "retrofit-45") for n, h in ((8, 4), (8, 2))},
    **{f"settle-student-medium-45-{n}": taught_by("medium-45", (n, n)) for n in (4, 6, 8)},
}
STUDENTS |= {f"{name}-seed1": f"{STUDENTS[name]} --fit.seed 1" for name in STUDENTS if name.startswith("settle")}
STUDENTS |= small_students() | small_students("-seed1", " --fit.seed 1")


def command(name: str, data: str = "") -> list[str]:
    """The `dualrate` arguments that train or distil a run. data: its images, if not the recipe's own."""
    kind = ["train", *shlex.split(RUNS[name])] if name in RUNS else ["distill", *shlex.split(STUDENTS[name])]
    source = ["--data.source", str(Path(data).resolve())] if data else []
    return [*kind, *source, "--out", f"runs/{name}"]


def become(arguments: list[str]) -> None:
    """This process becomes a `dualrate` command, printed first, in the repository."""
    require_released(*arguments)
    print("dualrate", shlex.join(arguments), flush=True)
    os.chdir(ROOT)
    program = Path(sys.executable).with_name("dualrate")
    os.execv(program, [str(program), *arguments])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[*RUNS, *STUDENTS])
    parser.add_argument("--data", default="", help="your copy of CIFAR-10, for the natural16 and flat runs")
    options = parser.parse_args()
    if options.name.startswith(("natural16", "flat")) and not options.data:
        parser.error("say where your copy of CIFAR-10 is: --data PATH, or make ... DATA=PATH")
    become(command(options.name, options.data))


if __name__ == "__main__":
    main()
