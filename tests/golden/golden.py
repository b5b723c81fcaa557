"""Makes the golden files beside this one: python tests/golden/golden.py. They hold what a refactoring must not change.

experiments/   an experiment file of each method and of each kind of network, as a run has it
single, dual   runs with a checkpoint of random weights
pipeline       the dual run as a folder of diffusers
images.npz     20 images of each sampler, float32 on a CPU: other machines draw them up to rounding
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch

import dualrate as dr
from dualrate.cli.distill import Student
from dualrate.cli.export import Export
from dualrate.cli.train import RECIPES
from dualrate.config.serial import to_plain
from dualrate.contrib import early_exit
from dualrate.recipes import students
from dualrate.runs.store import write_experiment
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.training import checkpoint

HERE = Path(__file__).resolve().parent
NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
FIT = dr.FitConfig(iterations=1)
RUNS = {
    "single": dr.Experiment("single", dr.OneNetwork(NET), dr.DenoisingConfig(), FIT),
    "dual": dr.Experiment("dual", dr.TwoNetworks(NET, NET), dr.DenoisingConfig(times=dr.TimeSampler()), FIT),
}
HEAVY = {"single": 8, "dual": 4}
TRAINED = (
    "fashion-mnist-light", "fashion-mnist-dual-25", "fashion-mnist-latents-first",
    "fashion-mnist-latents-base", "fashion-mnist-latents-base-dual", "fashion-mnist-tokens",
    "fashion-mnist-tokens-dual", "fashion-mnist-tokens-uniform", "imagenet64-heavy", "imagenet128-dual",
)  # fmt: skip


def save_run(path: Path, experiment: dr.Experiment) -> None:
    """A run at iteration 1 with random weights, none of them zero."""
    networks, _ = experiment.build()
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(p.shape, generator=generator) for name, p in networks.state_dict().items()}
    write_experiment(path, experiment)
    checkpoint.save(path / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})


def drawn(run: str, sampler: str) -> np.ndarray:
    """(20, 1, 8, 8): 8 calls of the single network, or 8 steps with 4 heavy calls of the pair."""
    model = dr.load(HERE / run)
    step, plan = SAMPLERS[sampler].build(model.process, {}, None, None), dr.StepPlan.uniform(8, HEAVY[run])
    label = [i % 3 for i in range(20)]
    batches = dr.sample_batches(model.denoiser, step, plan, model.shape, range(20), label, batch_size=20)
    return torch.cat(list(batches)).numpy()


def samplers(run: str) -> list[str]:
    """Those that need no table of the model, and may reuse a context where the run does."""
    return [name for name, of in SAMPLERS.items() if of.of_table is None and (run == "single" or of.markovian)]


def main() -> None:
    torch.set_num_threads(1)
    for folder in ("experiments", "pipeline", *RUNS):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for name, experiment in RUNS.items():
        save_run(HERE / name, experiment)
    recipe = students.StudentRecipe(None, NET, students.DISTILLING)
    made = {name: RECIPES[name]() for name in TRAINED} | {"fashion-mnist-early-exit": early_exit.fashion_mnist()}
    for by, more in {"moments": {}, "consistency": {}, "em": {}, "instant": {"version": "instant"}}.items():
        student = Student(recipe, by="moments" if by == "instant" else by, **more)  # pyright: ignore[reportArgumentType]
        made[f"student-{by}"] = student.of(HERE / "single")
    (HERE / "experiments").mkdir()
    for name, experiment in made.items():
        text = json.dumps(to_plain(experiment), indent=1).replace(str(HERE), "GOLDEN")
        (HERE / "experiments" / f"{name}.json").write_text(text + "\n")
    Export(HERE / "dual", to=("diffusers", HERE / "pipeline")).run()
    images = {f"{run} {name}": drawn(run, name) for run in RUNS for name in samplers(run)}
    np.savez_compressed(HERE / "images.npz", **images)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
