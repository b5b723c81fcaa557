"""Does a retrofitted DiT beat the same DiT trained on for as long?

A DiT of diffusers learns CIFAR-10 with classes, and is saved as a pipeline. From there two trainings go on for the same
time, one after the other, each with fresh moments of its optimiser: the DiT itself, and a light network beside the DiT
as frozen encoder. Both are scored under plans of about equal cost.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dualrate as dr
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.system.device import pays
from dualrate.system.progress import Silent
from tools.gpu import training
from tools.gpu.cifar10 import CLASSES, Batches, Images, feature_net, images, mean_loss, score, statistics, validation
from tools.gpu.piece import FAILED, Job, Piece, Row

NAME = "retrofit_dit"
BASE, MORE = 110.0, 75.0  # seconds of training of the DiT, and of each of the two that go on from it
DIT: dict[str, Any] = {"num_layers": 5, "num_attention_heads": 4, "attention_head_dim": 64}  # 7 million parameters
SMOKE: dict[str, Any] = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32}
PLANS = {"trained on": ((8, None), (12, None), (16, None), (32, None)), "retrofit": ((16, 4), (32, 4), (32, 8))}


def save(net: Any, folder: Path) -> None:
    """Save a network with its noise schedule, as `dr.from_diffusers` and the retrofit read it."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    net.save_pretrained(folder / "transformer")
    DDPMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    parts = {"transformer": ["diffusers", type(net).__name__], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **parts}))


def untrained(job: Job) -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        **(SMOKE if job.smoke else DIT),
        in_channels=3,
        out_channels=3,
        sample_size=32,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    )


def train_dit(job: Job, net: Any, train: Images, seconds: float, folder: Path) -> Row:
    """Train on the error of the predicted noise, and save the averaged weights as a pipeline."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    net.to(job.device).train()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9 if job.smoke else 0.998))
    called: Any = net if job.smoke else torch.compile(net)
    scheduler, batches = DDPMScheduler(), Batches(train, 2 if job.smoke else 512)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-4, betas=(0.9, 0.99), fused=True)
    iteration, start = 0, time.time()
    while iteration < 2 or (not job.smoke and time.time() - start < seconds):
        if iteration == 1:
            start = time.time()  # compiled
        batch = batches.batch(iteration)
        at = torch.randint(scheduler.config["num_train_timesteps"], (len(batch),), device=job.device)
        noise = torch.randn_like(batch.x)
        with torch.autocast(job.device.type, torch.bfloat16, enabled=pays(job.device)):
            z = scheduler.add_noise(batch.x, noise, at)  # pyright: ignore[reportArgumentType]
            loss = mse_loss(called(z, timestep=at, class_labels=batch.label).sample.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 4e-4 * min(1.0, (iteration + 1) / 500)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)
        iteration += 1
    save(average.module.eval(), folder)
    return {"iterations": iteration, "images": iteration * batches.size, "seconds": time.time() - start}


def retrofit(job: Job, base: Path, out: Path) -> Row:
    """Train a light network beside the saved DiT, by the package's own recipe."""
    made = RetrofitRecipe(dr.DataConfig(str(job.work / "train.npz")), share=1.0 if job.smoke else 0.2)(base, Silent())
    fit = replace(
        made.fit,
        iterations=2 if job.smoke else None,
        batch_size=2 if job.smoke else 512,
        optim=replace(made.fit.optim, decay="none"),
        compile=not job.smoke,
        sample_every=10**6,
        max_seconds=MORE,
    )
    result = dr.train(replace(made, fit=fit), out, device=job.device, progress=Silent())
    return {
        "iterations": result.iteration,
        "images": result.iteration * fit.batch_size,
        "seconds": result.seconds,
    }


def run(job: Job) -> bool:
    train, held_out = images(job, "train"), images(job, "test").first(2 if job.smoke else 2048)
    base, on, pair = (job.work / name for name in ("base", "trained-on", "retrofit"))
    training.unpack(job.out, f"{NAME}-base", base)
    for name, folder in {"base": base, "trained on": on, "retrofit": pair}.items():
        if not folder.is_dir():  # it was on another machine
            job.rows.pop(name, None)
    job.row("base", lambda: train_dit(job, untrained(job), train, BASE, base))
    training.pack(base, job.out, f"{NAME}-base")
    net = feature_net(job, f"{NAME}-features", train)
    reference = statistics(net, train.pixels)

    def again() -> Any:
        return type(untrained(job)).from_pretrained(base / "transformer", use_safetensors=True)

    def scores(name: str, denoiser: dr.Denoiser, process: dr.GaussianProcess, age: float) -> None:
        job.row(f"{name}, loss", lambda: {"loss": mean_loss(validation(denoiser, process, held_out, age=age))})
        for steps, heavy in PLANS[name][: 1 if job.smoke else None]:
            plan = dr.StepPlan.uniform(steps, heavy)
            job.row(
                f"{name}, {steps}/{heavy or steps}",
                lambda plan=plan: score(job, denoiser, process, plan, net, reference),
            )

    job.row("trained on", lambda: train_dit(job, again(), train, MORE, on))
    job.row("retrofit", lambda: retrofit(job, base, pair))
    if (on / "model_index.json").is_file():
        plain = dr.from_diffusers(on)
        plain.network.to(job.device)
        scores("trained on", plain, plain.process, 0.0)  # pyright: ignore[reportArgumentType]
    if (pair / "experiment.json").is_file():
        model = dr.load(pair, device=job.device)
        scores("retrofit", model.denoiser, model.gaussian, 1 / 16)
    return not any(FAILED in row for row in job.rows.values()) and "retrofit, loss" in job.rows


PIECE = Piece(
    NAME,
    "does a retrofitted DiT beat the DiT trained on for as long",
    run,
    data=True,
    wheels=("diffusers", "importlib_metadata"),
)
