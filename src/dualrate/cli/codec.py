"""Check a codec (codec check): size of its latents, PSNR, drift and range of what it decodes. Exit 1: a problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.options import AsJson, Device, parse_one_of
from dualrate.config.ranges import Images, Ranged, Side
from dualrate.machine.device import pick_device


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
        from dualrate.codecs.config import read_codec
        from dualrate.data.images import load_images
        from dualrate.doctor.codec import check_codec

        progress = reporter()
        how = {"size": self.size, "channels": self.channels, "progress": decoding(progress)}
        images = load_images(self.source, split="train", **how)
        codec = read_codec(self.folder, pick_device(self.device))
        print_findings(self.json, check_codec(codec, images, self.num))


def parse_codec(arguments: list[str]) -> CodecCheck:
    """The options of `dualrate codec check`. Raises what `parse_one_of` raises."""
    return parse_one_of("codec", {"check": CodecCheck}, arguments)
