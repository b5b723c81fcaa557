"""Clips as people have them, as trajectories of frames (time, channel, y, x) from 0 to 255.

    clips:PLACE     a clip, or a folder with clips at any depth: a GIF; an animated WEBP; a video, by PyAV (the extra
                    `video`); a folder of pictures, in the order of the numbers in their names. Folders at the top that
                    are named after splits are these

Frames are cropped, resized and turned into colours or grey as images are (data/decode.py). With a rate of r frames a
second, frame k is the one that is shown k / r seconds after the first. Each clip is decoded once, and kept in the cache
as bytes, of which only the frames that are asked for are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dualrate.data.cache import cache_dir
from dualrate.data.decode import MAX_PIXELS, OnBad, Options, frames_of, image_of, resize
from dualrate.data.folders import by_number, check_splits_alone, endings_of, folders_below
from dualrate.data.source import (
    SUFFIXES,
    DataProgress,
    counted,
    hidden,
    printable,
    reading,
    silent,
    skipped_files,
    split_named,
)
from dualrate.forecasts.metadata import Description, Metadata
from dualrate.forecasts.trajectories import FieldSource, Lazy, Trajectory, common_step
from dualrate.system.files import ABSENT, check_regular, naming, read_json, shown, whole, write_whole
from dualrate.system.folders import some_of

DATES = 10_000_000  # numbers from here on may be such as 20200131
CLIPS = "clips:"  # begins a source of them
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
FORMATS = "mov,matroska,avi"  # of FFmpeg, of these
EXTRA = 'pip install "dualrate[video]"'
LEVELS = Metadata(variables=(Description(units="levels of 255"),) * 3, time="seconds")  # of clips in colours
COLOURS, GREY = ("red", "green", "blue"), ("grey",)
LONGEST = 1_000_000  # frames of a clip
WHOLE = 0.9  # share of the frames that a video says it has; some are not shown
SOON = 1e-6  # seconds that a time may be early, rounded
Pixels = NDArray[np.uint8]
Timed = Iterator[tuple[Pixels, float | None]]  # frames (C, H, W), and the second at which each begins, if it is known


@dataclass(frozen=True)
class ClipReading:
    """How clips are read. size, channels, on_bad: as of images, three channels by default

    rate:  frames a second; None: each frame
    least: frames that a clip has, at least
    """

    size: int | None = None
    channels: Literal[1, 3] = 3
    on_bad: OnBad = "fail"
    rate: float | None = None
    least: int = 2

    @staticmethod
    def of(data: Any, least: int) -> ClipReading:
        """The same as the data of a run say. data: a `DataConfig`"""
        return ClipReading(data.size, data.channels or 3, data.on_bad, data.fps, least)


def holds_clip(path: Path) -> bool:
    """Whether a file is a clip by itself: a video by its name, a GIF or WEBP by whether it moves."""
    ending = path.suffix.lower()
    if ending == ".gif" and path.is_file():
        with suppress(OSError, ValueError):  # a damaged one is named where it is read
            return len(list(islice(frames_of(path), 2))) > 1
    if ending == ".webp" and path.is_file():
        with path.open("rb") as file:
            begins = file.read(21)
        return begins[12:16] == b"VP8X" and any(each & 2 for each in begins[20:])
    return ending in (*VIDEOS, ".gif")


def find_clips(place: Path) -> tuple[list[Path], str]:
    """Clips in a place, in the order of the numbers in their names, and what is left out, in words.

    Raises ValueError where there are none.
    """
    if place.is_file() and place.suffix.lower() in (*SUFFIXES, *VIDEOS, ""):
        return [place], ""
    clips, beside, gaps, strange = [], [], [], [place] * place.is_file()
    for folder, files in folders_below(place) if place.is_dir() else ():
        moving, pictures, rest = kinds = [], [], []
        for file in files:
            kinds[0 if holds_clip(file) else 1 if file.suffix.lower() in SUFFIXES else 2].append(file)
        clips += moving or [folder] * bool(pictures)
        beside += pictures * bool(moving)
        gaps += [f"{folder.name} after {last:.15g}" for last in missing_after([] if moving else pictures)[:1]]
        strange += rest
    if not clips:
        raise ValueError(
            f"{place} holds no clips: expected GIF, animated WEBP, {', '.join(VIDEOS)}, or folders of pictures "
            f"({', '.join(SUFFIXES)}); there are {counted(endings_of(strange)) or 'no files at all'}"
        )
    order = by_number([clip.relative_to(place).as_posix() for clip in clips])
    notes = [f"pictures beside clips are left out: {some_of([file.name for file in beside])}"] * bool(beside)
    notes += [f"the numbers of pictures jump, and clips go on there: {some_of(gaps)}"] * bool(gaps)
    notes += [skipped_files(endings_of(strange), "clips")] * bool(strange)
    return [clips[i] for i in order], "; ".join(notes)


def missing_after(pictures: Sequence[Path]) -> list[float]:
    """The last numbers in names that the next one does not follow; none where most are not evenly spaced, or dates."""
    numbers = np.unique([float(each[-1]) for file in pictures if (each := re.findall("[0-9]+", file.stem))])
    steps = np.diff(numbers)
    even = len(numbers) == len(pictures) > 2 and np.median(steps) == steps.min() and numbers[-1] < DATES
    return numbers[:-1][steps > steps.min()].tolist() if even else []


def read_clips(place: Path, how: ClipReading, progress: DataProgress = silent) -> FieldSource:
    """All clips of a place, decoded where the cache does not have them.

    Raises ValueError for one that is too short, of another size or broken, unless these are skipped and named in the
    note; FileNotFoundError where there is no such place, ModuleNotFoundError that names the extra.
    """
    if not place.exists():
        raise FileNotFoundError(f"there are no clips {place}: name a file or folder of them")
    clips, note = find_clips(place)
    tops = [clip.relative_to(place).parts[:1] for clip in clips]
    check_splits_alone(place, dict.fromkeys("".join(top) or "pictures" for top in tops))
    named = place.is_dir() and all(len(top) == 1 and split_named(top[0]) for top in tops)
    splits: dict[str, list[Trajectory]] = {}
    steps: list[float | None] = []
    skipped: list[str] = []
    uneven = False
    first: tuple[Path, tuple[int, ...]] | None = None
    for i, (clip, top) in enumerate(zip(clips, tops, strict=True)):
        progress(i, len(clips), "reading clips")
        try:
            frames, step = _cached(clip, how)
            if frames.shape[0] < how.least:
                raise ValueError(
                    f"{clip} has {frames.shape[0]} frame(s), expected {how.least} or more: give longer clips, fewer "
                    "frames (--past, --frames, --lead) or, where the clip lasts, more of them a second (--data.fps)"
                )
            first = first or (clip, frames.shape[1:])
            if frames.shape[1:] != first[1]:
                (_, *size), (_, *usual) = frames.shape[1:], first[1]
                raise ValueError(
                    f"{clip} has frames of {size[1]} x {size[0]} pixels, and {first[0]} of {usual[1]} x {usual[0]}: "
                    "bring all to one size by --data.size"
                )
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in ABSENT:
                raise
            if how.on_bad == "fail":
                raise ValueError(f"{error}; or leave such clips out by --data.on-bad skip") from error
            skipped.append(f"{printable(clip.name)} ({shown(error)})")
            continue
        above = clip.relative_to(place).parts[named:-1]
        splits.setdefault(top[0] if named else "", []).append(replace(frames, label="".join(above[:1])))
        steps.append(step)
        uneven = uneven or (step is None and clip.is_file() and frames.shape[0] > 1)
    if not splits:
        raise ValueError(f"{place} holds no clip that can be used, skipped: {some_of(skipped)}")
    step = common_step(steps)
    if step is None and (uneven or len({*steps}) > 1):
        rates = [1 / each for each in steps if each]
        kinds = "a rate that changes"
        if not uneven:
            ends = " to ".join(f"{rate:.3g}" for rate in sorted({min(rates), max(rates)}))
            kinds = f"other frame rates ({ends}{', and none' * (None in steps)})"
        note += "; " * bool(note) + f"clips of {kinds} are read frame by frame: --data.fps brings them to one"
    if skipped:
        note += "; " * bool(note) + f"skipped {len(skipped)} of {len(clips)} clips: {some_of(skipped)}"
    colours = COLOURS if how.channels == 3 else GREY
    metadata = replace(LEVELS, variables=LEVELS.variables[: how.channels])
    return FieldSource(splits, colours, step, note=note, metadata=metadata)


def _cached(clip: Path, how: ClipReading) -> tuple[Lazy, float | None]:
    """The frames of a clip, from the cache where they are there, and the seconds between them. Raises as `decode`."""
    files = _pictures(clip) if clip.is_dir() else [clip]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_as = json.dumps([1, stats, how.size, how.channels, how.rate])
    array = cache_dir() / "clips" / f"{hashlib.sha256(made_as.encode()).hexdigest()[:32]}.npy"
    record = array.with_suffix(".json")
    if not (record.is_file() and array.is_file()):
        array.parent.mkdir(parents=True, exist_ok=True)
        with whole(array) as aside:
            content = _write(clip, aside, _timed(clip, files, how), how.rate)
        write_whole(record, json.dumps(content))
    content = read_json(record)

    def read(start: int, end: int) -> Pixels:
        return np.array(np.load(array, mmap_mode="r", allow_pickle=False)[start:end])

    with reading(record, "a clip that was kept; delete it and run again"):
        count, *frame = content["shape"]
        return Lazy((count, *frame), read, source=array), content["step"]  # pyright: ignore[reportArgumentType]


def _write(clip: Path, path: Path, frames: Timed, rate: float | None) -> dict[str, Any]:
    """Write frames to a .npy file as they come; its shape, and the seconds between frames if they are even.

    Raises ValueError for a clip of no frames, and for one of more than LONGEST at this rate.
    """
    times: list[float | None] = []
    shape: tuple[int, ...] | None = None
    header = {"descr": "|u1", "fortran_order": False}
    with path.open("wb") as file:
        for pixels, begins in frames if rate is None else _at(rate, frames):
            if len(times) == LONGEST and rate is not None:
                raise ValueError(
                    f"{clip} has more than {LONGEST:,} frames, at {rate:g} a second: cut it there, or take fewer of "
                    "them (--data.fps)"
                )
            if shape is None:
                shape = pixels.shape
                np.lib.format.write_array_header_1_0(file, header | {"shape": (0, *shape)})
            file.write(pixels.tobytes())
            times.append(begins)
        if shape is None:
            raise ValueError(f"{clip} has no frames")
        file.seek(0)  # the header has room for the digits of the first axis
        np.lib.format.write_array_header_1_0(file, header | {"shape": (len(times), *shape)})
    if rate is not None:
        return {"shape": (len(times), *shape), "step": 1 / rate}
    steps = np.diff([time for time in times if time is not None])
    even = len(steps) > 0 and np.ptp(steps) <= 0.1 * steps.mean()
    return {"shape": (len(times), *shape), "step": float(steps.mean()) if even else None}


def _at(rate: float, frames: Timed) -> Timed:
    """The frames that are shown at 0, 1 / rate, 2 / rate ... seconds; of frames without times all."""
    count, last, begun = 0, None, 0.0
    for pixels, begins in frames:
        if begins is None:
            yield pixels, None
            continue
        while last is not None and count / rate < begins - SOON:
            yield last, count / rate
            count += 1
        last, begun = pixels, begins
    if last is not None and count / rate <= begun + SOON:
        yield last, count / rate


def _timed(clip: Path, files: Sequence[Path], how: ClipReading) -> Timed:
    """All frames of a clip. Raises ValueError for one that cannot be decoded, or is too long."""
    kind = _pictured if clip.is_dir() else _video if clip.suffix.lower() in VIDEOS else _animated
    count, first = 0, None
    for pixels, begins in kind(clip, files, how):
        first, count = first or pixels.shape, count + 1
        if pixels.shape != first or count > LONGEST:
            limit = f"more than {LONGEST:,} frames" if count > LONGEST else f"another size from its frame {count} on"
            raise ValueError(f"{clip} has {limit}: cut it there, or bring frames to one size by --data.size")
        yield pixels, begins


def _pictures(folder: Path) -> list[Path]:
    files = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and not hidden(each.name)]
    return [files[i] for i in by_number([file.name for file in files])]


def _pictured(clip: Path, files: Sequence[Path], how: ClipReading) -> Timed:
    return ((image_of(str(file), file, Options(how.size, how.channels, "fail")), None) for file in files)


def _animated(clip: Path, files: Sequence[Path], how: ClipReading) -> Timed:
    begins = 0.0
    for pixels, lasts in frames_of(clip, size=how.size, channels=how.channels):
        yield pixels, begins
        begins += lasts


def upright(pixels: Pixels, matrix: NDArray[np.int32]) -> Pixels:
    """Pixels (H, W, C) turned and mirrored by quarters, as a display matrix says: x to (a, b) and y to (c, d)."""
    a, b, _, c, d = matrix[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _video(clip: Path, files: Sequence[Path], how: ClipReading) -> Timed:
    """Frames of a video, upright, of the formats above whatever it is called; no other file or address is opened."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{clip} is a video, which PyAV reads ({error}): {EXTRA}, or save its frames as pictures in a folder"
        ) from error
    with naming(clip):
        check_regular(clip)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "err_detect": "explode"}
    try:
        with av.open(str(clip), options=options) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise ValueError(f"{stream.width} x {stream.height} pixels, more than the {MAX_PIXELS:,} accepted")
            start, begins, count = None, None, 0
            for frame in container.decode(stream):
                count += 1
                if frame.is_corrupt:
                    raise ValueError(f"its frame at {frame.time} s is damaged")
                start = frame.time if start is None else start
                pixels = frame.to_ndarray(format="rgb24")
                if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
                    pixels = upright(pixels, np.frombuffer(matrix, np.int32))
                pixels = pixels.transpose(2, 0, 1)
                begins = None if frame.time is None or start is None else frame.time - start
                yield resize(np.ascontiguousarray(pixels), size=how.size, channels=how.channels), begins
            alone, lasts = len(container.streams) == 1, (container.duration or 0) / av.time_base
            early = begins is not None and (start or 0) + begins < lasts / 2
            # the latter tells of a stream that does not say how many frames it has
            if count < WHOLE * stream.frames or (alone and early and not stream.frames):
                raise ValueError(f"it ends after {count} frame(s), before it says so")
    except (av.FFmpegError, ValueError, IndexError) as error:
        problem = getattr(error, "strerror", None) or shown(error)
        raise ValueError(f"{clip}: cannot be decoded as MP4, WebM, MKV or AVI ({problem})") from error
