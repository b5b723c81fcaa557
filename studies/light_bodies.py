"""Seconds of one call of light networks of several kinds beside their multiply-adds, against one heavy call; of scans
beside attention; and what U-ViT, DiT and DiS of equal multiply-adds learn in equal CPU seconds.

    python -m studies.light_bodies [--compile] [--device cuda]
    python -m studies.light_bodies scans                      milliseconds, a table in Markdown
    python -m studies.light_bodies quality OUT                trainings; run again, it goes on with the next row
    python -m benchmarks.peers page OUT                       their table
    python -m studies.light_bodies lights OUT                 trainings of light networks under one encoder; likewise
    python -m studies.light_bodies page OUT                   their tables
    python -m studies.light_bodies adapters OUT               adapters by phase, and what they are compared with

These are of Fashion-MNIST. `quality OUT --natural DIR` is of colour images; so are `lights` and `adapters` of a network
that was trained on some:

    dualrate train auto --data.source DIR --data.size 16 --rate single --fit.batch-size 32 --fit.optim.lr 1e-3 \
        --fit.max-seconds 1800 --out RUN
    python -m studies.light_bodies lights OUT --encoder RUN
    python -m studies.light_bodies adapters OUT --network RUN

All make about the multiply-adds of one light network, whose middle has two transformer blocks. The others have its
finest level, and one wide block of another kind in the middle. Encoder and light network are a pair; each round calls
all of them, so a ratio is of one run. For a plan of 64 steps with 8 heavy calls, H and h a heavy and a light call,

    promised = 64 H / (8 H + 56 h) in multiply-adds;   efficiency = the same in seconds / promised
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import dualrate as dr
from benchmarks import peers
from benchmarks.interleave import Spread, interleaved
from benchmarks.workloads import a_call_each
from dualrate.data.images import to_float, to_uint8
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid, x_loss_weight
from dualrate.networks.blocks import Block, FiLM, attend, modulated, zero_init
from dualrate.networks.body import BodyConfig
from dualrate.networks.dis import DiSBlock
from dualrate.networks.dit import DiTBlock
from dualrate.networks.scan import selective_scan
from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.recipes import auto, fashion_mnist
from dualrate.recipes.students import AdaptRecipe
from dualrate.sampling.cost import CallCost, call_cost, macs_of
from dualrate.system.device import compile_calls, pays
from studies.common import ROOT, command, on_one_thread
from tools.gpu.cifar10 import Images, image_errors

Body = TypeVar("Body", bound=BodyConfig)
Kind = Literal["conv", "DiCo", "ConvNeXt", "transformer", "DiS", "DiS, a decay per head"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # of the middle's blocks
STEPS, HEAVY = 64, 8


def small(side: int, blocks: int) -> tuple[UViTConfig, UViTConfig]:
    """The heavy network of `train auto` for ten classes, and a light one with so many transformer blocks."""
    heavy = auto.network(auto.TIERS["small"], side, 3, 10)
    return heavy, replace(heavy, levels=(Level("conv", 48, 1), Level("transformer", 96, blocks)), head_dim=32)


PAIRS = {"28x28x1": (fashion_mnist.HEAVY, fashion_mnist.LIGHT), "16x16x3": small(16, 2), "32x32x3": small(32, 3)}
NETWORK = str(ROOT / "weights" / "fashion-mnist-heavy-annealed")  # of Fashion-MNIST, where no other is named
TIMES = 12  # of errors of x_hat


class DiCoBlock(Block):
    """A depthwise convolution and channel attention, then an MLP of ratio 4, both behind FiLM norms (DiCo, Ai et al.
    2025, arXiv 2505.11196).

        u = GELU(depthwise 3 x 3 (W_1 n(h)));  h <- h + W_2 (u sigmoid(W mean(u)));  h <- h + MLP(n(h))

    As in all blocks here, what is added is zero at first. forward: (h, emb) -> like h, (B, C, H, W).
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.film1, self.film2 = FiLM(embedding, channels), FiLM(embedding, channels)
        self.mix, self.out = nn.Linear(channels, channels), zero_init(nn.Linear(channels, channels))
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.share = nn.Linear(channels, channels)
        self.mlp = mlp(channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        x = tokens(h)
        u = tokens(F.gelu(self.near(as_map(self.mix(modulated(x, self.film1(emb))), h))))
        x = x + self.out(u * torch.sigmoid(self.share(u.mean(1, keepdim=True))))
        return as_map(x + self.mlp(modulated(x, self.film2(emb))), h)


class ConvNeXtBlock(Block):
    """h <- h + MLP(n(depthwise 7 x 7 (h))), n a FiLM norm (ConvNeXt, Liu et al. 2022, arXiv 2201.03545)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.film, self.mlp = FiLM(embedding, channels), mlp(channels)
        self.near = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + as_map(self.mlp(modulated(tokens(self.near(h)), self.film(emb))), h)


class ScanBlock(Block):
    """h <- h + scans(n(h)), those of a DiS block, n a FiLM norm, since here no token holds the embedding."""

    def __init__(self, channels: int, embedding: int, decay: Literal["channel", "head"]) -> None:
        super().__init__()
        self.film = FiLM(embedding, channels)
        self.mixer = DiSBlock(dr.DiSConfig(8, 1, channels, 1, decay=decay), skip=False).mixer
        zero_init(self.mixer.out_proj)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return h + as_map(self.mixer(modulated(tokens(h), self.film(emb))), h)


def mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), zero_init(nn.Linear(4 * channels, channels)))


def tokens(h: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return h.flatten(2).transpose(1, 2)


def as_map(x: Tensor, like: Tensor) -> Tensor:
    """(B, H W, C) -> (B, C, H, W), of a map's size."""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])


OTHERS: dict[str, Callable[[int, int], Block]] = {
    "DiCo": DiCoBlock,
    "ConvNeXt": ConvNeXtBlock,
    "DiS": partial(ScanBlock, decay="channel"),
    "DiS, a decay per head": partial(ScanBlock, decay="head"),
}
POSITIONS = {kind: "transformer" if "DiS" in kind else "conv" for kind in OTHERS}  # as such a level has them, or not


@dataclass(frozen=True)
class Other(UViTConfig):
    """A U-ViT with other blocks in its middle."""

    kind: str = "DiCo"

    def network(self) -> UViT:
        net, level = super().network(), self.levels[-1]
        net.middle.blocks = nn.ModuleList(
            OTHERS[self.kind](level.channels, self.embedding) for _ in range(level.blocks)
        )
        return net


def model(encoder: UViTConfig, light: UViTConfig, device: torch.device) -> dr.Model:
    """A pair with random weights."""
    experiment = dr.Experiment(
        "pair", dr.TwoNetworks(encoder, light), dr.DenoisingConfig(dr.TimeSampler()), dr.FitConfig(1)
    )
    networks, denoiser = experiment.build()
    for i, weight in enumerate(networks.parameters()):
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(i))
    return dr.Model("pair", experiment, networks.eval().requires_grad_(False).to(device), denoiser, 0, "")


@cache
def macs(network: BodyConfig) -> int:
    net = network.network()
    return macs_of(lambda: net(torch.zeros(1, *network.shape), torch.zeros(1), None))


def candidates(
    first: UViTConfig, kinds: Sequence[Kind] = KINDS, counts: Sequence[int] = (1,)
) -> Iterator[tuple[str, UViTConfig]]:
    """A light network, and others of nearly its multiply-adds whose middle has so many blocks of other kinds."""
    (*finer, middle), budget = first.levels, macs(first)
    yield f"{middle.kind} x {middle.blocks}", first
    same: Any = {item.name: getattr(first, item.name) for item in fields(first)} | {"head_dim": 32}
    for kind in kinds:
        build = partial(Other, kind=kind) if kind in OTHERS else UViTConfig
        level: Any = POSITIONS.get(kind, kind)
        for blocks in counts:
            widths = range(64, 385, 32 if level == "transformer" else 16)
            sized = [build(**same | {"levels": (*finer, Level(level, width, blocks))}) for width in widths]
            at = bisect(sized, budget, 1, len(sized) - 1, key=macs)
            yield f"{kind} x {blocks}", nearest(sized[at - 1 : at + 1], budget)


def table(
    networks: Mapping[str, UViTConfig],
    encoder: UViTConfig,
    batch: int,
    device: torch.device,
    seconds: float,
    *,
    compiled: bool,
) -> Iterator[peers.Row]:
    """A row for each candidate. Times are of the process on a CPU, of the clock elsewhere."""

    def spent(name: str) -> list[float]:
        return [timing.cpu if device.type == "cpu" else timing.wall for timing in rounds[name]]

    calls: dict[str, Callable[[], object]] = {}
    costs: dict[str, CallCost] = {}
    first = next(iter(networks))
    for name, light in networks.items():
        pair = model(encoder, light, device)
        costs[name] = call_cost(pair.denoiser, pair.shape, 0 if pair.num_classes else None, device)
        both = a_call_each(pair, batch, pays(device))
        timed = {"light": name, "encoder": "heavy"} if name == first else {"light": name}
        for role in timed if compiled else ():
            compile_calls(pair.ready(bfloat16=pays(device)).networks[role])
        calls |= {called: both["heavy" if role == "encoder" else role] for role, called in timed.items()}
    rounds = interleaved(calls, device, seconds=seconds, least=5)
    heavy = costs[first].heavy
    for name, light in networks.items():
        counted = costs[name].light
        promised, taken = speed_up(heavy, counted), list(zip(spent("heavy"), spent(name), strict=True))
        yield {
            "light": name,
            "width": light.widths[-1],
            "batch": batch,
            "compiled": compiled,
            "million multiply-adds": counted / 1e6,
            "of heavy": counted / heavy,
            "milliseconds": 1e3 * Spread.of(spent(name)).median,
            "heavy milliseconds": 1e3 * Spread.of(spent("heavy")).median,
            "seconds of heavy": str(Spread.of([g / h for h, g in taken])),
            "promised": promised,
            "efficiency": str(Spread.of([speed_up(h, g) / promised for h, g in taken])),
        }


def speed_up(heavy: float, light: float) -> float:
    return STEPS * heavy / (HEAVY * heavy + (STEPS - HEAVY) * light)


def parser() -> argparse.ArgumentParser:
    options = command(__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--sizes", nargs="+", default=list(PAIRS), choices=PAIRS)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options.add_argument("--blocks", type=int, nargs="+", default=[1], help="counts of them")
    options.add_argument("--seconds", type=float, default=10, help="at least, for each batch and size")
    return options


# Scans


def scans(arguments: Sequence[str]) -> None:
    """CPU milliseconds of a forward pass and of one with its backward pass: scans and attention of as many channels,
    then blocks of half as many, whose scans have them. Medians of interleaved rounds.
    """
    options = command(scans.__doc__)
    options.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    options.add_argument("--channels", type=int, default=192, help="a multiple of 64")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--seconds", type=float, default=5, help="at least, for each length")
    settings = options.parse_args(arguments)
    print("| tokens | what | forward, ms | training, ms |\n| ---: | --- | ---: | ---: |")
    for length in settings.lengths:
        calls = cores(settings.batch, settings.channels, length) | blocks(
            settings.batch, settings.channels // 2, length
        )
        both = {f"{name} {i}": partial(called, call, i) for name, call in calls.items() for i in (0, 1)}
        rounds = interleaved(both, torch.device("cpu"), seconds=settings.seconds)
        for name in calls:
            each = ([timing.cpu for timing in rounds[f"{name} {i}"]] for i in (0, 1))
            forward, training = (1e3 * Spread.of(seconds).median for seconds in each)
            print(f"| {length} | {name} | {forward:.1f} | {training:.1f} |", flush=True)


def called(call: Callable[[], torch.Tensor], trained: int) -> None:
    with torch.set_grad_enabled(bool(trained)):
        y = call()
    if trained:
        y.sum().backward()


def cores(batch: int, channels: int, length: int, states: int = 16) -> dict[str, Callable[[], torch.Tensor]]:
    heads = channels // 64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape).requires_grad_()

    B, C, u = normal(batch, states, length), normal(batch, states, length), normal(batch, channels, length)
    delta, per_head = normal(batch, channels, length), normal(batch, heads, length)
    A, of_heads = -torch.rand(channels, states), -torch.rand(heads)
    q, k, v = (normal(batch, heads, length, 64) for _ in range(3))
    by_channel = {
        f"scan, {backend}": partial(selective_scan, u, delta, A, B, C, backend=backend)
        for backend in ("loop", "chunked")
    }
    matrix = partial(selective_scan, u, per_head, of_heads, B, C, backend="matrix")
    return {**by_channel, "scan, matrix": matrix, "attention": partial(attend, q, k, v)}


def blocks(batch: int, channels: int, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    h, emb = torch.randn(batch, length, channels).requires_grad_(), torch.randn(batch, channels)
    config = dr.DiSConfig(8, 1, channels, 1)
    layers = {
        "DiS block": DiSBlock(config, skip=False),
        "DiS block, a decay per head": DiSBlock(replace(config, decay="head"), skip=False),
        "DiT block": DiTBlock(dr.DiTConfig(8, 1, channels, 1, head_dim=32)),
    }
    return {name: partial(block, h, emb) for name, block in layers.items()}


# Quality


def bodies_of(data: dr.DataConfig) -> dict[str, BodyConfig]:
    """Single networks of about the multiply-adds of the U-ViT, of 10 classes."""
    uvit, side, patch = fashion_mnist.LIGHT, 28, 4
    if data.size is not None:
        side, patch = data.size, 2
        _, uvit = small(side, 2)
    budget, channels = macs(uvit), uvit.image_channels
    dit = (
        dr.DiTConfig(side, channels, width, count, 10, patch, head_dim=32)
        for width, count in itertools.product((64, 96, 128), range(3, 9))
    )
    dis = [dr.DiSConfig(side, channels, width, 5, 10, patch, head_dim=32) for width in range(64, 176, 16)]
    return {
        "U-ViT": uvit,
        "DiT": nearest(dit, budget),
        "DiS": nearest(dis, budget),
        "DiS, a decay per head": nearest((replace(config, decay="head") for config in dis), budget),
    }


def nearest(sized: Iterable[Body], budget: int) -> Body:
    return min(sized, key=lambda config: abs(macs(config) - budget))


def quality(arguments: Sequence[str]) -> None:
    """Trains every body for equal CPU seconds, one row a body and seed, after a search of its learning rate, and scores
    1,000 images at 16 calls by two EfficientNets: all as benchmarks/peers.py does. Rows that are there are kept."""
    options = trained_options(quality.__doc__, seconds=360)
    options.add_argument("--natural", help="colour images of ten classes with a test split, such as CIFAR-10's parquet")
    options.add_argument("--side", type=int, default=16, help="that these are brought to")
    settings = options.parse_args(arguments)
    data = dr.DataConfig(settings.natural, settings.side, 3) if settings.natural else dr.DataConfig()
    changes = {body: partial(with_body, config=config, data=data) for body, config in bodies_of(data).items()}
    of_set(settings, settings.out, data, changes)


def trained_options(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """A parser of the options of trainings, and of `of_set`."""
    options = command(doc)
    options.add_argument("out", type=Path)
    options.add_argument("--seconds", type=float, default=seconds, help="CPU seconds of a training")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--only", nargs="+", help="names of rows; all if not given")
    options.add_argument("--images", type=int, default=1000, help="that are drawn and scored")
    options.add_argument("--reference", type=int, default=10_000, help="test images that they are compared with")
    return options


def of_set(
    options: argparse.Namespace,
    out: Path,
    data: dr.DataConfig,
    changes: Mapping[str, Callable[[dr.Experiment], dr.Experiment]],
    rates: Sequence[float] = peers.RATES,
) -> None:
    """Adds every row that OUT lacks, by its name and the change that makes its experiment of a recipe's; beside it the
    errors of x_hat of held-out images, (times, images).
    """
    out.mkdir(parents=True, exist_ok=True)
    judge = None
    train, test = (data.images(split) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    pixels = np.asarray(train.images)
    held_out = to_float(test.images[: peers.HELD]), torch.from_numpy(test.labels[: peers.HELD])
    for seed, name in itertools.product(options.seeds, options.only or changes):
        of_name: peers.Row = {"name": name, "seconds": options.seconds}
        of_row = of_name | {"seed": seed, "images": options.images}
        if peers.row_with(out, of_row):
            continue
        judge = judge or peers.Judge(out, options.reference, pixels[: options.images], test.images)
        contender = peers.Contender(peers.ours, {"recipe": "fashion-mnist-light", "change": changes[name]}, ())
        run = peers.Run(pixels, train.labels, options.seconds, seed)
        of_search = of_name | {"what": "search"}
        searched: peers.Row = peers.row_with(out, of_search)
        if not searched:
            searched = of_search | peers.search(contender, run, held_out, rates)
            peers.add(out, searched)
        run = replace(run, **searched["found"])
        trained = contender.on(run)
        row = {"lines": 0, **searched, **of_row, "what": "row", "floor": judge.floor}
        row |= peers.measured(trained, run, options.images, judge)
        assert trained.model is not None
        np.save(errors_of(out, row), errors(trained.model, *held_out))
        peers.add(out, row)


def with_body(base: dr.Experiment, config: BodyConfig, data: dr.DataConfig) -> dr.Experiment:
    return replace(base, networks=dr.OneNetwork(config), data=data)


# Light networks under one encoder


def lights(arguments: Sequence[str]) -> None:
    """Milliseconds of light networks, and a training of each for equal CPU seconds beside one frozen encoder, scored as
    in `quality`. Rows that are there are kept."""
    options = trained_options(lights.__doc__, seconds=240)
    options.add_argument("--encoder", default=NETWORK, help="a run of a heavy network that PAIRS has")
    options.add_argument("--rates", type=float, nargs="+", default=peers.RATES[2:], help="that are searched")
    options.add_argument("--timed", type=float, default=10, help="seconds of each size of batch, at least")
    settings = options.parse_args(arguments)
    begun = dr.load(settings.encoder).experiment
    (encoder, light), data = of_run(begun), begun.data
    networks = dict(candidates(light))
    settings.out.mkdir(parents=True, exist_ok=True)
    times(settings.out, networks, encoder, settings.timed, compiled=False)
    pairs = {name: dr.TwoNetworks(encoder, light) for name, light in networks.items()}
    changes = {name: partial(with_pair, run=settings.encoder, data=data, pair=pair) for name, pair in pairs.items()}
    of_set(settings, settings.out, data, changes, settings.rates)
    times(settings.out, networks, encoder, settings.timed, compiled=True)  # minutes of compilation


def times(
    out: Path, networks: Mapping[str, UViTConfig], encoder: UViTConfig, seconds: float, *, compiled: bool
) -> None:
    """Adds the rows of milliseconds that are not there yet."""
    for batch in (1, 8, 64):
        of_times = {"what": "times", "batch": batch, "compiled": compiled}
        if not peers.row_with(out, of_times):
            for row in list(table(networks, encoder, batch, torch.device("cpu"), seconds, compiled=compiled)):
                peers.add(out, of_times | row)


def of_run(begun: dr.Experiment) -> tuple[UViTConfig, UViTConfig]:
    """The network of a run, and the light one beside it."""
    pairs = [pair for pair in PAIRS.values() if begun.networks == dr.OneNetwork(pair[0])]
    if not pairs:
        raise ValueError(f"--encoder is a run of a network that PAIRS of {__file__} has, with its light one beside it")
    return pairs[0]


def with_pair(base: dr.Experiment, run: str, data: dr.DataConfig, pair: dr.TwoNetworks) -> dr.Experiment:
    """The experiment of a pair whose encoder is that of a run, and frozen."""
    method = dr.DenoisingConfig(dr.TimeSampler(heavy=(4, 32)), encoder_from=run, freeze_encoder=True)
    return replace(base, networks=pair, method=method, data=data)


def errors(model: dr.Model, x: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """(times, images): squared errors of x_hat, of contexts that are as old as they are on average."""
    age = peers.AGE if model.experiment.networks.ages else 0.0
    images = Images(to_uint8(x), labels)
    curve = image_errors(model.denoiser, model.experiment.gaussian, images, age=age, bins=TIMES)
    return torch.stack([values for _, values in curve]).numpy()


def errors_of(out: Path, row: peers.Row) -> Path:
    """The file of a row's errors."""
    return out / f"errors-{row['name'].replace(' ', '-')}-{row['seconds']:g}-{row['seed']}.npy"


def page(out: Path) -> str:
    """Three tables of `lights`: scores; errors of x_hat over those of the first light network, means over seeds, with
    intervals of 95% over images, and the loss that they are at uniform times; milliseconds and efficiency.
    """
    rows = [json.loads(line) for line in (out / peers.ROWS).read_text().splitlines()]
    seeds, timed = ([row for row in rows if row["what"] == what] for what in ("row", "times"))
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    weight = x_loss_weight(Sigmoid(), Cosine(), t) / TIMES
    curves: dict[str, NDArray[np.float64]] = {}  # (times, then the loss; images)
    for name in dict.fromkeys(row["name"] for row in seeds):
        mean = np.mean([np.load(errors_of(out, row)) for row in seeds if row["name"] == name], axis=0)
        curves[name] = np.vstack((mean, weight.numpy() @ mean))
    (name, first), *rivals = curves.items()
    chosen = np.random.default_rng(0).integers(first.shape[1], size=(1000, first.shape[1]))
    scales = [*(f"{value:.1f}" for value in Cosine().log_snr(t).tolist()), "loss"]
    lines = [["log-SNR", f"{name}, itself", *(rival for rival, _ in rivals)]]
    for k, scale in enumerate(scales):
        lines.append([scale, f"{first[k].mean():.4f}"])
        for _, values in rivals:
            drawn = values[k][chosen].mean(1) / first[k][chosen].mean(1)
            low, high = np.quantile(drawn, (0.025, 0.975))
            lines[-1].append(f"{values[k].mean() / first[k].mean():.3f} [{low:.3f}, {high:.3f}]")
    ways = dict.fromkeys((row["compiled"], row["batch"]) for row in timed)
    speeds = [["light", "width", "MMACs", *(f"{'compiled' if way else 'eager'}, {batch}" for way, batch in ways)]]
    for name in dict.fromkeys(row["light"] for row in timed):
        light_rows = [row for row in timed if row["light"] == name]
        cells = [f"{row['milliseconds']:.2f}, {row['efficiency']}" for row in light_rows]
        speeds.append([name, str(light_rows[0]["width"]), f"{light_rows[0]['million multiply-adds']:.1f}", *cells])
    return "\n\n".join((peers.page(out), markdown(lines), markdown(speeds)))


# Adapters by phase


def adapters(arguments: Sequence[str]) -> None:
    """Adapters by phase on a network, of 1, 100 and all training images, and its steps without adapters: a table of
    distances as in `quality`. Rows that are there are kept."""
    options = command(adapters.__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--network", default=NETWORK, help="a run of a single network, of ten classes")
    options.add_argument("--images", type=int, default=1000, help="that are drawn and scored")
    settings = options.parse_args(arguments)
    network, out = settings.network, settings.out
    data = dr.load(network).experiment.data
    train, test = (data.images(split) for split in ("train", "test"))
    assert train.labels is not None
    pixels, labels = np.asarray(train.images), train.labels
    ten_of_each = [i for label in range(10) for i in np.flatnonzero(labels == label)[:10]]
    chosen = {100: ten_of_each, 1: [0, 0]}  # of two one is held out
    folders: dict[str, str | None] = {"all": None} | {str(count): str(out / f"images-{count}") for count in chosen}
    for count, rows in chosen.items():
        for i, row in enumerate(rows):
            (to := out / f"images-{count}" / str(labels[row])).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row].transpose(1, 2, 0).squeeze()).save(to / f"{i:03}.png")
    ways: dict[str, tuple[str, Mapping[str, Any]]] = {
        "own 10": (network, {"steps": 10}),
        "even 10": (network, {"steps": 10, "sampler": "ddim"}),
        "even 50": (network, {"steps": 50, "sampler": "ddim"}),
    }
    recipes = {(0, "all"): AdaptRecipe(phases=0)}
    for count, folder in folders.items():
        recipes |= {(2, count): AdaptRecipe(folder), (1, count): AdaptRecipe(folder, phases=1)}
    for (phases, count), recipe in recipes.items():
        run = out / f"phases-{phases}-{count}"
        dr.train(recipe(network), run)  # which goes on, or is there
        ways[f"{phases} phases, {count}"] = (str(run), {})
    judge = None
    for name, (run, how) in ways.items():
        if peers.row_with(out, {"way": name}):
            continue
        judge = judge or peers.Judge(out, 10_000, pixels[: settings.images], test.images)
        drawer = dr.Choice(**how).drawer(dr.load(run), batch_size=125, precision="float32")
        images = drawer.draw(range(settings.images)).images
        scores = judge.scores(images, torch.arange(settings.images) % 10)
        peers.add(out, {"way": name, "macs": drawer.cost.macs / 1e6, "scores": scores})
    lines = [["what", "million multiply-adds an image", *(f"FD-{net}" for net in peers.NETS)]]
    for row in map(json.loads, (out / peers.ROWS).read_text().splitlines()):
        distances = ("{:.0f} [{:.0f}, {:.0f}]".format(*score) for score in row["scores"])
        lines.append([row["way"], f"{row['macs']:,.0f}", *distances])
    print(markdown(lines))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---:"] * len(head), *body))


def main() -> None:
    verbs = {"scans": scans, "quality": quality, "lights": lights, "adapters": adapters}
    if sys.argv[1:2] == ["page"]:
        print(page(Path(sys.argv[2])))
        return
    on_one_thread()
    if sys.argv[1:2] and sys.argv[1] in verbs:
        verbs[sys.argv[1]](sys.argv[2:])
        return
    options = parser().parse_args()
    for size in options.sizes:
        encoder, light = PAIRS[size]
        networks = dict(candidates(light, options.kinds, options.blocks))
        for batch in options.batches:
            for row in table(
                networks, encoder, batch, torch.device(options.device), options.seconds, compiled=options.compile
            ):
                print(json.dumps({"size": size, **row}), flush=True)


if __name__ == "__main__":
    from studies import light_bodies as module  # under its name, by which runs name its networks

    module.main()
