"""Fields in several files: pieces of time of the same variables, other variables at the same times, or members.

Files of the same variables are joined in time, in the order of their times, which may have no gap between files; with
the same times, or of forecasts, each is a trajectory. What they make is then joined variable by variable.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.forecasts.metadata import Coordinate, Metadata
from dualrate.forecasts.trajectories import FieldSource, Lazy, Trajectory, common_step, timed, timing_of
from dualrate.system.folders import some_of

Named = tuple[Path, FieldSource]
NOTES = 3  # of files, at most


def joined(files: Sequence[Named]) -> Named:
    """The fields of files in one source, under the path of one of them.

    Raises ValueError for files that do not fit together, and says which.
    """
    groups: dict[tuple[str, ...], list[Named]] = {}
    for path, fields in files:
        names = next((each for each in groups if {*each} == {*fields.variables}), fields.variables)
        groups.setdefault(names, []).append((path, fields.picked(names)))
    return channels_of_all([_in_time(group) for group in groups.values()])


def _check_same_kind(first: Named, other: Named, *, splits: bool = False, apart: bool = False) -> None:
    """Raises ValueError for other places; of one split for another number of trajectories, unless they stay apart, else
    for other variables."""
    (path, fields), (other_path, other_fields) = first, other
    clocks = [_clock(each) for each in (fields, other_fields)]
    counts = [0 if splits or apart else len(each.trajectories) for each in (fields, other_fields)]
    pairs = [
        (f"the {what} {mine}", str(theirs))
        for what, mine, theirs in (
            ("axes of space", fields.axes, other_fields.axes),
            ("points", fields.space, other_fields.space),
            ("variables", *[each.variables if splits else () for each in (fields, other_fields)]),
            ("times as", *(("", "") if splits or "" in clocks else clocks)),
            ("number of trajectories", *counts),
        )
        if mine != theirs
    ]
    names = fields.variables if fields.variables == other_fields.variables else ()
    for mine, theirs in (*pairs, *fields.metadata.differences(other_fields.metadata, names)):
        raise ValueError(f"{path} has {mine}, and {other_path} has {theirs}: bring them to one, or name those that fit")


def fullest(files: Sequence[Named], names: Sequence[str], **how: bool) -> tuple[Metadata, str]:
    """The metadata of the file that says most, and the notes of all files, with one on those that say less.

    names: variables that all have; how: each file is compared with it, as of `_check_same_kind`
    Raises ValueError for files that do not fit together.
    """
    path, fields = max(files, key=lambda each: each[1].metadata.said)
    for file in files:
        _check_same_kind((path, fields), file, **how)
    less = ["/".join(each.parts[-2:]) for each, other in files if other.metadata.unsaid(fields.metadata, names)]
    most = "/".join(path.parts[-2:])
    notes = [f"{some_of(less)} without units or coordinates that {most} says, which are taken"] * bool(less)
    return fields.metadata, "; ".join([*dict.fromkeys(each.note for _, each in files if each.note)][:NOTES] + notes)


def _without(fields: FieldSource, coordinates: Collection[Coordinate]) -> FieldSource:
    """The fields without coordinates that hold for some of all files alone, such as the height of a variable."""
    those = tuple(each for each in fields.metadata.coordinates if each not in coordinates)
    return replace(fields, metadata=replace(fields.metadata, coordinates=those))


def _clock(fields: FieldSource) -> str:
    """The kind of the times of frames in words; empty without any."""
    if not len(times := timing_of(fields.trajectories[0]).times):
        return ""
    calendar = getattr(times[0], "calendar", "")
    return f"dates of the calendar {calendar}" if calendar else "dates" if times.dtype.kind == "M" else "numbers"


def _in_time(files: Sequence[Named]) -> Named:
    """Files of the same variables, one after the other."""
    forecasts = files[0][1].begins != "" and len({fields.begins for _, fields in files}) == 1
    by_time = {name for _, fields in files for name in fields.by_time}
    places = [{each for each in fields.metadata.coordinates if each.name in by_time} for _, fields in files]
    moving = set.union(*places) - set.intersection(*places)  # such as of a nest
    files = [(path, _without(fields, moving)) for path, fields in files]
    metadata, note = fullest(files, files[0][1].variables, apart=forecasts)
    if len(files) == 1:
        return files[0]
    times = {path: timing_of(fields.trajectories[0]).times for path, fields in files}
    if untimed := [path for path, each in times.items() if not len(each)]:
        raise ValueError(f"{untimed[0]} does not say its times, by which {len(files)} files are joined: write them")
    same = [np.array_equal(each, times[files[0][0]]) for each in times.values()]
    files = sorted(files, key=lambda each: times[each[0]][0])
    path, first = files[0]
    more: dict[str, Any] = {"metadata": metadata, "note": note}
    if all(same) or forecasts:
        trajectories = [trajectory for _, fields in files for trajectory in fields.trajectories]
        step = common_step(fields.step for _, fields in files)
        return path, replace(first, splits={"": trajectories}, step=step, **more)
    for (before, _), (after, _) in pairwise(files):
        if not times[before][-1] < times[after][0]:
            raise ValueError(
                f"{after} begins at {times[after][0]}, and {before} ends at {times[before][-1]}: keep one of each time"
            )
    ends = np.cumsum([fields.trajectories[0].shape[0] for _, fields in files])
    trajectories = [_chained(path, [each.trajectories[i] for _, each in files]) for i in range(len(first.trajectories))]
    for at in (at for trajectory in trajectories for at in trajectory.timing.breaks):
        if at in ends:
            before, after = (files[int(np.searchsorted(ends, at + i, side="right"))][0] for i in (-1, 0))
            whole = np.concatenate([times[file] for file, _ in files])
            raise ValueError(
                f"there is a gap in time between {before} (to {whole[at - 1]}) and {after} (from {whole[at]}): fetch "
                "what is missing, or name files without a gap"
            )
    step = common_step(trajectory.timing.step for trajectory in trajectories)
    return path, replace(first, splits={"": trajectories}, step=step, **more)


def _chained(path: Path, parts: Sequence[Trajectory]) -> Lazy:
    """Trajectories one after the other."""
    starts = [0, *np.cumsum([part.shape[0] for part in parts]).tolist()]
    _, channels, height, width = parts[0].shape

    def read(first: int, last: int) -> NDArray[Any]:
        some = range(bisect_right(starts, first) - 1, bisect_left(starts, last))
        return np.concatenate([parts[i][max(0, first - starts[i]) : last - starts[i]] for i in some])

    timing = timed(path, np.concatenate([timing_of(part).times for part in parts]))
    return Lazy((starts[-1], channels, height, width), read, timing, path)


def channels_of_all(groups: Sequence[Named]) -> Named:
    """Variables of several sources over the same times as channels of one.

    Raises ValueError as `joined`.
    """
    levels = [{each for each in fields.metadata.coordinates if not (each.axes or each.place)} for _, fields in groups]
    groups = [(path, _without(fields, set.union(*levels) - set.intersection(*levels))) for path, fields in groups]
    path, first = groups[0]
    variables = tuple(name for _, fields in groups for name in fields.variables)
    if len(groups) > 1 and (twice := sorted({name for name in variables if variables.count(name) > 1})):
        files = dict.fromkeys(str(file) for file, fields in groups if {*twice} & {*fields.variables})
        raise ValueError(
            f"{' and '.join(files)}: {', '.join(twice)} comes twice, with other variables or for several kinds of "
            "levels, steps, members or grids: copy one kind to a file of its own (of GRIB, grib_copy -w dataType=pf,"
            "typeOfLevel=surface,stepType=instant IN.grib OUT.grib), or name other variables (--data.variables)"
        )
    metadata, note = fullest(groups, ())
    for file, fields in groups:
        for mine, theirs in zip(fields.trajectories, first.trajectories, strict=True):
            a, b = timing_of(mine).times, timing_of(theirs).times
            if mine.shape[0] != theirs.shape[0] or not np.array_equal(a, b):
                raise ValueError(
                    f"{file} ({', '.join(fields.variables)}) and {path} ({', '.join(first.variables)}) have other "
                    "times: name files of the same times, or one variable (--data.variables)"
                )
    if len(groups) == 1:
        return groups[0]
    varying = tuple(dict.fromkeys(name for _, fields in groups for name in fields.varying))
    described = tuple(each for _, fields in groups for each in fields.metadata.variables)

    def stacked(parts: Sequence[Trajectory]) -> Lazy:
        frames, _, height, width = parts[0].shape

        def read(i: int, j: int) -> NDArray[Any]:
            return np.concatenate([part[i:j] for part in parts], 1)

        return Lazy((frames, len(variables), height, width), read, timing_of(parts[0]), path)

    trajectories = [stacked(parts) for parts in zip(*(fields.trajectories for _, fields in groups), strict=True)]
    statics = {name: read for _, fields in reversed(groups) for name, read in fields.statics.items()}
    more: dict[str, Any] = {"statics": statics, "note": note, "metadata": replace(metadata, variables=described)}
    return path, replace(first, splits={"": trajectories}, variables=variables, varying=varying, **more)
