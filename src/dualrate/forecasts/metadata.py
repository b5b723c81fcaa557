"""Metadata of a source of fields: units and names of variables, coordinates of points, by CF conventions.

A forecast keeps what its training data said. Starts that say otherwise are of another place, or in other units.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME_AXIS = {"lat": "y", "latitude": "y", "lon": "x", "longitude": "x"}
COMPARED = 4096  # points of a coordinate that a run keeps, at most; all of most axes
LONGEST = 200  # characters of an attribute
RADIANS = {"latitude": 1.571, "longitude": 6.284}  # the most
CELLS = r"n?cells?|ncol|n_?face|nmesh2_face|mesh\w*_nfaces|nod2|nele"  # dimensions of ICON, CAM, UGRID, FESOM, FVCOM
NEAR = 1e-3  # of the spacing of points: less apart they are the same
SAME_CALENDAR = {"gregorian": "standard", "proleptic_gregorian": "standard", "365_day": "noleap", "366_day": "all_leap"}
SAME_UNITS = {  # names in small letters
    **dict.fromkeys(("k", "kelvin", "kelvins"), "K"),
    "celsius": "degC",
    **dict.fromkeys(("metre", "metres", "meter", "meters"), "m"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("hour", "hours", "hr"), "h"),
    **dict.fromkeys(("pascal", "pascals"), "Pa"),
    **dict.fromkeys(("hectopascal", "hectopascals", "millibar", "millibars", "mbar", "mb"), "hPa"),
    **dict.fromkeys(("radian", "radians"), "rad"),
    "percent": "%",
}


@dataclass(frozen=True)
class Description:
    """Attributes of a variable or of a coordinate; empty: not said. level: of a variable, by its units"""

    units: str = ""
    standard_name: str = ""
    long_name: str = ""
    level: float | None = None
    level_units: str = ""

    @staticmethod
    def of(attributes: Mapping[str, Any]) -> Description:
        """The description of a variable in a file, from its attributes."""
        units, standard, long = (text_of(attributes.get(each, "")) for each in ("units", "standard_name", "long_name"))
        return Description(units, standard, long).at(attributes.get("level"), attributes.get("level_units", ""))

    def at(self, level: Any, units: Any) -> Description:
        """The same at a level, if that is a number."""
        number = np.asarray(level)
        if number.dtype.kind not in "fiu" or number.size != 1:
            return self
        return replace(self, level=float(number.item()), level_units=text_of(units))

    @property
    def attributes(self) -> dict[str, str | float]:
        """The attributes that are said; GRIB says `unknown` of what it has no name for."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None, "unknown")}

    @property
    def height(self) -> str:
        """The level in words, of pressures in hPa, of mere numbers without a unit; empty without one."""
        if self.level is None:
            return ""
        units = "" if self.level_units == "1" else plain_units(self.level_units)
        return f"{self.level / 100:.9g} hPa" if units == "Pa" else f"{self.level:.9g} {units}".rstrip()


def text_of(value: Any) -> str:
    """An attribute as a text; empty for what is neither text nor number."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.item()
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return str(text)[:LONGEST] if isinstance(text, (str, int, float)) else ""


@dataclass(frozen=True)
class Coordinate:
    """Numbers of points.

    axes: of space that they are along, by number; none where that is not known; values: in C order
    """

    name: str
    axes: tuple[int, ...]
    values: tuple[float, ...]
    description: Description = Description()

    @property
    def place(self) -> str:
        """The word latitude or longitude, if it is one of these, in degrees and of no rotated pole; else empty."""
        units = self.description.units.lower()
        if re.match(r"rad|k?m(et|$)|kilom", units) or self.description.standard_name.startswith("grid_"):
            return ""
        for word, side in (("latitude", "north"), ("longitude", "east")):
            degrees = re.fullmatch(rf"degrees?_?{side[0]}({side[1:]})?", units)
            if degrees or word in (self.description.standard_name, self.name.lower()) or self.name.lower() == word[:3]:
                return word
        return ""

    @property
    def angular(self) -> bool:
        """Whether it is a latitude or longitude, in degrees or, of cells (clat, latCell), in radians."""
        standard, name = self.description.standard_name, self.name.lower()
        return self.place != "" or standard in RADIANS or re.fullmatch("c?(lat|lon)(itude|cell)?", name) is not None

    @property
    def unwound(self) -> NDArray[np.float64]:
        """The values; of longitudes without the turn where they begin anew, and none above 360."""
        values = np.array(self.values, np.float64)
        if self.place != "longitude" or not len(values):
            return values
        values = np.unwrap(values, period=360)
        return values - 360 * (values.max() > 360)

    @property
    def thinned(self) -> Coordinate:
        """This coordinate with at most `COMPARED` values, evenly spread."""
        some = np.linspace(0, len(self.values) - 1, min(len(self.values), COMPARED)).astype(int).tolist()
        return replace(self, values=tuple(self.values[i] for i in some))

    def fits(self, space: Sequence[int]) -> bool:
        """Whether it has a value for each point of axes of this size."""
        sizes = [space[i] for i in self.axes if i < len(space)]
        return len(sizes) == len(self.axes) and len(self.values) == np.prod(sizes, dtype=int)


@dataclass(frozen=True)
class Metadata:
    """Metadata of fields.

    variables: of each channel, or none; time: units of its numbers, of dates hours; calendar: of dates; projection: the
    attributes of the grid mapping, as JSON; empty: not said
    """

    variables: tuple[Description, ...] = ()
    coordinates: tuple[Coordinate, ...] = ()
    time: str = ""
    calendar: str = ""
    projection: str = ""

    @property
    def thinned(self) -> Metadata:
        """These metadata with thinned coordinates."""
        return replace(self, coordinates=tuple(each.thinned for each in self.coordinates))

    @property
    def said(self) -> tuple[int, int, bool]:
        """The numbers of coordinates, and of variables with units; whether there is a projection."""
        return len(self.coordinates), sum(each.units != "" for each in self.variables), self.projection != ""

    def unsaid(self, other: Metadata, names: Sequence[str]) -> str:
        """The units and coordinates, in words, that the other says and this does not. names: of the variables"""
        units = dict(zip(names, (each.units for each in self.variables), strict=False))
        theirs = zip(names, other.variables, strict=False)
        without = {
            "units": [name for name, description in theirs if description.units and not units.get(name)],
            "coordinates": [each.name for each in other.coordinates if _same(each, self.coordinates) is None],
        }
        return " and ".join(f"{what} of {', '.join(of)}" for what, of in without.items() if of)

    def differences(self, other: Metadata, names: Sequence[str], every: int = 1) -> Iterator[tuple[str, str]]:
        """Pairs of words, where two metadata contradict each other: what this says, and what the other says.

        names: of the variables; every: of the other's points along each axis, this may have every so many alone
        """
        units = [*zip(names, self.variables, other.variables, strict=False)]
        pairs = [(name, mine.units, theirs.units) for name, mine, theirs in units]
        mappings = (text_of(json.loads(each.projection or "{}").get("grid_mapping_name", "")) for each in (self, other))
        pairs += [("time", self.time, other.time), ("points", *mappings)]
        for name, mine, theirs in pairs:
            if mine and theirs and plain_units(mine) != plain_units(theirs):
                yield f"{name} in {mine}", f"{name} in {theirs}"
        for name, a, b in units:
            if a.height and b.height and a.height != b.height:
                yield f"{name} at {a.height}", f"{name} at {b.height}"
        for coordinate in self.coordinates:
            if (same := _same(coordinate, other.coordinates)) is not None:
                yield from _apart(coordinate.thinned, same.thinned, every)


def plain_units(units: str) -> str:
    """Units by one spelling of products, powers, degrees and some names: m/s, m.s**-1 and m·s⁻¹ are m s-1."""
    text = unicodedata.normalize("NFKC", units).replace("\u2212", "-").strip()  # superscripts are digits there
    text = re.sub(r"\*\*|[\^{}]", "", text)
    text = re.sub(r"\s*/\s*([^\W\d]+)(\d*)", lambda at: f" {at[1]}-{at[2] or 1}", text)
    text = re.sub(r"(?<=\w)\s*[.·⋅*]\s*(?=[^\W\d])", " ", text)  # not the point of a number
    text = re.sub(r"(?i)^(°|deg(ree)?s?)[ _]?(north|east|n|e)?$", "degrees", text)
    text = re.sub(r"(?i)^(?:°|deg(?:ree)?s?)[ _]?(?:(k)(?:elvin)?|c(?:elsius)?)$", lambda at: at[1] or "celsius", text)
    words = [re.sub(r"^(\D+?)(-?\d+)?$", _common_name, word) for word in text.split()]
    return " ".join(words).removeprefix("1 ")  # 1/s is s-1


def _common_name(word: re.Match[str]) -> str:
    name, power = word.groups("")
    return SAME_UNITS.get(name.lower(), name) + power * (power != "1")


def way(values: NDArray[Any]) -> str:
    """Whether numbers along an axis rise or fall, in words that follow the axis's name: by most steps, as longitudes
    fall once where they begin anew."""
    if values.dtype.kind not in "fiu" or len(values) < 2:
        return ""
    return " (falling)" if np.median(np.diff(values.astype(np.float64))) < 0 else " (rising)"


def level_of(name: str) -> tuple[str, float | None]:
    """The variable of a channel, and the number of its level: of t_850 t and 850; of other names none."""
    parts = re.fullmatch(r"(.+)_(-?\d+(?:\.\d+)?)", name)
    return (parts[1], float(parts[2])) if parts else (name, None)


def variable_number(
    text: str, names: Sequence[str], what: str, value: str, above: float = -math.inf
) -> tuple[str, float]:
    """The variable and the number of VARIABLE:NUMBER, which is finite. what, value: words for messages.

    Raises ValueError for text that is none, for another name than these, and for a number that is not above `above`.
    """
    name, _, last = text.rpartition(":")
    with suppress(ValueError):
        if name in names and above < (number := float(last)) < math.inf:
            return name, number
    least = f", a number above {above:g}" * math.isfinite(above)
    raise ValueError(f"{what} {text!r} is none; expected VARIABLE:{value}{least}, with one of {', '.join(names)}")


def with_radians(points: Iterable[Coordinate]) -> tuple[Coordinate, ...]:
    """The same; latitudes and longitudes without units are in radians where they reach over a sphere of such."""
    points = tuple(points)
    unsaid = near_radians(points)
    if not any(each.place == "latitude" and np.ptp(each.values) > 2 for each in unsaid):
        return points
    radians = [replace(each, description=replace(each.description, units="radians")) for each in points]
    return tuple(said if each in unsaid else each for each, said in zip(points, radians, strict=True))


def near_radians(points: Iterable[Coordinate]) -> list[Coordinate]:
    """Latitudes and longitudes without units, unless a number is beyond a sphere in radians: then none."""
    unsaid = [each for each in points if each.place and not each.description.units and each.values]
    return unsaid if all(max(map(abs, each.values)) <= RADIANS[each.place] for each in unsaid) else []


def mesh_among(points: Sequence[Coordinate], space: Sequence[str], about: Mapping[str, Any]) -> str:
    """The dimension of cells by its name, or along which latitudes and longitudes are those of no line; empty: none.

    The last one where attributes of a variable (`about`) say so, as those that cfgrib and cdo write.

    Of a line one of them goes one way, but for one turn, or both do, with steps to a side and steps up or down.
    """
    places = [each for each in points if each.angular]
    said = any("unstructured" in text_of(about.get(name, "")) for name in ("GRIB_gridType", "CDI_grid_type"))
    for axis, dim in enumerate(space):
        ways = [np.diff(each.values) for each in places if each.axes == (axis,)]
        counts = np.array([((each < 0).sum(), (each == 0).sum(), (each > 0).sum()) for each in ways])
        turns = len(ways) > 1 and min(counts.sum(1) - counts.max(1)) > 1 and max(counts[:, ::2].min(1)) > 1
        if turns or re.fullmatch(CELLS, dim.lower()):
            return dim
    return space[-1] if said and space else ""


def calendar_of(name: Any) -> str:
    """The calendar by one name; empty for what names none."""
    calendar = text_of(name).lower()
    return SAME_CALENDAR.get(calendar, calendar)


def _same(coordinate: Coordinate, candidates: Sequence[Coordinate]) -> Coordinate | None:
    """The candidate of the same name, or of another name for the same axis; None without one."""

    def common(each: Coordinate) -> str:
        return SAME_AXIS.get(each.place or each.name.lower(), each.name.lower())

    alike = [each for each in candidates if len(each.axes) == len(coordinate.axes)]
    by_name = [each for each in alike if each.name == coordinate.name]
    return next(iter(by_name or [each for each in alike if common(each) == common(coordinate)]), None)


def _apart(mine: Coordinate, theirs: Coordinate, every: int) -> Iterator[tuple[str, str]]:
    a, b = np.array(mine.values), np.array(theirs.values)
    units = [plain_units(each.description.units) for each in (mine, theirs)]
    if sorted(units) == ["Pa", "hPa"]:
        a, units = a * (100 if units[1] == "Pa" else 0.01), units[1:]
    if len(a) != len(b):
        b = b[::every]
    if len(a) != len(b):
        if len(mine.axes) == 1 and len(theirs.values) < COMPARED:  # else which points those are is not known
            sizes = [f"{each.name} of length {len(each.values)}" for each in (mine, theirs)]
            ends = [f" from {each.values[0]:g} to {each.values[-1]:g}" for each in (mine, theirs)]
            yield sizes[0] + ends[0], sizes[1] + ends[1]
        return
    apart = np.abs(a - b)
    if mine.place == theirs.place == "longitude":
        apart = np.minimum(apart % 360, -apart % 360)
    spacing = np.median(np.abs(np.diff(b))) if len(b) > 1 else 0.0
    wrong = np.flatnonzero(apart > NEAR * spacing + 1e-6 * np.abs(b).max(initial=0))
    ends = any(i in (0, len(a) - 1) for i in wrong.tolist())

    def words(each: Coordinate, values: np.ndarray) -> str:
        units = f" {each.description.units}".rstrip()
        at = "" if ends or not len(wrong) else f", at point {wrong[0]} {values[wrong[0]]:g}"
        return f"{each.name} from {values[0]:g} to {values[-1]:g}{units}{at}"

    if len(wrong) or (all(units) and units[0] != units[-1]):
        yield words(mine, a), words(theirs, b)
