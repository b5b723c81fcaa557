"""Texts: a teacher of characters in 8, 16 and 64 steps, and its students by discrete moment matching.

    OMP_NUM_THREADS=1 .venv/bin/python studies/texts.py teacher-8 student-8     # trains and measures, in turn
    .venv/bin/python studies/texts.py                           # table, figure and pieces of what there is

The text is the reference of the Python that runs this (`python-docs`), in pieces of 64 characters. A name is `teacher`
or `student`, `fast` at 7.5 times the rate, and the number of steps; a student is trained for its own. Measured are the
bound of held-out pieces, bits a character of what is drawn under a language model of the same text, the entropy within
a piece, and the gradient moment from held-out pieces (drawing/samples.py): 1,000 pieces drawn, and as many held out or
all there are, 726 of Python 3.11's.
Killed, a training goes on. Runs are kept in runs/texts, results in docs/results/texts, a file a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import RESULTS, place
from lines import Line, Scores, Study

import dualrate as dr
from dualrate.codecs.tokens import texts
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluator
from dualrate.drawing.samples import score_texts
from dualrate.report.figures import png
from dualrate.system.progress import Reporter, image_progress

STEPS, PIECES, SHOWN = (8, 16, 64), 1000, 4
FAST = 1.5
ITERATIONS = {"teacher": 4000, "student": 1000}
TEACHER, PAGE = "runs/texts/teacher", RESULTS / "texts.md"


def lines() -> dict[str, Line]:
    found: dict[str, Line] = {}
    for n in STEPS:
        teach = "train text-tokens"
        distil = f"distill text-tokens --teacher {TEACHER} --student plain --steps {n}"
        found[f"teacher-{n}"] = Line("the teacher", TEACHER, teach, ITERATIONS["teacher"], Choice(n))
        run = f"runs/texts/student-{n}"
        found[f"student-{n}"] = Line("its students", run, distil, ITERATIONS["student"], Choice(n))
        fast, how = f"student-fast-{n}", f"{distil} --student-rate {FAST}"
        found[fast] = Line("its students, fast", f"runs/texts/{fast}", how, ITERATIONS["student"], Choice(n))
    return found


@dataclass(frozen=True)
class TextStudy(Study):
    """A study of models of texts; `judges` is not asked."""

    def scores(self, drawer: Drawer, name: str, count: int, progress: Reporter) -> Scores:
        """With 1.96 standard errors either way."""
        judge = evaluator(drawer.model.experiment.data, progress=progress)
        found = score_texts(drawer, range(count), judge, progress=image_progress(progress))
        said = {
            "bound": (found.bound.total.value, found.bound.total.error),
            "language model": (found.drawn.bits.value, found.drawn.bits.error),
            "entropy": (found.drawn.entropy.value, found.drawn.entropy.error),
            "gradient moment": (found.gradient_moment.value, found.gradient_moment.error),
        }
        return {what: (mean, mean - 1.96 * error, mean + 1.96 * error) for what, (mean, error) in said.items()}


STUDY = TextStudy("texts", lines(), lambda data, progress: (), count=PIECES)


def pieces(names: list[str]) -> str:
    """The first pieces of each, of the same noise."""
    shown: list[str] = []
    for name in names:
        drawer = STUDY.lines[name].choice.drawer(dr.load(STUDY.run_of(name)))
        drawn = texts(drawer.model.experiment.codec.alphabet, drawer.draw(range(SHOWN)).images)
        shown += [f"    {name:15} {piece!r}" for piece in drawn]
    return "\n".join(shown) + "\n"


def pages() -> None:
    """Table, figure and pieces of what there is."""
    if not (found := STUDY.results(STUDY.lines)):
        return
    print(STUDY.table(found))
    place("texts", STUDY.table(found), PAGE)
    (RESULTS / "texts.png").write_bytes(png(STUDY.figure(found)))
    if all(map(STUDY.is_here, found)):
        place("pieces", pieces(list(found)), PAGE)


if __name__ == "__main__":
    STUDY.command(__doc__, pages)
