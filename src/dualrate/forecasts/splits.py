"""Splits of a source of fields: those that it names; else the last tenth of its trajectories is the test split, or of a
single one the last tenth of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dualrate.data.source import Split, split_named, test_split
from dualrate.forecasts.trajectories import EXPECTED, FieldSource, Lazy, Timing, Trajectory, timing_of


def pieces_of(trajectory: Trajectory) -> list[tuple[int, int]]:
    """First frame and end of each piece between gaps in time."""
    return list(pairwise((0, *timing_of(trajectory).breaks, trajectory.shape[0])))


def divided(
    source: str, fields: FieldSource, split: Split, least: int = 2
) -> tuple[Sequence[Trajectory] | None, Sequence[Trajectory], tuple[int, int]]:
    """The training trajectories or None; those of the split; the trajectory and frame in the source of their first.

    least: frames that are held out of a single trajectory, at least
    """
    splits = {split_named(name): part for name, part in fields.splits.items()}
    if len(splits) < len(fields.splits):
        raise ValueError(f"{source} names a split twice ({', '.join(fields.splits)}): keep one name of each")
    test = test_split(splits)
    if test:
        chosen = splits.get("train" if split == "train" else test)
        if chosen is None:
            raise ValueError(f"{source} holds only the split {test}: name training fields, or rename what is no split")
        return splits.get("train"), chosen, (0, 0)
    every = splits["train"] if "train" in splits else next(iter(splits.values()))
    if len(every) > 1:
        count = max(1, len(every) // 10)
        train, rest, place = every[:-count], every[-count:], (len(every) - count, 0)
    else:
        frames = every[0].shape[0]
        count = max(least, frames // 10)
        if frames < count + least:
            raise ValueError(
                f"{source} holds one trajectory, of length {frames}; expected {2 * least} or more, of which the "
                f"last {'tenth is' if least == 2 else f'{count} are'} held out"
            )
        train, rest = [part_of(every[0], 0, frames - count)], [part_of(every[0], frames - count, frames)]
        place = (0, frames - count)
    return (train, train, (0, 0)) if split == "train" else (train, rest, place)


def part_of(whole: Trajectory, first: int, last: int) -> Trajectory:
    """The frames from `first` to before `last`, with their times."""
    if not isinstance(whole, Lazy):
        return whole[first:last]
    timing = whole.timing
    breaks = tuple(at - first for at in timing.breaks if first < at < last)
    timing = Timing(breaks=breaks, steps=timing.steps[first : max(first, last - 1)], times=timing.times[first:last])
    return Lazy((last - first, *whole.shape[1:]), lambda i, j: whole[first + i : first + j], timing)  # pyright: ignore[reportArgumentType]


def check_frames(source: str, trajectories: Sequence[Trajectory], variables: tuple[str, ...]) -> None:
    """Raises ValueError unless there are trajectories of frames of one shape."""
    if not trajectories:
        raise ValueError(f"{source} holds no trajectories; expected {EXPECTED}")
    expected = (len(variables), *trajectories[0].shape[2:])
    for i, trajectory in enumerate(trajectories):
        if trajectory.shape[0] < 2 or trajectory.shape[1:] != expected or 0 in expected:
            raise ValueError(
                f"{source}: trajectory {i} is (time, channel, y, x) = {trajectory.shape}; expected two frames or more, "
                f"each {expected}, as its variables ({len(variables)}) and trajectory 0 say"
            )
