"""The sampler's loop alone: noise, update rule and bookkeeping, around a network that costs nothing; beside diffusers'.

Both draw every image's noise from its own seed, so that an image depends on no other; diffusers does so with a list of
generators. Its schedulers predict x as ours do and clip nothing. The shape is Fashion-MNIST's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dualrate as dr
from benchmarks.interleave import Spread, interleaved, quotient
from benchmarks.workloads import Work
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Cond, Context

SHAPE, STEPS = (1, 28, 28), 32
PROCESS = dr.GaussianProcess(Cosine())
OURS = {"ancestral": dr.Ancestral(PROCESS), "ddim": dr.DDIM(PROCESS), "sde-dpm++2m": dr.SDEDPMSolver2M(PROCESS)}


@dataclass(frozen=True)
class Free:
    """A denoiser that costs nothing: x_hat is z."""

    reuse: dr.Reuse = dr.Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return z


def ours(name: str, batch: int, device: torch.device) -> Work:
    """STEPS steps of a batch of images."""
    plan = dr.StepPlan.uniform(STEPS)

    def work() -> None:
        for _ in dr.sample_batches(Free(), OURS[name], plan, SHAPE, range(batch), batch_size=batch, device=device):
            pass

    return work


def theirs(name: str, batch: int, device: torch.device) -> Work:
    """The same by diffusers, which has to be installed (the extra `dev`)."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    made: dict[str, Any] = {
        "ancestral": lambda: DDPMScheduler(prediction_type="sample", clip_sample=False),
        "ddim": lambda: DDIMScheduler(prediction_type="sample", clip_sample=False),
        "sde-dpm++2m": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", prediction_type="sample"),
    }
    scheduler = made[name]()

    @torch.no_grad()
    def work() -> None:
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(batch)]
        z = torch.stack([torch.randn(SHAPE, generator=one, device=device) for one in generators])
        scheduler.set_timesteps(STEPS, device=device)
        how = {} if name == "ddim" else {"generator": generators}
        for t in scheduler.timesteps:
            z = scheduler.step(z, t, z, **how).prev_sample

    return work


def beside_diffusers(batches: list[int], device: torch.device, seconds: float) -> dict[str, dict[str, Spread]]:
    """Time of our loop over that of diffusers', by sampler and batch; at most 1 is wanted."""
    found = {}
    for name in OURS:
        for batch in batches:
            calls = {"ours": ours(name, batch, device), "theirs": theirs(name, batch, device)}
            rounds = interleaved(calls, device, seconds=seconds)
            found[f"{name}, batch {batch}"] = quotient(rounds, "ours", "theirs")
    return found
