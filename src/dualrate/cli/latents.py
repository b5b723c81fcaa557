"""`dualrate encode` and `dualrate decode`: one's own pictures as latents of a run's codec, and back."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import drawing, print_report, reporter
from dualrate.cli.options import AsJson, AtATime, Device
from dualrate.config.imports import import_named
from dualrate.config.ranges import Ranged, Seed, Side, Steps
from dualrate.machine.device import pick_device
from dualrate.sampling.catalogue import at_gamma, sampler_named

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
        from dualrate.codecs.config import read_codec
        from dualrate.data.every import every_image
        from dualrate.data.untrusted import resolved
        from dualrate.measuring.latent_files import encode_images
        from dualrate.measuring.sample_files import GRID_PNG
        from dualrate.measuring.sample_record import grids_below

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
        from dualrate.codecs.config import read_codec
        from dualrate.measuring.latent_files import Latents, decode_latents

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
