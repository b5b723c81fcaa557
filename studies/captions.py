"""Text to image in miniature: do pictures show the count, the colour and the place that their captions say?

    python -m studies.captions OUT --seconds 1800 --seed 0    all that OUT lacks: data, trainings, rows.jsonl
    python -m studies.captions OUT page                       the table and figures of docs/results/captions.md

A caption names shapes beside a grey square in the middle, "two red circles left of a square". A PixArt transformer is
trained by a plain loop on pictures of 28 x 28 pixels, then saved as a pipeline of diffusers. All that follows is
dualrate's own: `data encode --prompts`, `retrofit`, `distill`, samplers, caches. Against these stand fewer steps of the
same model, and a smaller one that trained for as many seconds as model and retrofit.

The text encoder is a table: a word's vector and its position's, orthogonal to all others. The autoencoder is an
identity. Words of a fifth of the captions are never seen together in training. Pictures are
judged by a rule (`read`, `judged`), and no network.

One thread in float32: run it alone on its core. A stage that is in OUT is not run again; one that was interrupted
begins anew, those by dualrate go on.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import dualrate as dr
from benchmarks.workloads import in_cpu_seconds
from dualrate.pipelines.policies import FirstBlock, Verified
from dualrate.report.figures import log_axis, png
from dualrate.report.table import with_interval
from dualrate.system.device import keep_freed_memory
from dualrate.system.files import write_whole
from studies.common import RESULTS, Row, add_rows, kept, markdown, place, rows_of
from studies.equal_score import at_equal_score, resampled
from studies.shapes import (
    ASPECTS,
    BACKGROUND,
    CELL,
    COLOURS,
    COUNTS,
    PLACES,
    SHAPES,
    SIDE,
    Caption,
    Pixels,
    captions,
    drawn,
    judged,
    read,
)

# The pipeline

WORDS = (*COUNTS, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *PLACES)
TOKENS, WIDTH = 8, 32  # words of a caption, and an end; numbers of each
SCALE, GAIN = 0.02, 3.0  # of latents within the autoencoder, which squashes large ones; over pixels
DIFFUSION: Any = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}  # x_hat: patches are large


class Words(ModelMixin, ConfigMixin):
    """The text encoder: captions -> (B, 8, 32), and which tokens there are, (B, 8). "left of" is one word."""

    config_name = "config.json"
    table: Tensor

    @register_to_config
    def __init__(self, words: Sequence[str] = WORDS) -> None:
        super().__init__()
        square = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", torch.linalg.qr(square).Q * math.sqrt(WIDTH / 2))

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Raises ValueError for a word that it does not know, and for more words than there are tokens."""
        vocabulary, number = [word.replace(" ", "_") for word in self.config["words"]], []
        for text in texts:
            words = text.replace(" of", "_of").split()
            if strange := [word for word in words if word not in vocabulary]:
                raise ValueError(f"the words are {', '.join(vocabulary)}, got {strange[0]!r}")
            if len(words) >= TOKENS:
                raise ValueError(f"a caption has at most {TOKENS - 1} words, got {text!r}")
            number.append([*map(vocabulary.index, words), len(vocabulary)] + [-1] * (TOKENS - 1 - len(words)))
        number = torch.tensor(number)
        present = number >= 0
        embedded = self.table[number.clamp(min=0)] + self.table[-TOKENS:]
        return embedded * present[..., None], present.float()


class CaptionPipeline(DiffusionPipeline):
    """Called with captions it draws pictures, (B, 3, 28, 28) in [-1, 1]."""

    _optional_components = ["transformer", "vae", "scheduler"]  # noqa: RUF012  # diffusers' name, and a list there

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, text_encoder: Words) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder)

    def encode_prompt(self, prompt: list[str], negative_prompt: str = "", **_: Any) -> tuple[Tensor, ...]:
        """Embeddings and masks of texts, then of the negative one, as pipelines of PixArt return them."""
        return *self.text_encoder(prompt), *self.text_encoder([negative_prompt] * len(prompt))

    @torch.no_grad()
    def __call__(self, texts: list[str], steps: int, guidance: float, generator: torch.Generator) -> Tensor:
        net, scheduler, count = self.transformer, self.scheduler, len(texts)
        text, mask, empty, none = self.encode_prompt(texts)
        guided = guidance != 1
        if guided:
            text, mask = torch.cat((empty, text)), torch.cat((none, mask))
        inputs = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "return_dict": False}
        scheduler.set_timesteps(steps)
        z = torch.randn(count, 3, SIDE, SIDE, generator=generator)
        for t in scheduler.timesteps:
            x_hat = net(torch.cat((z, z)) if guided else z, timestep=t.expand(len(text)), **inputs)[0]
            if guided:
                without, x_hat = x_hat.chunk(2)
                x_hat = without + guidance * (x_hat - without)
            z = scheduler.step(x_hat, t, z, return_dict=False)[0]
        return self.vae.decode(z / self.vae.config.scaling_factor).sample


def identity() -> Any:
    """An autoencoder whose scaled latents are three times a pixel's distance from the background, to 1e-3."""
    config: Any = {"in_channels": 3, "out_channels": 3, "latent_channels": 3, "num_encoder_blocks": (0,)}
    config |= {"num_decoder_blocks": (0,), "encoder_block_out_channels": (3,), "decoder_block_out_channels": (3,)}
    coder = AutoencoderTiny(**config, scaling_factor=1 / SCALE)
    background = torch.tensor(BACKGROUND) / 255  # in [0, 1]
    coders: Any = ((coder.encoder.layers, 2 * GAIN * SCALE, -background), (coder.decoder.layers, 1.0, 0 * background))
    for layers, factor, shift in coders:
        convolutions: list[Any] = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        first, last = convolutions
        for layer in (first, last):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            last.weight *= factor
            last.bias += shift * factor
    first: Any = coder.decoder.layers[0]
    with torch.no_grad():  # what follows it keeps what is above 0
        first.weight /= 2 * GAIN * SCALE
        first.bias += background
    return coder.requires_grad_(False)


@dataclass(frozen=True)
class Size:
    """Dimensions of a PixArt transformer; patch: its side, in pixels."""

    layers: int
    heads: int
    head: int = 32
    patch: int = CELL

    def network(self) -> Any:
        """A network as the paper's training starts: attention to a text adds nothing, nor does the whole."""
        inner = self.heads * self.head
        net: Any = PixArtTransformer2DModel(
            num_attention_heads=self.heads, attention_head_dim=self.head, num_layers=self.layers, in_channels=3,
            out_channels=3, cross_attention_dim=inner, caption_channels=WIDTH, sample_size=SIDE, patch_size=self.patch,
        )  # fmt: skip
        net.register_to_config(dualrate_tokens=TOKENS)
        nn.init.normal_(net.adaln_single.linear.weight, std=0.02)
        for layer in (net.proj_out, *(block.attn2.to_out[0] for block in net.transformer_blocks)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return net


def pipeline(net: Any) -> CaptionPipeline:
    solver = DPMSolverMultistepScheduler(**DIFFUSION, lambda_min_clipped=-5.1)
    return CaptionPipeline(net, identity(), solver, Words())


# Training of the model

BATCH, DROPPED = 32, 0.1


def batches(rng: np.random.Generator) -> Iterator[tuple[list[str], Tensor]]:
    """Captions of training, and pictures of them, (B, 3, 28, 28) in [-1, 1]."""
    training, _ = captions()
    while True:
        texts = [training[i] for i in rng.integers(0, len(training), BATCH)]
        pictures = np.stack([drawn(text, rng) for text in texts])
        yield [str(text) for text in texts], torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1


def train(size: Size, seconds: float, seed: int, rate: float) -> tuple[CaptionPipeline, Row]:
    """A pipeline with a network that was trained so long, by its x_hat at times by chance.

    min(1 + snr, 5) |x - x_hat|^2        which is |v - v_hat|^2 where there is much noise
    """
    torch.manual_seed(seed)
    rng, pipe = np.random.default_rng(seed), pipeline(size.network())
    noise: Any = DDPMScheduler(**DIFFUSION)
    net: Any = pipe.transformer
    weight = (1 / (1 - noise.alphas_cumprod)).clamp(max=5)[:, None, None, None]
    optimiser = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.0)
    begun, iteration, losses = time.process_time(), 0, []
    for texts, x in batches(rng):
        share = (time.process_time() - begun) / seconds
        if share >= 1:
            break
        optimiser.param_groups[0]["lr"] = rate * min(1, (iteration + 1) / 100) * (1 + math.cos(math.pi * share)) / 2
        texts = ["" if drop else text for text, drop in zip(texts, rng.random(BATCH) < DROPPED, strict=True)]
        text, mask = pipe.text_encoder(texts)
        t, eps = torch.randint(0, 1000, (BATCH,)), torch.randn_like(x)
        x = pipe.vae.encode(x).latents * pipe.vae.config.scaling_factor
        z = noise.add_noise(x, eps, t)
        inputs = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "return_dict": False}
        loss = (weight[t] * (x - net(z, timestep=t, **inputs)[0]).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        iteration += 1
        if iteration % 200 == 0:
            print(f"{iteration} iterations, {share * seconds:.0f} s, loss {np.mean(losses[-200:]):.4f}", flush=True)
    return pipe, {"iterations": iteration, "loss": float(np.mean(losses[-200:]))}


# Stages: each leaves a folder in OUT

MODEL, SMALL = Size(layers=6, heads=4), Size(layers=4, heads=2)
PICTURES, DRAWN, SHOWN = 12_000, 512, 6  # of the data; of a row of the table; kept of each, to be shown
GUIDANCE, SHARE = 1.0, 0.25  # more of the first counts worse: rows of `WAYS` show it
RATE, SMALL_RATE = 1e-3, 2e-3


@dataclass(frozen=True)
class Run:
    """A study in a folder; seconds: of the model's training, parts of which the others take.

    count: of pictures of the data; drawn: captions of a row; share: of a light call, over the model's
    """

    out: Path
    seconds: float = 1800.0
    seed: int = 0
    count: int = PICTURES
    drawn: int = DRAWN
    model: Size = MODEL
    small: Size = SMALL
    share: float = SHARE

    def train(self) -> None:
        """Trains all networks that are not there yet."""
        read_by_table()
        pair, student = self.seconds / 4, self.seconds / 6
        self.network("model", self.model, self.seconds, RATE)
        self.data()
        fit = ("--fit.seed", self.seed, "--fit.sample-every", 10**6, "--fit.precision", "float32", "--device", "cpu")
        latents, model, to = self.out / "latents", self.out / "model", self.out
        small = ("--fit.batch-size", BATCH, "--fit.optim.warmup", 50, *fit)
        pair_of = ("--data.source", latents, "--share", self.share, "--fit.optim.lr", 1e-3)
        dualrate("retrofit", model, *pair_of, "--fit.max-seconds", pair, *small, "--out", to / "retrofit")
        few = ("auto", "--teacher", model, "--guidance", GUIDANCE, "--fit.max-seconds", student, *small)
        few += ("--fit.optim.lr", 3e-4)
        by_path = ("--method", "consistency", "--source", latents, "--steps", 4)
        by_path += ("--annealing", 0, "--teacher-steps", 32, 32)  # which grow with iterations, not with seconds
        dualrate("distill", *few, *by_path, "--out", to / "consistency")
        dualrate("distill", *few, "--source", latents, "--student", "plain", "--steps", 8, "--out", to / "moments")
        self.network("small", self.small, self.seconds + pair, SMALL_RATE)

    def network(self, name: str, size: Size, seconds: float, rate: float) -> None:
        """Trains a pipeline in OUT/NAME, unless it is there."""
        if (self.out / name / "trained.json").is_file():
            return
        pipe, row = train(size, seconds, self.seed, rate)
        pipe.save_pretrained(self.out / name)
        write_whole(self.out / name / "trained.json", json.dumps(row | asdict(size) | {"seconds": seconds}))

    def data(self) -> None:
        """Writes pictures with captions of training, and their latents and prompts."""
        training, _ = captions()
        rng, pictures, texts = (
            np.random.default_rng(self.seed + 1),
            self.out / "pictures.npz",
            self.out / "captions.txt",
        )
        if not texts.is_file():
            chosen = [training[i] for i in rng.integers(0, len(training), self.count)]
            np.savez(pictures, images=np.stack([drawn(caption, rng) for caption in chosen]))
            write_whole(texts, "\n".join(map(str, chosen)) + "\n")
        how = ("--prompts", texts, self.out / "model", "--no-mirrored", "--batch-size", 256, "--device", "cpu")
        dualrate("data", "encode", pictures, self.out / "latents", *how)

    def prompts(self) -> list[Caption]:
        """The captions of a row: half with words that training has together, then as many that it has not."""
        half = self.drawn // 2
        return [part[i % len(part)] for part in captions() for i in range(half)]

    def score(self) -> None:
        """Appends the rows that OUT/rows.jsonl lacks."""
        read_by_table()
        prompts, done = self.prompts(), {row["way"] for row in rows_of(self.out)}
        texts = self.out / "asked.txt"
        write_whole(texts, "\n".join(map(str, prompts)) + "\n")
        for way in WAYS:
            if str(way) in done:
                continue
            pictures, cost = way.by_pipeline(self, texts) if way.cache else way.by_dualrate(self, texts)
            right = [judged(caption, read(picture)) for caption, picture in zip(prompts, pictures, strict=True)]
            flags = {aspect: "".join(str(int(verdict[aspect])) for verdict in right) for aspect in ASPECTS}
            shown = [*range(SHOWN // 2), *range(len(prompts) - SHOWN // 2, len(prompts))]
            (self.out / "shown").mkdir(exist_ok=True)
            np.save(self.out / "shown" / f"{way.slug}.npy", pictures[shown])
            add_rows(self.out, [{"way": str(way), **cost, **flags}])
            print(way, {name: round(value, 3) for name, value in cost.items()}, _share(flags), flush=True)


def dualrate(*words: object) -> None:
    """A command, in this process, whose text encoders are the table of words."""
    from dualrate.cli.main import parsed

    with in_cpu_seconds():
        parsed([*map(str, words)]).run()


def read_by_table() -> None:
    """Let commands read prompts by a pipeline's table: what diffusers loads would want transformers.

    They refuse pipelines with code of their own, but for this module's.
    """
    from dualrate.pipelines import folder as diffusers_folder
    from dualrate.pipelines import text_encoders as text_folder

    def read_pipeline(folder: Path, dtype: torch.dtype) -> CaptionPipeline:
        return CaptionPipeline(None, None, None, Words.from_pretrained(folder / "text_encoder", use_safetensors=True))

    text_folder.read_pipeline = read_pipeline
    diffusers_folder.KNOWN = (*diffusers_folder.KNOWN, Words.__module__)


# Ways to draw

AT_ONCE = 128  # pictures


@dataclass(frozen=True)
class Way:
    """network: a folder of OUT; cache: of its own pipeline's loop, "none" for the plain loop; "": dualrate draws."""

    network: str
    steps: int
    sampler: str | None = None
    heavy: int | None = None
    guidance: float = GUIDANCE
    cache: str = ""
    refresh: Any = 1

    def __str__(self) -> str:
        parts = [self.network, f"{self.steps}/{self.heavy}" if self.heavy else str(self.steps), self.sampler or ""]
        parts += [] if not self.cache else ["its pipeline" + f", {self.cache} {self.refresh}" * (self.cache != "none")]
        parts += [f"guidance {self.guidance:g}"] if self.guidance != 1 else []
        return ", ".join(part for part in parts if part)

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in str(self))

    def by_dualrate(self, run: Run, texts: Path) -> tuple[Pixels, Row]:
        """Pictures (N, 28, 28, 3) of the captions in a file, and what one of them cost."""
        from dualrate.drawing.drawer import Guidance
        from dualrate.pipelines.retrofitted import prompts_of

        model = dr.load(str(run.out / self.network))
        model = model.with_given(prompts_of(model.experiment, str(texts), "cpu"))
        choice = dr.Choice(steps=self.steps, heavy=self.heavy, sampler=self.sampler)
        drawer = choice.drawer(model, guidance=Guidance(self.guidance), batch_size=AT_ONCE, precision="float32")
        begun = time.process_time()
        images = drawer.draw(range(run.drawn)).images
        seconds, cost = time.process_time() - begun, drawer.cost
        calls = {"heavy": cost.heavy_calls, "light": cost.light_calls}
        return images.transpose(0, 2, 3, 1), calls | _price(cost.macs, seconds / run.drawn, self.steps)

    def by_pipeline(self, run: Run, texts: Path) -> tuple[Pixels, Row]:
        """The same, by the pipeline's own loop, under a cache. Whole and skipped calls are counted as heavy, light."""
        net = PixArtTransformer2DModel.from_pretrained(run.out / self.network / "transformer", use_safetensors=True)
        pipe, lines = pipeline(net.eval()), texts.read_text().splitlines()
        generator, pictures = torch.Generator().manual_seed(run.seed), []
        # caches have the names of when they were measured
        method: Any = {"none": "fora", "taylor": "polynomial"}.get(self.cache, self.cache)
        with dr.accelerate(pipe, method, refresh=self.refresh) as handle:
            begun = time.process_time()
            for first in range(0, len(lines), AT_ONCE):
                pictures.append(pipe(lines[first : first + AT_ONCE], self.steps, self.guidance, generator))
            seconds = time.process_time() - begun
            calls = [call for sampling in handle.samplings["transformer"] for call in sampling]
        branches, samplings = 1 + (self.guidance != 1), len(pictures)
        counts = {
            kind: branches * sum(call.did == did for call in calls) / samplings
            for kind, did in (("heavy", "full"), ("light", "skipped"))
        }
        images = ((torch.cat(pictures).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        macs = sum(call.macs for call in calls) / len(lines)
        return images, counts | _price(macs, seconds / len(lines), self.steps)


def _price(macs: float, seconds: float, steps: int) -> Row:
    return {"steps": steps, "macs": macs / 1e6, "ms": 1000 * seconds}


WAYS = (
    *(Way("model", steps, "dpm++2m") for steps in (2, 3, 4, 6, 8, 12, 16, 32)),
    *(Way("model", 16, "dpm++2m", guidance=guidance) for guidance in (1.5, 2.0)),
    *(Way("model", steps, "ddim") for steps in (4, 8, 16)),
    Way("model", 16),
    *(Way("small", steps, "dpm++2m") for steps in (4, 8, 16, 32)),
    *(Way("retrofit", steps, heavy=heavy) for steps, heavy in ((4, 2), (8, 2), (8, 4), (16, 4), (16, 8), (32, 8))),
    Way("retrofit", 16, heavy=4, guidance=2.0),
    Way("consistency", 4),
    Way("moments", 8),
    Way("model", 16, cache="none"),
    *(Way("model", 16, cache="fora", refresh=every) for every in (2, 3)),
    *(Way("model", 16, cache="taylor", refresh=every) for every in (2, 3, 4)),
    Way("model", 16, cache="fora", refresh=FirstBlock(0.2)),
    Way("model", 16, cache="taylor", refresh=Verified(0.2, "forecast of first")),
)

# Pages


def _right(row: Row) -> NDArray[np.bool_]:
    """(N,): of each caption, whether count, colour and place are right."""
    return np.all([[flag == "1" for flag in row[aspect]] for aspect in ASPECTS[:3]], axis=0)


def _share(row: Row) -> tuple[float, float, float]:
    """Share of the captions of which all three are right, with Wilson's interval of 95%."""
    right = _right(row)
    return wilson(int(right.sum()), len(right))


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float, float]:
    """The share, and its interval (Wilson 1927): the p with |share - p| = z sqrt(p (1 - p) / n)."""
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return share, middle - half, middle + half


UNLISTED = (  # parts of ways that the table does not have
    "ddim", "guidance", "fora", "taylor 2, dpm", "taylor 3", "taylor 4", "model, 2,", "model, 6,",
    "model, 12,", "model, 32,",
)  # fmt: skip
HEADER = (
    "way", "million multiply-adds", "all three right, %", "ratio to the model: multiply-adds", "ms",
    "to the smaller one: multiply-adds",
)  # fmt: skip


def listed(rows: Sequence[Row]) -> list[Row]:
    """Rows that the table has, the cheapest way first."""
    shown = [row for row in rows if row["way"] != "model, 16" and not any(part in row["way"] for part in UNLISTED)]
    return sorted(shown, key=lambda row: (row["macs"], row["way"]))


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown, the cheapest way first: shares, and of each way but the model and the smaller one what these
    cost, in as few steps as they take to draw as many captions right, over what the way costs.

    Intervals of ratios are over captions, the same for all.
    """
    scores = wrong(rows)
    costs = {cost: {row["way"]: row[cost] for row in rows} for cost in ("macs", "ms")}
    rivals_of = {network: rivals(scores, network) for network in ("model", "small")}
    columns = ("model", "macs"), ("model", "ms"), ("small", "macs")
    lines = []
    for row in listed(rows):
        way = row["way"]
        ratios = (at_equal_score(scores, costs[cost], way, rivals_of[network], curve_of) for network, cost in columns)
        cells = ("", "", "") if rival_of(way) else ratios
        right = with_interval(*(100 * share for share in _share(row)), places=1)
        lines.append([way.replace(", dpm++2m", ""), f"{row['macs']:.1f}", right, *cells])
    return markdown(HEADER, lines, texts=1)


def wrong(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Share of captions that are not all right, of each way; then of captions drawn anew, in pairs."""
    return resampled(rows, itemgetter("way"), lambda row: 1.0 - _right(row).astype(np.float64), curve_of)


def curve_of(way: str) -> tuple[str, ...]:
    """A way without its steps."""
    network, _, *rest = way.split(", ")
    return network, *rest


def rival_of(way: str) -> str:
    """The network of a way that is the model or the smaller one alone, else ""."""
    network = way.split(",")[0]
    return network if network in ("model", "small") and "pipeline" not in way else ""


def rivals(ways: Iterable[str], network: str) -> list[str]:
    """The ways of the model or the smaller one alone whose steps were varied: one plan alone bounds nothing."""
    alone = [way for way in ways if rival_of(way) == network]
    curves = Counter(map(curve_of, alone))
    return [way for way in alone if curves[curve_of(way)] > 1]


def page(out: Path) -> None:
    """Writes the table and figures of docs/results/captions.md, of OUT or of the kept rows."""
    rows = kept(RESULTS / "captions.json.xz", out)
    place("captions", table(rows), RESULTS / "captions.md")
    print(table(rows), end="")
    write_whole(RESULTS / "captions.png", png(front(rows)))
    if (out / "shown").is_dir():
        write_whole(RESULTS / "captions-pictures.png", png(gallery(out, rows)))


KINDS = {"model": "C0", "small": "C7", "retrofit": "C3", "consistency": "C2", "moments": "C4", "its pipeline": "C1"}


def front(rows: Sequence[Row]) -> Figure:
    """The share of captions of which all three are right, against multiply-adds."""
    figure = Figure((6.4, 4), layout="constrained")
    axes = figure.subplots()
    for kind, colour in KINDS.items():
        of = [row for row in rows if kind == ("its pipeline" if "pipeline" in row["way"] else row["way"].split(",")[0])]
        if not of:
            continue
        shares = np.array([_share(row) for row in of]).T * 100
        axes.errorbar(
            [row["macs"] for row in of], shares[0], [shares[0] - shares[1], shares[2] - shares[0]], color=colour,
            linestyle="", marker="o", markersize=4, linewidth=1, label=kind,
        )  # fmt: skip
    log_axis(axes, "x")
    axes.set(xlabel="million multiply-adds a picture", ylabel="captions with all three right, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def gallery(out: Path, rows: Sequence[Row]) -> Figure:
    """A line a caption, a column a way; a frame is green where count, colour and place are right."""
    total = len(rows[0]["count"])
    chosen = [*range(SHOWN // 2), *range(total - SHOWN // 2, total)]
    texts = (out / "asked.txt").read_text().splitlines()
    ways = [way for way in SHOWN_WAYS if (out / "shown" / f"{way.slug}.npy").is_file()]
    by_way = {row["way"]: row for row in rows}
    figure = Figure((1.15 * len(ways) + 1.9, 1.15 * SHOWN + 0.6), layout="constrained", facecolor="white")
    grid = figure.subplots(SHOWN, len(ways), squeeze=False)
    for column, way in enumerate(ways):
        pictures, row = np.load(out / "shown" / f"{way.slug}.npy"), by_way[str(way)]
        for line, number in enumerate(chosen):
            axes = grid[line, column]
            axes.imshow(pictures[line], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            right = all(row[aspect][number] == "1" for aspect in ASPECTS[:3])
            for spine in axes.spines.values():
                spine.set(color="#3a9d5d" if right else "#d04a44", linewidth=2)
            if column == 0:
                axes.set_ylabel(textwrap.fill(texts[number], 16), rotation=0, ha="right", va="center", fontsize=8)
            if line == 0:
                axes.set_title(textwrap.fill(str(way), 16), fontsize=8)
    return figure


SHOWN_WAYS = (
    Way("model", 32, "dpm++2m"), Way("model", 8, "dpm++2m"), Way("model", 4, "dpm++2m"), Way("retrofit", 16, heavy=4),
    Way("model", 16, cache="taylor", refresh=3), Way("moments", 8), Way("consistency", 4),
    Way("small", 16, "dpm++2m"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("verb", nargs="?", choices=("run", "page"), default="run")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.verb == "page":
        page(options.out)
        return
    keep_freed_memory()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    run = Run(options.out, options.seconds, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    run.train()
    run.score()


if __name__ == "__main__":
    from studies import captions as module  # under its name, by which diffusers finds its classes again

    module.main()
