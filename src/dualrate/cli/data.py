"""Prepare images for training at scale: packed shards (data prepare), latents (data encode), checked (data verify)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from dualrate.cli.console import drawing, print_report, reporter
from dualrate.cli.options import AsJson, AtATime, Device, parse_one_of
from dualrate.config.ranges import Range, Ranged, Side, WorkerCount
from dualrate.data.source import NOTED, DataProgress
from dualrate.machine.device import pick_device
from dualrate.machine.progress import Reporter

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
        from dualrate.machine.workers import mapper

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
        from dualrate.codecs.config import CodecFolder
        from dualrate.data.encode import ENCODING, encode
        from dualrate.machine.workers import mapper

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
        from dualrate.data.shards import verify
        from dualrate.machine.workers import mapper

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
