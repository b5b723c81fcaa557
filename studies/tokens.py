"""Tokens of images: a teacher, students by discrete moment matching with and without noise beside their masks, a model
at two rates, and one network between.

    OMP_NUM_THREADS=1 .venv/bin/python -m dualrate train fashion-mnist-tokens --out runs/tokens     # the teacher first
    OMP_NUM_THREADS=1 .venv/bin/python studies/tokens.py teacher-64 noise-fast-4     # trains and measures, in turn
    .venv/bin/python studies/tokens.py                                      # table and figure of what there is

Images of 14 x 14 pixels in 8 greys. A name is `noise` or `plain`, students that read 4 planes of noise or none; `fast`
ones at 7.5 times the rate; `long` ones so for thrice the iterations; `teacher`; `medium`, a network of 0.39 of its
cost; and the number of steps. Or `dual`, the teacher as encoder and a light network trained beside it, with steps and
heavy calls. Students train for the same ITERATIONS of 64 images, which cost the same, `long` ones thrice; the light
network and `medium` for iterations such that the teacher and the light network have taken the time of `medium`: 1,769
and 370 s beside 2,032 s (AMD EPYC with AVX-512, bfloat16, a core each). Two classifiers of such images judge, of two
architectures, trained apart into runs/tokens-judges where they are missing. Killed, a training goes on. Results are
kept in docs/results/tokens, a file a name.
"""

from __future__ import annotations

from typing import Any

from common import RESULTS, RUNS, nets_in, place
from lines import Line, Study

from dualrate.drawing.choice import Choice
from dualrate.drawing.evaluator import evaluators
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.architectures import Architecture, Stacked
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.figures import png
from dualrate.system.progress import Reporter

ITERATIONS, FAST = 900, 1.5
TEACHER, PAGE = "runs/tokens", RESULTS / "tokens.md"
STEPS, OF_TEACHER, OF_MEDIUM = (4, 8, 16), (4, 8, 16, 32, 64, 256), (16, 32, 64, 128)
OF_DUAL = (32, 8), (64, 16), (128, 32), (64, 8), (128, 16), (256, 32)
PICTURED = ("plain-fast-4", "noise-fast-4", "plain-fast-16", "teacher-16", "teacher-64", "medium-64", "dual-64-16")
NETS = {"greys-a": (Architecture, 0, 5), "greys-b": (Stacked, 1, 5)}


def lines() -> dict[str, Line]:
    found: dict[str, Line] = {}
    for kind, called, planes in (("noise", "student, with noise", 4), ("plain", "student, masks alone", 0)):
        for n in STEPS:
            command = f"distill fashion-mnist-tokens --teacher {TEACHER} --student plain --steps {n} --noise {planes}"
            found[f"{kind}-{n}"] = Line(called, f"runs/tokens-students/{kind}-{n}", command, ITERATIONS, Choice(n))
            fast, how = f"{kind}-fast-{n}", f"{command} --student-rate {FAST}"
            found[fast] = Line(f"{called}, fast", f"runs/tokens-students/{fast}", how, ITERATIONS, Choice(n))
            long, thrice = f"{kind}-long-{n}", 3 * ITERATIONS
            found[long] = Line(f"{called}, fast and long", f"runs/tokens-students/{long}", how, thrice, Choice(n))
    medium = "train fashion-mnist-tokens --networks.model.channels 96 --networks.model.blocks 4"
    dual = f"train fashion-mnist-tokens-dual --method.encoder-from {TEACHER} --method.freeze-encoder"
    for n in OF_MEDIUM:
        found[f"medium-{n}"] = Line("a network between", "runs/tokens-medium", medium, 15_000, Choice(n))
    for n, heavy in OF_DUAL:
        called = f"two rates, a heavy call in {n // heavy} steps"
        found[f"dual-{n}-{heavy}"] = Line(called, "runs/tokens-dual", dual, 3000, Choice(n, heavy))
    return found | {f"teacher-{n}": Line("the teacher", TEACHER, choice=Choice(n)) for n in OF_TEACHER}


def judges(data: DataConfig, progress: Reporter) -> tuple[Evaluator[Any], ...]:
    """Of the images as they are, before they become tokens."""
    return evaluators(data, nets_in(RUNS / "tokens-judges", NETS, data, progress), progress=progress)


STUDY = Study("tokens", lines(), judges)


def pages() -> None:
    """Table, figure and images of what there is."""
    if not (found := STUDY.results(STUDY.lines)):
        return
    print(STUDY.table(found))
    place("tokens", STUDY.table(found), PAGE)
    (RESULTS / "tokens.png").write_bytes(png(STUDY.figure(found, "GFLOPs")))
    STUDY.picture(PICTURED, scale=3)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
