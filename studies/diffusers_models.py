"""Does a retrofit pay for a model that nobody here wrote? Classes of diffusers, trained by a plain loop.

    OMP_NUM_THREADS=1 .venv/bin/python studies/diffusers_models.py train unet
    OMP_NUM_THREADS=1 .venv/bin/python studies/diffusers_models.py retrofit unet
    OMP_NUM_THREADS=1 .venv/bin/python studies/diffusers_models.py report unet      # and seconds

`unet` is a UNet2DModel, `dit` a DiTTransformer2DModel, both of Fashion-MNIST. Each piece goes on where it was stopped.
`train` is code of diffusers and torch but for the images: DDPMScheduler, add_noise, mean squared error, AdamW, an
EMAModel, save_pretrained. `retrofit`, and `report`, which compares all retrofits there are and exports the longest, run
`dualrate` commands, which they print; `seconds` times what `report` compares, by turns and in seconds of CPU, so on
busy cores too. Encoder sharing without training is studies/shared_blocks.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import COUNT, JUDGES, ROOT, RUNS, command, dualrate, keep, load, on_one_thread, save
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn

import dualrate as dr
from dualrate.compare.contenders import Entry
from dualrate.data.images import load_images, to_float
from dualrate.sampling.grids import grid_times
from dualrate.system.files import whole, write_tensors

CLASSES, SIDE = 10, 28
RATE, WARMUP, CLIP, DECAY, SEED = 2e-3, 100, 1.0, 0.995, 0
SAVE = 60.0  # seconds
RETROFIT = {
    "data.source": "fashion-mnist",
    "share": 0.3,
    "fit.batch-size": 64,
    "fit.optim.lr": 1e-3,
    "fit.optim.warmup": 50,
    "fit.optim.decay": "cosine",
    "fit.ema-halflife": 5000,
    "fit.checkpoint-every": 100,
    "fit.sample-every": 500,
}
ALONE = (*(f"{steps}@dpm++2m" for steps in (4, 5, 6, 8, 12, 16)), "8@sde-dpm++2m:0.1", "12@sde-dpm++2m:0.1")
SHARED = ("8/4@dpm++2m", "16/8@dpm++2m")
SDE = "sde-dpm++2m:0.1"
BLENDED = ((8, 4), (16, 4), (16, 8))  # of the longest retrofit
SHORT = BLENDED[:1]  # of the others
BATCH, ROUNDS = 64, 4  # of timings
SCREEN = 300  # images that the weaker contenders are left out by


def unet() -> nn.Module:
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(12, 24, 48),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=16,
        num_class_embeds=CLASSES,
    )


def dit() -> nn.Module:
    return DiTTransformer2DModel(
        sample_size=SIDE,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=5,
        num_embeds_ada_norm=CLASSES,
    )


MODELS = {"unet": unet, "dit": dit}


def state_of(model: Any, optimizer: Any, ema: Any, counts: Sequence[float]) -> dict[str, Tensor]:
    """What training goes on from, as named tensors. counts: iterations, seconds, seconds of CPU."""
    slots = {
        f"optimizer.{place}.{name}": slot
        for place, own in optimizer.state_dict()["state"].items()
        for name, slot in own.items()
    }
    averages = {f"ema.{place}": average for place, average in enumerate(ema.shadow_params)}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return weights | averages | slots | {"counts": torch.tensor(counts, dtype=torch.float64)}


def restore(state: dict[str, Tensor], model: Any, optimizer: Any, ema: Any) -> tuple[int, float, float]:
    """Puts a state back. Returns its counts."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name in (name for name in state if name.startswith("optimizer.")):
        _, place, slot = name.split(".")
        slots.setdefault(int(place), {})[slot] = state[name]
    model.load_state_dict({name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")})
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    iteration, seconds, cpu = state["counts"].tolist()
    ema.shadow_params = [state[f"ema.{place}"] for place in range(len(ema.shadow_params))]
    ema.optimization_step = int(iteration)
    return int(iteration), seconds, cpu


def train(model: Any, folder: Path, x: Tensor, y: Tensor, minutes: float, batch: int) -> None:
    """Adds minutes of training up to the given number, and saves. x: (N, 1, 28, 28) in [-1, 1]; y: (N,) labels.

    The rate falls linearly to zero over them.
    """
    torch.manual_seed(SEED)
    scheduler: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    ema = EMAModel(model.parameters(), decay=DECAY)
    saved, iteration, spent, cpu, losses = folder / "state" / "state.safetensors", 0, 0.0, 0.0, []
    if saved.is_file():
        iteration, spent, cpu = restore(load_file(saved), model, optimizer, ema)
        torch.manual_seed(SEED + iteration)
    model.train()
    began, began_cpu = time.monotonic() - spent, time.process_time() - cpu
    last = spent
    while spent < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (iteration + 1) / WARMUP) * (1 - spent / (60 * minutes))
        row = torch.randint(len(x), (batch,))
        clean, noise = x[row], torch.randn(batch, *x.shape[1:])
        step = torch.randint(scheduler.config["num_train_timesteps"], (batch,))
        output = model(scheduler.add_noise(clean, noise, step), step, class_labels=y[row]).sample
        loss = F.mse_loss(output, scheduler.get_velocity(clean, noise, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        ema.step(model.parameters())
        iteration, losses = iteration + 1, [*losses[-199:], loss.item()]
        spent, cpu = time.monotonic() - began, time.process_time() - began_cpu
        if spent - last > SAVE or spent >= 60 * minutes:
            last, mean = spent, sum(losses) / len(losses)
            print(f"{iteration} iterations, {spent:.0f} s ({cpu:.0f} s of CPU), loss {mean:.4f}", flush=True)
            saved.parent.mkdir(parents=True, exist_ok=True)
            with whole(saved) as aside:
                write_tensors(aside, state_of(model, optimizer, ema, [iteration, spent, cpu]))
            keep(folder / "training.json", batch=batch, loss=mean, iteration=iteration, seconds=spent, cpu=cpu)
    ema.copy_to(model.parameters())
    model.save_pretrained(folder)
    scheduler.save_pretrained(folder)


def blended(run: Path, wanted: Sequence[tuple[int, int]]) -> list[str]:
    """Files of plans whose steps are between equal ones in t and in log-SNR, as commands choose them; names in plans
    are of steps equal in t."""
    schedule, files = dr.load(run).process.schedule, []
    for steps, heavy in wanted:
        files.append(f"{run.relative_to(ROOT)}/blend-{steps}-{heavy}.json")
        save(ROOT / files[-1], dr.StepPlan.spread(grid_times("blend:0.4", schedule, steps), heavy).to_json())
    return files


def runs_of(folder: Path) -> list[Path]:
    """Its retrofits, the shortest first; then those of its own blocks."""
    kinds = (sorted(RUNS.glob(f"{folder.name}-{kind}-*[0-9]"), key=iterations_of) for kind in ("retrofit", "own"))
    return [run for kind in kinds for run in kind]


def iterations_of(run: Path) -> int:
    return int(run.name.rpartition("-")[2])


def entries_of(folder: Path) -> list[str]:
    """What is compared: the model alone, its first blocks shared, and its retrofits."""
    runs = runs_of(folder)
    at = folder.relative_to(ROOT)
    entries = [f"model={at}:{plan}" for plan in ALONE]
    entries += [f"model={at}+shared_blocks:Shared:{plan}" for plan in SHARED]
    for run in runs:
        name = run.name.removeprefix(f"{folder.name}-")
        longest = max(iterations_of(run) for run in runs if "own" not in run.name)
        plans = blended(run, BLENDED if "own" in run.name or iterations_of(run) == longest else SHORT)
        entries += [f"{name}={run.relative_to(ROOT)}:{plan}@{SDE}" for plan in plans]
    return entries


def cpu_milliseconds(entries: Sequence[str]) -> dict[str, float]:
    """Of an image in a batch: medians of rounds in which all take their turn, the first left out."""
    drawers = {}
    for text in entries:
        entry = Entry.parse(text)
        loaded = load(entry.run)
        drawers[text] = replace(entry.named_contender(loaded).drawer(loaded), batch_size=BATCH)
    found: dict[str, list[float]] = {text: [] for text in entries}
    for _ in range(ROUNDS):
        for text, drawer in drawers.items():
            began = time.process_time()
            drawer.draw(range(BATCH))
            found[text].append(1e3 * (time.process_time() - began) / BATCH)
    return {text: statistics.median(times[1:]) for text, times in found.items()}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("piece", choices=("train", "retrofit", "report", "seconds"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--minutes", type=float, default=14, help="of training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=1500, help="of the retrofit")
    parser.add_argument("--own-blocks", type=int, help="of a DiT, that the light network starts as")
    parser.add_argument("--count", type=int, default=COUNT, help="images of a contender in the report")
    options = parser.parse_args()
    on_one_thread()
    folder = RUNS / f"diffusers-{options.model}"
    own = options.own_blocks and {"own-blocks": options.own_blocks}
    kind = f"own-{options.own_blocks}" if own else "retrofit"
    run = RUNS / f"diffusers-{options.model}-{kind}-{options.iterations}"
    if options.piece == "train":
        images = load_images("fashion-mnist", split="train")
        x, y = to_float(np.asarray(images.images)), torch.from_numpy(images.labels)
        torch.manual_seed(SEED)
        train(MODELS[options.model](), folder, x, y, options.minutes, options.batch)
    elif options.piece == "retrofit":
        chosen = RETROFIT | (own or {}) | {"fit.iterations": options.iterations}
        flags = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
        dualrate(["retrofit", str(folder), "--out", str(run), *flags])
    else:
        entries = entries_of(folder)
        if options.piece == "seconds":
            for entry, milliseconds in cpu_milliseconds(entries).items():
                print(f"{milliseconds:8.1f} ms  {entry}")
            return
        counts = ("--screen", str(SCREEN), "--count", str(options.count))
        page = folder.relative_to(ROOT).with_suffix(".html")
        dualrate(["compare", *entries, "--mixed", "--features", JUDGES, *counts, "--out", str(page)])
        for run in [run for run in runs_of(folder) if "own" not in run.name][-1:]:
            dualrate(["export", str(run), "--to", "diffusers", f"{run}-pipeline", "--steps", "16", "--heavy", "4"])


if __name__ == "__main__":
    main()
