"""Models of one to eight steps by every branch of distillation, in equal training seconds, of two teachers.

    OMP_NUM_THREADS=1 .venv/bin/python studies/few_steps.py consistency-4 moments-4     # trains and measures, in turn
    .venv/bin/python studies/few_steps.py       # table and figure of what there is

A name is a branch and its number of steps; `teacher-...` and `ddim-...` are the teacher itself, under SDE-DPM-Solver++
2M at gamma 0.1 and under DDIM; `best-...` under what is BEST of it at 2 and 4 steps. `heavy-...` are of the heavy
teacher, `dual-...` at two rates, half of the steps heavy; `own` and `moments` of them are moment matching's algorithm
B, `segment` its A. All of a teacher train for equal seconds of one core, ITERATIONS of each branch, of 64 images: 60
took consistency 24 s, from data 22, moments 25.7 (mean of three), em 25, and of the heavy teacher 16 took consistency
30, moments 29, em 30, 12 dual-rate moments 37, and dual-rate consistency 1.12 times as long as that, one after the
other on one core, 2026-11-22, AMD EPYC with AVX2, float32. The others by seconds of processor time of an iteration, of
10 to 16 of them: heavy moments 1.15, dual-rate moments 1.98 at 8/4, 1.78 at 4/2, 1.64 at 2/1, by A 1.70 and 1.74,
dual-rate consistency 2.49, 2.36, 2.30, own 1.82 at 4, 1.60 at 2, an Intel Xeon with AVX-512, float32; own at 1 and 8
0.85 and 1.44 times as long as at 2 on an AMD EPYC with AVX-512, float32. Killed, a training goes on. Runs are kept in
runs/few-steps, results in docs/results/few-steps, a file a name.
"""

from __future__ import annotations

from typing import Any

from common import RESULTS, markdown, place, within
from lines import Found, Line, Study, fashion_judges

from dualrate.drawing.choice import Choice
from dualrate.report.figures import png

LIGHT, HEAVY, PAIR = (f"weights/fashion-mnist-{name}" for name in ("light", "heavy-annealed", "retrofit"))
PAGE, SUMMARY = RESULTS / "few-steps.md", RESULTS.parent / "results.md"
ITERATIONS = {
    "consistency": 1900,
    "data": 2070,
    "moments": 1770,
    "em": 1820,
    "heavy-consistency": 800,
    "heavy-moments": 830,
    "heavy-em": 800,
    "heavy-own-1": 705,
    "heavy-own-2": 597,
    "heavy-own-3": 560,
    "heavy-own-4": 524,
    "heavy-own-8": 414,
    "dual-moments-2": 582,
    "dual-moments-4": 537,
    "dual-moments-8": 484,
    "dual-segment-4": 550,
    "dual-segment-8": 565,
    "dual-consistency-2": 467,
    "dual-consistency-4": 455,
    "dual-consistency-8": 432,
}
STEPS = (1, 2, 4, 8)
BEST = {  # of thirteen samplers and grids on 1,024 images of other seeds, of the heavy teacher, by two judges
    2: Choice(2, sampler="sde-dpm++2m", gamma=0.1, grid="t"),
    4: Choice(4, sampler="dpm++2m"),
}
PICTURED = ("ddim-4", "em-1", "consistency-1", "consistency-4", "moments-1", "moments-4", "data-4", "teacher-32")


def lines() -> dict[str, Line]:
    found: dict[str, Line] = {}

    def train(name: str, called: str, branch: str, arguments: str) -> None:
        found[name] = Line(called, f"runs/few-steps/{name}", arguments, ITERATIONS[branch])

    def distil(name: str, called: str, branch: str, arguments: str, teacher: str = LIGHT) -> None:
        train(name, called, branch, f"distill fashion-mnist --teacher {teacher} {arguments}")

    for n in STEPS:
        by_consistency, by_moments = f"--by consistency --steps {n}", f"--student plain --steps {n}"
        distil(f"consistency-{n}", "consistency", "consistency", by_consistency)
        train(
            f"data-{n}",
            "consistency, from data",
            "data",
            f"train fashion-mnist-light --by consistency --method.steps {n} --method.student-from {LIGHT} "
            "--fit.batch-size 64 --fit.optim.lr 1e-4 --fit.optim.betas 0 0.99 --fit.optim.decay cosine "
            "--fit.ema-halflife 20000",  # as all others
        )
        distil(f"moments-{n}", "moment matching", "moments", by_moments)
        if n < 4:
            constant = f"{by_consistency} --teacher-steps 1280 1280"
            distil(f"constant-{n}", "consistency, 1,280 steps throughout", "consistency", constant)
        short = f"{by_consistency} --teacher-steps 16 64"
        distil(f"short-{n}", "consistency, 16 to 64 steps", "consistency", short)
        distil(f"heavy-consistency-{n}", "consistency", "heavy-consistency", by_consistency, HEAVY)
        distil(f"heavy-moments-{n}", "moment matching", "heavy-moments", by_moments, HEAVY)
    distil("em-1", "EM distillation", "em", "--by em")
    distil("heavy-em-1", "EM distillation", "heavy-em", "--by em", HEAVY)
    for n in (*STEPS, 3):  # three calls cost about a quarter more than dual-rate students of 4/2 do
        own = f"--student dual --steps {n} --heavy {n} --rollout full"
        distil(f"heavy-own-{n}", "moment matching B", f"heavy-own-{n}", own, HEAVY)
    for n in (2, 4, 8):
        two_rates = f"--steps {n} --heavy {n // 2} --student-from {PAIR}"
        by_consistency = f"--by consistency {two_rates}"
        distil(f"dual-consistency-{n}", "consistency, dual-rate", f"dual-consistency-{n}", by_consistency, HEAVY)
        distil(f"dual-moments-{n}", "moment matching B, dual-rate", f"dual-moments-{n}", two_rates, HEAVY)
        if n > 2:  # with one heavy call A is B
            segment = f"{two_rates} --rollout segment"
            distil(f"dual-segment-{n}", "moment matching A, dual-rate", f"dual-segment-{n}", segment, HEAVY)
        found[f"dual-pair-{n}"] = Line("its pair, not distilled", PAIR, choice=Choice(n, n // 2))
    for n in (*STEPS, 3, 5, 16, 32):  # heavy calls of 3 and 5 cost about what dual-rate students of 4/2 and 8/4 do
        for ahead, teacher in (("", LIGHT), ("heavy-", HEAVY)):
            found[f"{ahead}ddim-{n}"] = Line("the teacher, DDIM", teacher, choice=Choice(n, sampler="ddim"))
            usual = Choice(n, sampler="sde-dpm++2m", gamma=0.1, grid="log-snr")
            found[f"{ahead}teacher-{n}"] = Line("the teacher, SDE-DPM-Solver++ 2M", teacher, choice=usual)
            if n in BEST:
                found[f"{ahead}best-{n}"] = Line("the teacher, its best sampler", teacher, choice=BEST[n])
    return found


STUDY = Study("few-steps", lines(), fashion_judges, precision="float32")


def summary(found: Found) -> str:
    """Markdown: the first judge's scores, a line for each way and a column for each number of steps."""

    def cell(one: dict[str, Any] | None) -> str:
        return "-" if one is None else within(next(iter(one["scores"].values())))

    header = ["of a heavy teacher", *(f"{n} step{'s' * (n > 1)}" for n in STEPS)]
    rows = STUDY.by_name(found).items()
    return markdown(header, [[called, *(cell(of.get(n)) for n in STEPS)] for called, of in rows], texts=1)


def pages() -> None:
    """Tables, figures and images of what there is."""
    heavy = [name for name in STUDY.lines if name.startswith(("heavy", "dual"))]
    light = [name for name in STUDY.lines if name not in heavy]
    for name, names, cost in (("few-steps", light, "steps"), ("few-steps-heavy", heavy, "GFLOPs")):
        if found := STUDY.results(names):
            print(STUDY.table(found))
            place(name, STUDY.table(found), PAGE)
            (RESULTS / f"{name}.png").write_bytes(png(STUDY.figure(found, cost)))
    place("few-steps summary", summary(STUDY.results(heavy)), SUMMARY)
    STUDY.picture(PICTURED, scale=2)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
