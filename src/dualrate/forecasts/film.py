"""Pictures of a forecast of clips: what is known, then the truth and members side by side, still and in motion.

forecast.png    a contact sheet: a row each of the truth and some members, by name, frames from left to right; a blue
                line is between those that were given and those that were made
forecast.webp   the same in motion; below what was made a bar grows
forecast.mp4    as that, where PyAV is
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dualrate.report.image_grid import GAP as BETWEEN
from dualrate.report.image_grid import image_grid, png_bytes
from dualrate.system.files import whole

COLUMNS = 12  # frames of a contact sheet
MOVING = 200  # frames in motion, at most
SIDE, GAP, BAR = 128, 4, 4  # pixels that a frame has in motion, about; between frames; of the bar
UNKNOWN, GROUND, BORDER, BLUE = 217, 255, 160, (36, 99, 235)
LEAST = 48  # pixels that a frame of a contact sheet is high, at least, beside its name
USUAL = 0.1  # seconds from frame to frame, where the data does not say it
SLOWEST = 10.0  # seconds that a frame is shown, at most, however far apart they are
Pixels, Frames = NDArray[np.uint8], NDArray[np.floating]


def pixels_of(frames: Frames) -> Pixels:
    """Frames from 0 to 255 as bytes, rounded; what lies outside is brought in, what is no number is UNKNOWN."""
    return np.where(np.isfinite(frames), frames, UNKNOWN).clip(0, 255).round().astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Film:
    """Frames of one start. panels: the truth, if it is known, and members, (T, C, H, W) each, by name

    past: how many of their first frames were given; seconds: from frame to frame
    """

    panels: dict[str, Pixels]
    past: int
    seconds: float = USUAL

    @staticmethod
    def of(past: Frames, members: Frames, truth: Frames | None, seconds: float | None) -> Film:
        """The film of past (P, C, H, W), members (M, T, C, H, W) and what came of it, (at most T, C, H, W)."""
        panels: dict[str, Frames] = {f"member {i}": member for i, member in enumerate(members)}
        if truth is not None:
            panels = {"truth": np.full_like(members[0], np.nan)} | panels
            panels["truth"][: len(truth)] = truth[: members.shape[1]]
        films = {name: pixels_of(np.concatenate([past, each])) for name, each in panels.items()}
        return Film(films, len(past), min(seconds or USUAL, SLOWEST))

    @property
    def names(self) -> str:
        return ", ".join(self.panels)

    def sheet(self) -> bytes:
        """The contact sheet, as PNG."""
        length = len(next(iter(self.panels.values())))
        some = np.unique(np.linspace(0, length - 1, min(COLUMNS, length)).round().astype(int))
        frames = np.concatenate([np.broadcast_to(p, (len(p), 3, *p.shape[2:]))[some] for p in self.panels.values()])
        scale = math.ceil(LEAST / frames.shape[2])
        larger, around = frames.repeat(scale, 2).repeat(scale, 3), ((0, 0), (0, 0), (1, 1), (1, 1))
        tiles = np.pad(larger, around, constant_values=BORDER)
        height, width = (side + BETWEEN for side in tiles.shape[2:])
        font, grid = ImageFont.load_default(), image_grid(tiles, columns=len(some))
        left = math.ceil(max(font.getlength(name) for name in self.panels)) + 2 * GAP
        page = Image.new("RGB", (left + grid.shape[1], grid.shape[0]), "white")
        page.paste(Image.fromarray(grid), (left, 0))
        pen, past = ImageDraw.Draw(page), int((some < self.past).sum())
        for i, name in enumerate(self.panels):
            pen.text((GAP, i * height + height // 2 - 6), name, "black", font)
        if past < len(some):
            pen.rectangle((left + past * width - BETWEEN, 0, left + past * width - 1, page.height), BLUE)
        return png_bytes(np.asarray(page).transpose(2, 0, 1))

    def moving(self) -> Pixels:
        """Frames (T, H, W, 3) with all panels side by side, of even sides, as videos want."""
        panels = [np.broadcast_to(p, (len(p), 3, *p.shape[2:])) for p in self.panels.values()]
        scale = max(1, round(SIDE / panels[0].shape[2]))
        parts = [panel[:MOVING].repeat(scale, 2).repeat(scale, 3).transpose(0, 2, 3, 1) for panel in panels]
        count, height, width, _ = parts[0].shape
        whole_width = len(parts) * (width + GAP) - GAP
        shape = count, height + 2 * BAR + height % 2, whole_width + whole_width % 2, 3
        frames = np.full(shape, GROUND, np.uint8)
        for i, part in enumerate(parts):
            left = i * (width + GAP)
            frames[:, :height, left : left + width] = part
            for k in range(self.past, count):
                length = max(1, width * (k + 1 - self.past) // (count - self.past))
                frames[k, height + BAR : height + 2 * BAR, left : left + length] = BLUE
        return frames

    def animation(self) -> bytes:
        """The panels in motion, as an animated WEBP."""
        first, *rest = map(Image.fromarray, self.moving())
        content, duration = io.BytesIO(), max(20, round(1000 * self.seconds))
        first.save(content, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=85, method=2)
        return content.getvalue()

    def html(self) -> str:
        """Both, for a page."""
        kinds = {"webp": self.animation(), "png": self.sheet()}
        each = [f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}" for kind, data in kinds.items()]
        return "".join(f'<p><img src="{data}" style="max-width:100%" alt="{self.names}"></p>' for data in each)


def write_video(frames: Pixels, rate: float, path: Path) -> bool:
    """Write frames (T, H, W, 3) as MP4, H.264 where FFmpeg can, whole or not at all; whether PyAV is there to do so."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return False
    with whole(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return True
