"""Check a codec (codec check): size of its latents, PSNR, drift and range of what it decodes. Exit 1: a problem."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.options import AsJson, Device, parse
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
        from dualrate.cli.console import decoding, reporter
        from dualrate.codecs.config import read_codec
        from dualrate.data.images import load_images
        from dualrate.doctor.codec import check_codec

        progress = reporter()
        how = {"size": self.size, "channels": self.channels, "progress": decoding(progress)}
        images = load_images(self.source, split="train", **how)
        codec, findings = read_codec(self.folder, pick_device(self.device)), []
        for finding in check_codec(codec, images, self.num):
            findings.append(finding)
            if not self.json:
                remedy = f" -> {finding.remedy}" if finding.remedy else ""
                print(f"{finding.level:7}  {finding.what}{remedy}", flush=True)
        problems = sum(finding.level == "problem" for finding in findings)
        if self.json:
            print(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}))
        if problems:
            raise SystemExit(1)


def parse_codec(arguments: list[str]) -> CodecCheck:
    """The options of `dualrate codec check`. Raises what `parse` raises."""
    if arguments[:1] == ["check"]:
        return parse(CodecCheck, arguments[1:], "dualrate codec check")
    asked = arguments[:1] in ([], ["-h"], ["--help"], ["--help-all"])
    lines = [] if asked else [f"dualrate codec: there is no {arguments[0]!r}"]
    lines.append(f"dualrate codec check: {(CodecCheck.__doc__ or '').splitlines()[0]}")
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)
