"""`dualrate data`: prepare, encode and verify images for training; check a codec."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from dualrate.codecs.codec import Codec, CodecFolder, read_codec
from dualrate.config.ranges import Images, Range, Ranged, Side
from dualrate.data.cache import verify
from dualrate.data.images import PREPARING, ImageSet, load_images, prepare, to_float
from dualrate.data.latent_set import ENCODING, encode
from dualrate.diffusion.random import Draws
from dualrate.drawing.latents import round_trip_nearness
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.options.console import data_progress, print_report, reporter
from dualrate.options.parsing import AsJson, AtATime, Device, Nproc, SharedWork
from dualrate.pipelines.captions import read_captions
from dualrate.pipelines.prompt_set import ENCODING as ENCODING_PROMPTS
from dualrate.pipelines.prompt_set import PROMPTS, encode_prompts, has_prompts, verify_captions
from dualrate.pipelines.retrofitted import text_folder
from dualrate.system.device import pick_device
from dualrate.system.workers import mapper

MIB = 2**20
LOW, HIGH = 0.8, 1.25  # of the size of latents
AT_A_TIME = 16  # images that are encoded for it


@dataclass(frozen=True, kw_only=True)
class _Images(Ranged):
    """The shape that images are brought to."""

    size: Side | None = None
    """Side in pixels that images are resized to; their own if not given."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. Default: as the images are."""

    def run(self) -> None:
        """Run it. Messages of reading images name options as `train` has them, where they are --data.size and so on."""
        try:
            self.perform()
        except ValueError as error:
            raise ValueError(self.options_here(str(error))) from error

    @staticmethod
    def options_here(text: str) -> str:
        """A message in which options are called as they are here."""
        return re.sub(r"--data\.(?=size|channels|on-bad|label|fps)", "--", text)

    def perform(self) -> None:
        """Do what the command is for."""


@dataclass(frozen=True, kw_only=True)
class _ToFolder(_Images, SharedWork):
    """Images made into a folder that train reads."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """Images, as --data.source takes them: a folder, tar archives, Parquet files, .npz, or a folder that data prepare
    wrote."""
    out: Annotated[Positional[Path], arg(metavar="DST")]
    """A new folder."""
    on_bad: Literal["fail", "skip"] = "fail"
    """An image that cannot be read ends the program (fail), or is left out and listed in dataset.json (skip)."""
    label: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Column of the labels in Parquet files, or array in .npz. Default: the first of the usual names."""
    shard_mib: Annotated[int, Range(1, 65_536)] = 256
    """Size of a shard in MiB."""
    nproc: Nproc = 1
    json: AsJson = False

    @contextmanager
    def writing(self, work: str, where: torch.device) -> Iterator[dict[str, Any]]:
        """How shards are written: their size, by which processes. work: as messages of its progress name it."""
        progress, size = reporter(), self.shard_mib * MIB
        with closing(progress):
            yield {"shard_bytes": size, "mapper": mapper(where), "progress": data_progress(progress, work)}

    def write(self, make: Callable[..., Any], work: str, where: torch.device, **more: Any) -> Any:
        """Let `make` write the folder, and return its manifest."""
        how = {"size": self.size, "channels": self.channels, "on_bad": self.on_bad, "label": self.label}
        with self.writing(work, where) as shared:
            return make(self.source, self.out, **how, **shared, **more)


@dataclass(frozen=True, kw_only=True)
class Prepare(_ToFolder):
    """Decode, crop and resize images once, into shards that train and evaluate read as --data.source."""

    size: Side = field()
    """Side in pixels that images are resized to: box averages, bicubic, centre crop."""
    frames: Annotated[int, Range(2, 256)] | None = None
    """Frames of a window of clips: then SRC is a GIF, a video or a folder of them or of folders of frames, or
    moving-sprites."""
    fps: Annotated[float, Range(0, 1000, above=True)] | None = None
    """Frames a second that are read of clips. Default: each frame."""
    lead: Annotated[int, Range(1, 100_000)] = 1
    """Frames of a clip from one frame of a window to the next."""
    stride: Annotated[int, Range(1, 10_000_000)] | None = None
    """Frames of a clip from one window to the next. Default: windows do not overlap."""

    def perform(self) -> None:
        if self.frames is not None:
            manifest = self._clips(self.frames)
        elif self.fps or self.lead > 1 or self.stride:
            raise ValueError("--fps, --lead and --stride are of clips: give --frames with them, or drop them")
        else:
            manifest = self.write(prepare, PREPARING, torch.device("cpu"))
        counts = {
            f"{split} {what}": part[what]
            for split, part in manifest["splits"].items()
            for what in ("images", "rejected")
        }
        classes = len(manifest["splits"]["train"]["class_names"])
        shape = {"size": manifest["size"], "channels": manifest["channels"]}
        if frames := manifest.get("frames"):
            shape |= {"channels": manifest["channels"] // frames, "frames": frames}
        print_report(self.json, {**counts, "classes": classes, **shape})

    def _clips(self, frames: int) -> Any:
        if self.label is not None or self.nproc != 1:
            raise ValueError("clips are packed by one process, and their folders are classes: drop --label and --nproc")
        shape, cut = {"size": self.size, "channels": self.channels}, Cut(frames, self.lead, self.stride)
        how: dict[str, Any] = {"fps": self.fps, "on_bad": self.on_bad, "shard_bytes": self.shard_mib * MIB}
        with closing(reporter()) as progress:
            say = data_progress(progress, PREPARING)
            how["progress"] = lambda done, total, text: say(done, total, self.options_here(text))
            return prepare_clips(self.source, self.out, cut, **shape, **how)


@dataclass(frozen=True, kw_only=True)
class Encode(_ToFolder):
    """Encode images, and captions by --prompts, once: train reads the moments of their latents as --data.source."""

    codec: Path | None = None
    """Folder of the codec, as save_pretrained of diffusers writes it, such as the vae of a pipeline."""
    prompts: Annotated[tuple[str, Path] | None, arg(metavar="CAPTIONS PIPELINE")] = None
    """Also encode CAPTIONS by the text encoders in the folder PIPELINE. Its vae is then the codec. CAPTIONS is a .txt
    file with a line per image, a table (.csv, .tsv, .jsonl, .parquet, or FILE#COLUMN), or a folder of text files named
    like the images."""
    mirrored: bool = True
    """Also encode mirrored images, for --data.augment.flip. This doubles size and time."""
    batch_size: AtATime = 16
    device: Device = None

    def perform(self) -> None:
        device, progress = pick_device(self.device), data_progress(reporter())
        if (self.codec is None) == (self.prompts is None):
            raise ValueError("name the codec by --codec FOLDER, or with --prompts by its pipeline alone")
        folder, captions, texts = self.codec, None, None
        if self.prompts is not None:
            if self.on_bad != "fail":
                raise ValueError("an image cannot be left out without its caption: drop --on-bad, repair the images")
            texts, folder = text_folder(self.prompts[1])
            captions = read_captions(self.prompts[0], self.source, self.label, progress)
        assert folder is not None
        codec, options = CodecFolder.at(folder, device), {"mirrored": self.mirrored, "batch_size": self.batch_size}
        manifest = self.write(encode, ENCODING, device, codec=codec, device=device, **options)
        if captions is not None and texts is not None:
            with self.writing(ENCODING_PROMPTS, device) as how:
                encode_prompts(captions, self.out, texts, batch_size=self.batch_size, device=device, **how)
        counts = {f"{split} images": part["images"] for split, part in manifest["splits"].items()}
        moments, *shape = manifest["row"]["shape"]
        about = {"latents": "x".join(map(str, shape)), "moments": moments, "views": manifest["row"]["each"]}
        about |= {"codec": manifest["codec"]["fingerprint"][:12]}
        if texts is not None:
            about |= {"prompts": texts.size, "text encoders": texts.fingerprint[:12]}
        print_report(self.json, {**counts, **about})


@dataclass(frozen=True)
class Verify(Ranged, SharedWork):
    """Compare all images, latents, prompts and captions with what was written, and name the files that differ."""

    folder: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder that data prepare or data encode wrote."""
    nproc: Nproc = 1
    json: AsJson = False

    def run(self) -> None:
        progress, over = reporter(), mapper(torch.device("cpu"))
        with closing(progress):
            images = verify(self.folder, over, data_progress(progress))
            if has_prompts(self.folder):
                verify(self.folder / PROMPTS, over, data_progress(progress))
                verify_captions(self.folder)
        print_report(self.json, {"images": images, "damaged shards": 0})


@dataclass(frozen=True, kw_only=True)
class CheckCodec(_Images):
    """Check a codec: the root mean square of latents, about 1, and the PSNR of images after encoding and decoding."""

    folder: Annotated[Positional[Path], arg(metavar="CODEC")]
    """Folder of the codec, as save_pretrained of diffusers writes it, such as the vae of a pipeline."""
    source: Annotated[str, arg(name="data")]
    """Images, as --data.source takes them."""
    num: Images = 256
    """Number of training images to encode."""
    device: Device = None
    json: AsJson = False

    def perform(self) -> None:
        images = load_images(
            self.source, split="train", size=self.size, channels=self.channels, progress=data_progress(reporter())
        )
        codec, count = read_codec(self.folder, pick_device(self.device)), min(self.num, len(images))
        shape, size = codec.latent_shape(images.shape), size_of_latents(codec, images, count)
        about = {"images": count, "latents": "x".join(map(str, shape)), "codec": codec.fingerprint[:12]}
        print_report(self.json, {**about, "size": size, "psnr": round_trip_nearness(codec, images, count).value})
        if not LOW <= size <= HIGH:
            raise ValueError(
                f"latents have the size {size:.3g} (root of the mean square), expected {LOW} to {HIGH}: compare the "
                "codec's config (scaling_factor, shift_factor, latents_mean, latents_std) with its author's"
            )


def size_of_latents(codec: Codec, images: ImageSet, count: int) -> float:
    """Root of the mean square of `count` normalised latents, drawn as in training: the noise schedule assumes 1."""
    total, rows = 0.0, torch.linspace(0, len(images) - 1, count).long()
    for part in rows.split(AT_A_TIME):
        moments = codec.encode(to_float(images.images[part.numpy()]).to(codec.device))
        normal = Draws(0, part.to(codec.device)).normal("latent", *moments.mean.shape[1:])
        total += moments.sample(normal).double().square().mean().item() * len(part) / count
    return math.sqrt(total)
