"""Distilling a run: teacher, student, data and trainer brought together in a directory that the same call resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from dualrate.config.serial import to_plain
from dualrate.machine.device import pays, peak_memory
from dualrate.machine.files import write_whole
from dualrate.machine.progress import PlainReporter, Progress
from dualrate.measuring.drawer import Drawer
from dualrate.measuring.evaluator import evaluator
from dualrate.measuring.measure import check, measure
from dualrate.methods.method import Method
from dualrate.methods.moment_matching.instant import InstantMomentMatching
from dualrate.methods.moment_matching.watch import Watch
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import FeatureNet
from dualrate.runs.checks import check_out
from dualrate.runs.distillation import Distillation, short
from dualrate.runs.store import Model, load, note_start, write_experiment
from dualrate.runs.train import announce, batches_of, costs_of, samples_file, save_samples, training_images
from dualrate.sampling.ancestral import Ancestral
from dualrate.training import checkpoint
from dualrate.training.config import FitResult
from dualrate.training.log import MetricsFile
from dualrate.training.loop import fit

DISTILLATION = "distillation.json"
SCORED = 1000  # images of a score while training
PRECONDITIONING, ROWS = 64, 64  # batches of the instant version's preconditioner, their rows at most


def distill(
    distillation: Distillation,
    out: Path,
    *,
    fd_every: int | None = None,
    progress: Progress | None = None,
    decoding: Callable[[int, int, str], None] | None = None,
    device: torch.device | str = "cpu",
    command: str = "dualrate.distill",
) -> FitResult:
    """Distil, or continue, the run in `out`, which every other command takes for an ordinary one.

    Writes what `train` writes, distillation.json, and scores.jsonl if asked to score.
    fd_every: iterations between scores of 1,000 images under the averaged weights; a multiple of `sample_every`
    Raises ValueError for a teacher that cannot teach this student, another distillation in `out`, and what `train`
    refuses; OSError as that does.
    """
    student, device, progress = distillation.student, torch.device(device), progress or PlainReporter()
    check_out(student.name, out)
    if (out / "experiment.json").exists() and not (out / DISTILLATION).exists():
        raise ValueError(f"{out} holds a run that was trained, not distilled: choose a new directory as --out")
    teacher = load(distillation.teacher, device=device, note=progress.note)
    distillation.check(teacher)
    images = training_images(student, decoding)
    judge = None if fd_every is None else _judge(distillation, fd_every, progress)
    precision = student.fit.precision
    method = distillation.method(teacher, bfloat16=precision == "bfloat16" or (precision == "auto" and pays(device)))
    batches = batches_of(student, images)
    if isinstance(method, InstantMomentMatching):
        progress.note(f"preconditioner: the teacher's gradients on {PRECONDITIONING} batches")
        method = method.preconditioned(batches.batch(i)[:ROWS].to(device) for i in range(PRECONDITIONING))
    started_from = {"teacher": f"{distillation.teacher} at iteration {teacher.iteration}, {short(teacher)}"}
    if not checkpoint.steps(out / "checkpoints"):
        started_from |= distillation.start(method.networks, teacher, progress.note)

    costs = costs_of(student, method)

    def on_start() -> None:
        announce(student, images, costs, out, progress)
        # before experiment.json, which makes it a run
        write_whole(out / DISTILLATION, json.dumps(to_plain(distillation), indent=1) + "\n")
        write_experiment(out, student)
        note_start(out, command, started_from)

    def on_sample(iteration: int) -> None:
        save_samples(student, method.denoiser(), distillation.plan, samples_file(out, iteration), device)
        if judge is not None and fd_every is not None and iteration % fd_every == 0:
            _score(distillation, method, judge, iteration, out, progress)

    result = fit(
        method,
        batches,
        student.fit,
        out,
        identity=to_plain(distillation) | {"teacher": short(teacher), "images": images.fingerprint},
        progress=Watch(progress),
        on_start=on_start,
        on_sample=on_sample,
        device=device,
    )
    progress.note(f"peak memory {peak_memory(device) / 2**20:.0f} MiB")
    return result


def _judge(distillation: Distillation, fd_every: int, progress: Progress) -> Evaluator[FeatureNet]:
    student = distillation.student
    if fd_every < 1 or fd_every % student.fit.sample_every:
        raise ValueError(f"fd_every is a multiple of sample_every ({student.fit.sample_every}), got {fd_every}")
    judge = evaluator(student.data, features=None, progress=progress)
    check(judge, SCORED, details=False)
    return judge


def _score(
    distillation: Distillation,
    method: Method,
    judge: Evaluator[FeatureNet],
    iteration: int,
    out: Path,
    progress: Progress,
) -> None:
    """Score the weights in place; the last line of scores.jsonl."""
    student = distillation.student
    model = Model(student.name, student, method.networks, method.denoiser(), iteration, weights_hash="")
    row = measure(Drawer(model, Ancestral(student.process), distillation.plan), range(SCORED), judge).row
    lines = MetricsFile(out / "scores.jsonl", iteration - 1, progress.note)
    lines.write({"iteration": iteration, judge.metric: row.score.value})
    progress.note(f"iteration {iteration}: {judge.metric} {row.score.value:.3f} ({SCORED} images)")
