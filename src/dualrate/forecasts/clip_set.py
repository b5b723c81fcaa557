"""Clips packed as images are: `dualrate data prepare` with --frames writes windows of T frames as rows (T C, H, W).

Windows of a clip begin `stride` frames apart, by default so that none overlap, and their frames are `lead` apart. The
folders that clips are in are classes, as those of images are, unless there is but one. Of classes the last tenth of the
clips of each is held out, else as `splits.divided` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dualrate.config.ranges import Range, Ranged, as_path
from dualrate.data import cache as packed
from dualrate.data.cache import PREPARED, SHARD_BYTES
from dualrate.data.decode import OnBad, resize
from dualrate.data.finding import check_outside
from dualrate.data.images import PREPARING, finish_images
from dualrate.data.source import SPLITS, DataProgress, Item, Listed, Raw, Split, silent
from dualrate.forecasts.clips import CLIPS, LEVELS, ClipReading
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.sources import find_fields
from dualrate.forecasts.splits import divided
from dualrate.forecasts.trajectories import Lazy, Trajectory
from dualrate.system.files import read_json
from dualrate.system.workers import in_turn

FEW = 100  # windows


@dataclass(frozen=True)
class Cut(Ranged):
    """How clips are cut into windows: of so many frames, each `lead` after the one before."""

    frames: Annotated[int, Range(2, 256)]
    lead: Annotated[int, Range(1, 100_000)] = 1
    stride: Annotated[int, Range(1, 10_000_000)] | None = None

    @property
    def span(self) -> int:
        """Frames of the clip from the first of a window to its last."""
        return (self.frames - 1) * self.lead + 1

    def starts(self, clip: Trajectory) -> range:
        return range(0, clip.shape[0] - self.span + 1, self.stride or self.span)


@dataclass(frozen=True, eq=False)
class ClipWindows:
    """Windows of clips, which are read when they are asked for. places: a clip and the first frame of each

    size, channels: that frames are brought to
    """

    clips: Sequence[Trajectory]
    places: Sequence[tuple[int, int]]
    cut: Cut
    size: int
    channels: int

    def __iter__(self) -> Iterator[Item]:
        return ((f"clip {clip}, frame {first}", self.window(clip, first)) for clip, first in self.places)

    def __getitem__(self, part: slice, /) -> ClipWindows:
        return ClipWindows(self.clips, self.places[part], self.cut, self.size, self.channels)

    def window(self, clip: int, first: int) -> NDArray[np.uint8]:
        """(T C, H, W)"""
        frames = self.clips[clip][first : first + self.cut.span][:: self.cut.lead]
        return np.concatenate([resize(frame, size=self.size, channels=self.channels) for frame in frames])


def prepare_clips(
    source: str,
    folder: str | Path,
    cut: Cut,
    *,
    size: int,
    fps: float | None = None,
    channels: Literal[1, 3] | None = None,
    on_bad: OnBad = "fail",
    shard_bytes: int = SHARD_BYTES,
    progress: DataProgress = silent,
) -> dict[str, Any]:
    """Both splits of clips as windows in `folder`, made if it is missing; or what is left to do.

    source: a file or folder of clips, with or without "clips:", or moving-sprites
    Returns what dataset.json holds. Raises ValueError as reading clips and as `prepare` of images.
    """
    folder, name = as_path(folder), source if source in SIMULATIONS else CLIPS + source.removeprefix(CLIPS)
    check_outside(folder, "" if source in SIMULATIONS else source.removeprefix(CLIPS))
    how = ClipReading(size, channels or 3, on_bad, fps, cut.span)
    if source in SIMULATIONS and set(SIMULATIONS[source][0].metadata.variables) != set(LEVELS.variables):
        raise ValueError(f"{source} makes fields, which are no clips: name clips, or moving-sprites; or drop --frames")
    title, fields = find_fields(name, progress, clips=how)
    if fields.note:
        progress(1, 1, fields.note)
    clips = {split: _clips_of(name, fields, split, cut.span) for split in SPLITS}
    labels = {split: [each.label if isinstance(each, Lazy) else "" for each in part] for split, part in clips.items()}
    words = {word for part in labels.values() for word in part}
    if len(words) > 1 and "" in words:
        some = ", ".join(sorted(words - {""})[:5])
        raise ValueError(f"{source} has clips in folders ({some}) and others beside them: put each in one, or none")
    listed = {split: _listed(clips[split], labels[split] if len(words) > 1 else None, cut, how) for split in SPLITS}
    if (count := listed["train"].count) < FEW and cut.stride is None:
        progress(count, count, "few windows to train on, of which --stride 1 takes one from each frame on")
    raws: dict[Split, tuple[str, Raw]] = {
        split: (f"{title}/{split}", listed[split].raw(listed["train"], f"{title}/{split}", None)) for split in SPLITS
    }
    shape = cut.frames * how.channels, size, size
    shapes = [(part, [clip.shape for clip in clips[split]]) for split, part in labels.items()]
    content = hashlib.sha256(repr(shapes).encode())
    for clip in (clip for part in clips.values() for clip in part):
        for first in range(0, clip.shape[0], 256):
            content.update(np.ascontiguousarray(clip[first : first + 256]).tobytes())
    about = {"frames": cut.frames, "lead": cut.lead, "stride": cut.stride or cut.span, "fps": fps}
    plan = {"format": packed.FORMAT, "source": source, "size": size, "channels": how.channels, "on_bad": on_bad}
    plan |= {"label": None, "shard_bytes": shard_bytes, "content": content.hexdigest(), **about}
    with packed.begun(folder, PREPARED, plan) as unfinished:
        if unfinished:
            row = {"shape": list(shape), "dtype": "uint8", "each": 1}
            job, packing = partial(_write, folder), {"shard_bytes": shard_bytes, "mapper": in_turn}
            splits = packed.pack(folder, raws, job, row, **packing, progress=progress, what=PREPARING)
            finish_images(folder, raws, row, splits, size=size, channels=shape[0], **about)
    return read_json(folder / packed.DATASET)


def _clips_of(source: str, fields: Any, split: Split, least: int) -> Sequence[Trajectory]:
    """The clips of a split; of classes, without a test split, a tenth of each is held out, the last."""
    every = fields.trajectories
    classes = list(dict.fromkeys(getattr(clip, "label", "") for clip in every))
    if len(classes) < 2 or len(fields.splits) > 1:
        return divided(source, fields, split, least)[1]
    chosen: list[Trajectory] = []
    for name in classes:
        part = [clip for clip in every if clip.label == name]
        count = max(1, len(part) // 10) if len(part) > 1 else 0
        chosen += part[len(part) - count :] if split == "test" else part[: len(part) - count]
    return chosen


def _listed(clips: Sequence[Trajectory], labels: Sequence[str] | None, cut: Cut, how: ClipReading) -> Listed:
    places = [(i, first) for i, clip in enumerate(clips) for first in cut.starts(clip)]
    words = None if labels is None else [labels[i] for i, _ in places]
    return Listed(ClipWindows(clips, places, cut, how.size or 0, how.channels), len(places), words)


def _write(folder: Path, shard: packed.Shard) -> None:
    packed.write_shard(folder, shard, enumerate(np.asarray(content) for _, content in shard.items), {"rejects": []})
