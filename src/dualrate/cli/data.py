"""Prepare images for training at scale: packed shards (data prepare), latents (data encode), checked (data verify).

`dualrate encode` and `dualrate decode`: one's own pictures as latents of a run's codec, and back.

Check a codec (codec check): size of its latents, PSNR, drift and range of what it decodes. Exit 1: a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from dualrate.cli.console import drawing, print_report, reporter
from dualrate.cli.recipe import AsJson, AtATime, Device, parse_one_of
from dualrate.config.imports import import_named
from dualrate.config.ranges import Images, Range, Ranged, Seed, Side, Steps, WorkerCount
from dualrate.data.source import NOTED, DataProgress
from dualrate.sampling.catalogue import at_gamma, sampler_named
from dualrate.system.device import pick_device
from dualrate.system.progress import Reporter

MIB = 2**20
Label = Annotated[
    str | None,
    arg(metavar="COLUMN", help="Column of the labels, of Parquet files; one of the usual names if not given."),
]
OF_TRAIN = re.compile(r"--data\.(?=size|channels|on-bad)")
Processes = Annotated[WorkerCount, arg(help="Processes that work at once; auto: one for each idle processor.")]


@dataclass(frozen=True)
class Prepare(Ranged):
    """Decode, crop and resize images once, in both splits, to shards that train and evaluate read as --data.source.

    The same command goes on after a kill; what is finished is never made again.
    """

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """What --data.source takes: a folder of images, tar archives (ImageNet's, webdataset's), Parquet files, .npz."""
    out: Annotated[Positional[Path], arg(metavar="DST")]
    """A new folder."""
    size: Side
    """Side that images are brought to: box averages, bicubic, centre crop."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does: end the program, or be left out and listed in dataset.json."""
    label: Label = None
    shard_mib: Annotated[int, Range(1, 65_536)] = 256
    """Size of a shard in MiB, the work that a process takes at a time."""
    workers: Processes = 1
    json: AsJson = False

    def run(self) -> None:
        from dualrate.data.prepare import PREPARING, prepare
        from dualrate.system.workers import mapper

        progress = reporter()
        with own_options(), mapper(self.workers, torch.device("cpu"), progress.note) as over:
            made = prepare(
                self.source,
                self.out,
                size=self.size,
                channels=self.channels,
                on_bad=self.on_bad,
                label=self.label,
                shard_bytes=self.shard_mib * MIB,
                mapper=over,
                progress=telling(progress, PREPARING),
            )
        progress.close()
        counts = {
            f"{split} {what}": part[what] for split, part in made["splits"].items() for what in ("images", "rejected")
        }
        classes = len(made["splits"]["train"]["class_names"])
        print_report(self.json, {**counts, "classes": classes, "size": made["size"], "channels": made["channels"]})


@dataclass(frozen=True)
class Encode(Ranged):
    """Encode images once, in both splits, to cached moments of their latents, which train reads as --data.source.

    The same command goes on after a kill; what is finished is never made again.
    """

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """Images, as --data.source takes them; for a large set, what dualrate data prepare wrote."""
    out: Annotated[Positional[Path], arg(metavar="DST")]
    """A new folder."""
    codec: Path
    """Folder of the codec, as save_pretrained of diffusers wrote it, such as the vae of a pipeline."""
    size: Side | None = None
    """Side that images are brought to before; their own if not given."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does: end the program, or be left out."""
    label: Label = None
    mirrored: bool = True
    """Also latents of mirrored images, for --data.augment.flip; twice the size and time."""
    shard_mib: Annotated[int, Range(1, 65_536)] = 256
    """Size of a shard in MiB, the work that a process takes at a time."""
    batch_size: AtATime = 16
    device: Device = None
    workers: Processes = 1
    json: AsJson = False

    def run(self) -> None:
        from dualrate.codecs.codec import CodecFolder
        from dualrate.data.prepare import ENCODING, encode
        from dualrate.system.workers import mapper

        progress, where = reporter(), pick_device(self.device)
        with own_options(), mapper(self.workers, where, progress.note) as over:
            made = encode(
                self.source,
                self.out,
                CodecFolder.at(self.codec, where),
                size=self.size,
                channels=self.channels,
                on_bad=self.on_bad,
                label=self.label,
                mirrored=self.mirrored,
                shard_bytes=self.shard_mib * MIB,
                batch_size=self.batch_size,
                device=where,
                mapper=over,
                progress=telling(progress, ENCODING),
            )
        progress.close()
        counts = {f"{split} images": part["images"] for split, part in made["splits"].items()}
        moments, *shape = made["row"]["shape"]
        about = {"latents": "x".join(map(str, shape)), "moments": moments, "views": made["row"]["each"]}
        print_report(self.json, {**counts, **about, "codec": made["codec"]["fingerprint"][:12]})


@contextmanager
def own_options() -> Iterator[None]:
    """Messages of reading images name options as `train` has them, --data.size; around a command that has --size."""
    try:
        yield
    except ValueError as error:
        raise ValueError(OF_TRAIN.sub("--", str(error))) from error


def telling(progress: Reporter, work: str) -> DataProgress:
    """Shows the work itself; what comes before it, such as listing archives, is named once."""
    shown, said = drawing(progress), set[str]()

    def tell(done: int, total: int, what: str) -> None:
        if what == work:
            shown(done, total)
        elif what not in said:
            progress.note(what if what.startswith(NOTED) else f"{what}: {total}")
            said.add(what)

    return tell


@dataclass(frozen=True)
class Verify(Ranged):
    """Compare every prepared image, or latent, with what was written; name the shards that differ."""

    folder: Annotated[Positional[Path], arg(metavar="DST")]
    """What dualrate data prepare, or encode, wrote."""
    workers: Processes = 1
    json: AsJson = False

    def run(self) -> None:
        from dualrate.data.packed import verify
        from dualrate.system.workers import mapper

        progress = reporter()
        shown = drawing(progress)
        with mapper(self.workers, torch.device("cpu"), progress.note) as over:
            images = verify(self.folder, over, lambda done, total, what: shown(done, total))
        progress.close()
        print_report(self.json, {"images": images, "damaged shards": 0})


DATA: dict[str, type[Prepare | Encode | Verify]] = {"prepare": Prepare, "encode": Encode, "verify": Verify}


def parse_data(arguments: list[str]) -> Prepare | Encode | Verify:
    """The options of `dualrate data prepare`, `encode` or `verify`. Raises what `parse_one_of` raises."""
    return parse_one_of("data", DATA, arguments)


Run = Annotated[
    Path, arg(metavar="RUN", help="A run that trained a codec, a decoder's run, or an autoencoder's folder.")
]


@dataclass(frozen=True)
class EncodeImages(Ranged):
    """Encode pictures to a file of latents by the codec of a run (for training: dualrate data encode)."""

    images: Annotated[Positional[str], arg(metavar="IMAGES")]
    """A picture, a folder of pictures, a .npz or .parquet file, or anything else that --data.source takes."""
    run_dir: Annotated[Run, arg(name="run")]
    out: Path = Path("latents.npz")
    """A new file: latents (N, C, h, w), names, codec (sha256)."""
    size: Side | None = None
    """Side that images are brought to; their own if not given."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    batch_size: AtATime = 64
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.codecs.codec import read_codec
        from dualrate.data.images import every_image
        from dualrate.data.source import resolved
        from dualrate.drawing.latents import encode_images
        from dualrate.drawing.samples import GRID_PNG, grids_below

        progress, codec = reporter(), read_codec(self.run_dir, pick_device(self.device))
        beside = grids_below(resolved(self.images))
        if beside:
            progress.note(f"{len(beside)} {GRID_PNG} left out, which dualrate sample wrote beside its images")
        images = every_image(self.images, self.size, self.channels, without=beside)
        with closing(progress):
            made = encode_images(images, codec, self.out, batch_size=self.batch_size, progress=drawing(progress))
        shape = "x".join(map(str, made.x.shape[1:]))
        print_report(
            self.json, {"images": len(made.x), "latents": shape, "codec": made.codec[:12], "out": str(self.out)}
        )


@dataclass(frozen=True)
class DecodeLatents(Ranged):
    """Decode a file of latents to pictures by the codec of a run. The same command goes on after a kill."""

    latents: Annotated[Positional[Path], arg(metavar="LATENTS")]
    """What dualrate encode wrote."""
    run_dir: Annotated[Run, arg(name="run")]
    out: Path
    """Folder for the images: new, empty, or with some of the same, which it goes on with."""
    sampler: str | None = None
    """Of a diffusion decoder, any, or NAME:GAMMA; as it was trained, or sde-dpm++2m:0.1 of a decoder's run, if not
    given."""
    steps: Steps | None = None
    """Of a diffusion decoder; as it was trained, or 16 of a decoder's run, if not given."""
    seed: Seed = 0
    """Of the noise that latents are decoded with."""
    npz: bool = False
    """Also write images.npz: arr_0 (N, H, W, C) uint8."""
    batch_size: AtATime = 64
    device: Device = None
    json: AsJson = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler is not None:
            name, _ = at_gamma(self.sampler)
            import_named("sampler", name)
            sampler_named(name)

    def run(self) -> None:
        from dualrate.codecs.codec import read_codec
        from dualrate.drawing.latents import Latents, decode_latents

        latents, progress = Latents.read(self.latents), reporter()
        codec = read_codec(self.run_dir, pick_device(self.device), self.sampler, self.steps)
        how = {"seed": self.seed, "batch_size": self.batch_size, "npz": self.npz, "progress": drawing(progress)}
        with closing(progress):
            done = decode_latents(latents, codec, self.out, **how)
        print_report(
            self.json,
            {
                "images": done.images,
                "drawn": done.drawn,
                "out": str(self.out),
                "seconds_per_image": done.seconds / done.drawn if done.drawn else None,
            },
        )


@dataclass(frozen=True)
class CodecCheck(Ranged):
    """Check a codec (codec check): size of its latents, PSNR, drift and range of what it decodes. Exit 1: a problem."""

    folder: Annotated[Positional[Path], arg(metavar="CODEC")]
    """As save_pretrained of diffusers wrote it, such as the vae of a pipeline."""
    source: Annotated[str, arg(name="data")]
    """Images, as --data.source takes them."""
    size: Side | None = None
    """Side that they are brought to; their own if not given."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    num: Images = 256
    """Number of training images that are looked at."""
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.cli.console import decoding, print_findings, reporter
        from dualrate.codecs.codec import read_codec
        from dualrate.data.images import load_images
        from dualrate.doctor.stored import check_codec

        progress = reporter()
        how = {"size": self.size, "channels": self.channels, "progress": decoding(progress)}
        images = load_images(self.source, split="train", **how)
        codec = read_codec(self.folder, pick_device(self.device))
        print_findings(self.json, check_codec(codec, images, self.num))


def parse_codec(arguments: list[str]) -> CodecCheck:
    """The options of `dualrate codec check`. Raises what `parse_one_of` raises."""
    return parse_one_of("codec", {"check": CodecCheck}, arguments)
