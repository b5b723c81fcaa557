"""Where the heavy network sees nothing but a condition, what do two rates win on natural images, at equal GPU time?

CIFAR-10 with a hole of 16 x 16, and from 8 x 8 pixels: nine models a task, each trained for as many seconds as the
others, alone on the GPU, in the order of what they decide. Then 16 members of 500 held-out conditions are scored and
timed. Known pixels are put back before that.

A model takes SHARE seconds of training and 6 to 20 to compile, save, draw and score (on an H200), the first of a size
up to 70. So a call of nine minutes reaches six or seven of the eighteen, and the next one goes on. 20 seconds each
were too few: samples were noise of the right colours (docs/results/gpu.md).

Blocks are compiled in training, once for all models of a size. In sampling a call is a CUDA graph: compiling whole
networks would take longer than all samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

import dualrate as dr
from dualrate.config.serial import to_plain
from dualrate.data.condition_rows import Given
from dualrate.data.conditions import Condition, OfPicture, picture_of
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.metrics.ensembles import EnsembleScores
from dualrate.recipes.tasks import Rate, TrainedBy, conditional_networks, task_named
from dualrate.training.config import OptimConfig
from tools.gpu import training
from tools.gpu.cifar10 import SHAPE, Images, images, network
from tools.gpu.piece import CIFAR10, Job, Piece, Row

NAME = "conditions"
SHARE = 60.0  # seconds of training of a model
TASKS = {"inpainting": "inpainting:16", "super-resolution": "super-resolution:4"}
HEAVY, SMOKE = network(64, (128, 256), 1, 4, classes=0), network(8, (32, 32), 1, 1, classes=0)
MODELS: dict[str, tuple[Rate, TrainedBy]] = {
    "one call, dual": ("dual", "crps"),
    "one call, light": ("light", "crps"),
    "light": ("light", "diffusion"),
    "dual": ("dual", "diffusion"),
    "large": ("single", "diffusion"),
    "one call, large": ("single", "crps"),
    "medium": ("medium", "diffusion"),
    "corrdiff": ("dual", "corrdiff"),
    "residual": ("dual", "residual"),
}
STEPS = (4, 8, 16)
SHOWN, MEMBERS_SHOWN = 4, 6  # conditions and members of a strip


@dataclass(frozen=True)
class Sizes:
    """conditions that are scored; members of each; samples that are drawn at once, which fill the GPU."""

    conditions: int = 500
    members: int = 16
    batch: int = 2000


@dataclass(frozen=True)
class Cases:
    """Held-out conditions y (N, c, h, w), and the images (N, C, H, W) uint8 that they were made of."""

    condition: Condition
    y: Tensor
    truth: NDArray[np.uint8]

    @staticmethod
    def of(condition: Condition, held_out: Images) -> Cases:
        x = held_out.x.cpu()
        return Cases(
            condition, condition.build("cpu")(x, Draws(0, torch.arange(len(x)))), held_out.pixels.cpu().numpy()
        )


def experiment(job: Job, task: str, name: str) -> dr.Experiment:
    """A training on batches of 512, for SHARE seconds in which the learning rate falls to 0."""
    condition = task_named(TASKS[task])
    networks, method = conditional_networks(condition, SHAPE, SMOKE if job.smoke else HEAVY, *MODELS[name])
    optim = OptimConfig(lr=1e-3, warmup=1 if job.smoke else 100, decay="linear", decay_seconds=SHARE)
    fit = dr.FitConfig(
        1 if job.smoke else None,
        batch_size=2 if job.smoke else 512,
        optim=optim,
        ema_halflife=20_000,
        compile=not job.smoke,
        log_every=10,  # what is queued at the end is trained, too
        checkpoint_every=10**6,
        sample_every=10**6,
    )
    label = f"{NAME}-{task}-{name.replace(', ', '-').replace(' ', '-')}"
    return dr.Experiment(label, networks, method, fit, condition=condition)


def trained(job: Job, experiment: dr.Experiment, cases: Cases) -> dr.Model:
    """A model with its averaged weights, ready to draw members of the held-out conditions."""
    networks, denoiser = training.averaged(job, experiment)
    graphs = job.device.type == "cuda"
    return dr.Model(experiment.name, experiment, networks, denoiser, 0, "", graphs=graphs, conditions=Given(cases.y))


def timed(drawer: Drawer, seeds: range, members: int) -> tuple[NDArray[np.uint8], float]:
    """Members of these seeds, and milliseconds a sample. The first batch, which records, is drawn before."""
    drawer.draw(seeds[: max(1, drawer.batch_size // members)], members=members)
    drawing = drawer.draw(seeds, members=members)
    return drawing.images, 1000 * drawing.seconds / len(drawing.images)


def scores(drawer: Drawer, cases: Cases, sizes: Sizes) -> tuple[Row, NDArray[np.uint8]]:
    """A plan's scores and costs, of a sample alone and of one of M; and the members, (N, M, C, H, W)."""
    alone = timed(drawer, range(sizes.batch), 1)[1]
    drawn, shared = timed(drawer, range(len(cases.y)), sizes.members)
    members = drawn.reshape(len(cases.y), sizes.members, *SHAPE)
    condition = drawer.model.experiment.condition
    unknown = condition.unknown(cases.y) if isinstance(condition, OfPicture) else None
    parts = (
        (members[rows], cases.truth[rows], None if unknown is None else unknown[rows].cpu())
        for rows in np.array_split(np.arange(len(cases.y)), max(1, len(cases.y) // 50))
    )
    macs = {count: replace(drawer, members=count).cost.macs for count in (1, sizes.members)}
    row = {"steps": drawer.plan.num_steps, "heavy": drawer.plan.num_heavy, "macs": macs}
    return row | {"ms": {1: alone, sizes.members: shared}} | asdict(EnsembleScores.of(parts)), members


def strip(cases: Cases, members: NDArray[np.uint8], file: Path) -> None:
    """Write a row for each of a few conditions: the condition, members, their mean, the image that it was made of."""
    seen = picture_of(cases.y[:SHOWN], SHAPE)
    assert seen is not None  # these tasks' conditions are pictures
    columns = [seen, *members[:SHOWN, :MEMBERS_SHOWN].swapaxes(0, 1)]
    columns += [members[:SHOWN].mean(1).round().astype(np.uint8), cases.truth[:SHOWN]]
    dr.save_grid(np.stack(columns, 1).reshape(-1, *SHAPE), file, len(columns), 2)


def save(model: dr.Model, file: Path) -> None:
    """Write averaged weights in bfloat16, with the experiment as metadata."""
    weights = {key: training.half(value).cpu().contiguous() for key, value in model.networks.state_dict().items()}
    save_file(weights, file, {"experiment": json.dumps(to_plain(model.experiment))})


def contender(job: Job, task: str, name: str, train: Images, cases: Cases, sizes: Sizes) -> Row:
    """Train a model and score it under every plan; keep the weights of a dual one, and show what it draws."""
    trial = experiment(job, task, name)
    result = training.train(job, trial, train)
    model = trained(job, trial, cases)
    print(f"{trial.name}: trained, {result.iteration} iterations; {job.left:.0f} s are left", flush=True)
    rows: list[Row] = []
    members = np.empty(0, np.uint8)
    for steps in plans(model, job.smoke):
        drawer = dr.Choice(steps=steps).drawer(model, batch_size=sizes.batch)
        row, members = scores(drawer, cases, sizes)
        rows.append(row)
    if name == "dual":
        strip(cases, members, job.out / f"{NAME}-{task}.png")
        save(model, job.out / f"{trial.name}.safetensors")
    seen = result.iteration * trial.fit.batch_size
    return {"parameters": model.parameters, "seen": seen, "seconds": result.seconds, "plans": rows}


def plans(model: dr.Model, smoke: bool) -> Sequence[int]:
    """Numbers of steps."""
    if not model.serves.any_plan:
        return (model.serves.steps,)
    return STEPS[:1] if smoke else STEPS


def run(job: Job) -> bool:
    sizes = Sizes(2, 2, 2) if job.smoke else Sizes()
    train, held_out = images(job, "train"), images(job, "test").first(sizes.conditions)
    job.out.mkdir(parents=True, exist_ok=True)
    parts = {task: job.named(task) for task in TASKS}
    cases = {task: Cases.of(task_named(TASKS[task]), held_out) for task in TASKS}
    for name in MODELS:
        for task, part in parts.items():
            part.row(name, partial(contender, part, task, name, train, cases[task], sizes))
    for part in parts.values():
        part.write(done=complete(part))
    return all(map(complete, parts.values()))


def complete(part: Job) -> bool:
    """Whether a task has the rows of all models."""
    return all(map(part.has, MODELS))


PIECE = Piece(
    NAME,
    "what do two rates win where the heavy network sees a condition alone, at equal GPU time",
    run,
    calls=3,
    loads=lambda out: [CIFAR10],
    reads=lambda out: [f"{NAME}*.json"],
)
