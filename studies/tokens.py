"""Students of tokens by discrete moment matching, with and without noise beside their masks, and their teacher.

    OMP_NUM_THREADS=1 .venv/bin/python -m dualrate train fashion-mnist-tokens --out runs/tokens     # the teacher first
    OMP_NUM_THREADS=1 .venv/bin/python studies/tokens.py teacher-64 noise-4 plain-4    # trains and measures, in turn
    .venv/bin/python studies/tokens.py                                      # table and figure of what there is

Images of 14 x 14 pixels in 8 greys. A name is `noise` or `plain`, students that read 4 planes of noise or none, or
`teacher`; and the number of steps. Students train for the same ITERATIONS of 64 images, which cost the same. Two
classifiers of such images judge, of two architectures, trained apart into runs/tokens-judges where they are missing.
Killed, a training goes on. Results are kept in docs/results/tokens, a file a name.
"""

from __future__ import annotations

from typing import Any

from common import RESULTS, RUNS, SHOWN, place
from lines import Line, Study

from dualrate.experiments.experiment import DataConfig
from dualrate.machine.progress import Reporter
from dualrate.measuring.choosing import Choice
from dualrate.measuring.evaluator import evaluator, messages, training_progress
from dualrate.metrics.architectures import Architecture, Stacked
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.train_features import BATCH_SIZE, feature_net_in
from dualrate.report.figures import png
from dualrate.report.image_grid import save_grid

ITERATIONS = 900
TEACHER, PAGE = "runs/tokens", RESULTS / "tokens.md"
STEPS, OF_TEACHER = (4, 8, 16), (4, 8, 16, 64, 256)
PICTURED = ("plain-4", "noise-4", "plain-16", "noise-16", "teacher-16", "teacher-64", "teacher-256")
NETS = {"greys-a": (Architecture, 0, 5), "greys-b": (Stacked, 1, 5)}  # architecture, seed, epochs


def lines() -> dict[str, Line]:
    found: dict[str, Line] = {}
    for kind, called, planes in (("noise", "student, with noise", 4), ("plain", "student, masks alone", 0)):
        for n in STEPS:
            command = f"distill fashion-mnist-tokens --teacher {TEACHER} --student plain --steps {n} --noise {planes}"
            found[f"{kind}-{n}"] = Line(called, f"runs/tokens-students/{kind}-{n}", command, ITERATIONS, Choice(n))
    return found | {f"teacher-{n}": Line("the teacher", TEACHER, choice=Choice(n)) for n in OF_TEACHER}


def judges(data: DataConfig, progress: Reporter) -> tuple[Evaluator[Any], ...]:
    """Of the images as they are, before they become tokens."""
    train, test = (data.images(split, messages(progress.note)) for split in ("train", "test"))
    for name, (kind, seed, epochs) in NETS.items():
        how = {"kind": kind, "seed": seed, "epochs": epochs, "name": name}
        shown = training_progress(progress, BATCH_SIZE)
        feature_net_in(RUNS / "tokens-judges" / name, train, test, **how, progress=shown)
    return tuple(evaluator(data, features=RUNS / "tokens-judges" / name, progress=progress) for name in NETS)


STUDY = Study("tokens", lines(), judges)


def pages() -> None:
    """Table, figure and images of what there is."""
    if not (found := STUDY.results(STUDY.lines)):
        return
    print(STUDY.table(found))
    place("tokens", STUDY.table(found), PAGE)
    (RESULTS / "tokens.png").write_bytes(png(STUDY.figure(found)))
    shown = [name for name in PICTURED if name in found]
    save_grid(STUDY.drawn(shown), RESULTS / "tokens-samples.png", columns=SHOWN, scale=3)
    print("a row of images each:", *shown)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
