"""Forecasts of fields: networks and training that fit the arrays, after a look at them.

    dual     the heavy network once a past, for all members and all frames of a window; the light one at every step
    single   the heavy one at every step;  medium, light: a smaller one at every step

Levels   each halves the one before, down to at most `COARSEST` positions a side; of fields that cannot be halved one.
         Those of base with 16 positions a side or fewer are transformer blocks, all others convolutions.
Patches  of fields above 128 points a side 2 points, above 256 four, of mini twice as many; fewer where these do not
         divide a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from dualrate.config.ranges import Range, Ranged, many
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.forecasts.clips import CLIPS, ClipReading
from dualrate.forecasts.condition import Forecast, Frames, Windows
from dualrate.forecasts.externals import Externals, packed_statics
from dualrate.forecasts.fields import Fields
from dualrate.forecasts.geometry import Geometry, check_even, hidden_points, ordered
from dualrate.forecasts.latent_forecast import LatentForecast, clip_codec
from dualrate.forecasts.metadata import Description, level_of, variable_number
from dualrate.forecasts.refiner import Refinement, RefinerConfig
from dualrate.forecasts.rolling import RollingConfig
from dualrate.forecasts.rolling_process import Rolling, SharedNoise
from dualrate.forecasts.seasons import Anomalies
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.sources import find_fields, is_fields
from dualrate.forecasts.trajectories import FieldSource
from dualrate.networks.conditional import ratios
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.auto import name_of
from dualrate.recipes.shared import training
from dualrate.recipes.tasks import Rate, TrainedBy, conditional_networks
from dualrate.report.table import Table, as_text
from dualrate.system.folders import some_of
from dualrate.system.progress import PlainReporter, Reporter
from dualrate.training.config import FitConfig

OfFrames = Literal["rolling", "refiner"]
Size = Literal["mini", "tiny", "small", "base"]
SIDE = 64  # of clips, if nothing else is asked for
WITHOUT_CODEC = "every", "periodic", "mask", "static", "forcings", "weights", "anomalies"  # options
CHANNELS = 40  # that are listed
COARSEST = 32  # positions a side of the last level, unless it is of transformer blocks: then half


@dataclass(frozen=True)
class ForecastTier:
    """A size of networks.

    channels, blocks: of the finest level and of the last; transformers: channels of levels of attention, or none;
    patch: points a side of a patch, of fields of at most 128
    """

    channels: tuple[int, int]
    blocks: tuple[int, int]
    fit: FitConfig
    transformers: int = 0
    embedding: int = 128
    patch: int = 1


_fit = partial(training, decay="cosine", ema_halflife=20_000, sample_every=1000)
TIERS: dict[Size, ForecastTier] = {  # batches of the first two: docs/results/forecasts.md
    "mini": ForecastTier((32, 64), (1, 3), _fit(7000, 8, 2e-3, 100, ema_halflife=5000), patch=2),
    "tiny": ForecastTier((48, 96), (2, 4), _fit(12_000, 16, 2e-3, 200)),
    "small": ForecastTier((64, 128), (2, 6), _fit(20_000, 128, 7e-4, 500)),
    "base": ForecastTier((128, 256), (2, 8), _fit(100_000, 256, 4e-4, 1000), transformers=512, embedding=512),
}


@dataclass(frozen=True)
class Forecasting(Ranged):
    """A forecast of your own fields, or of a simulated system. The recipe looks at the data first. Give --data.source
    with --help to see the other options."""

    data: DataConfig = DataConfig(source="kuramoto-sivashinsky")
    past: Frames = 1
    """Number of known frames."""
    frames: Frames = 1
    """Frames of a window, which is one sample. One heavy call serves all of them. With --trained-by rolling they become
    clean one after the other."""
    lead: Annotated[int, Range(1, 100_000)] = 1
    """Time steps of the data from one frame to the next."""
    window: Literal["channels", "leads", "attention", "causal"] = "channels"
    """How the frames of a window are made. channels: together, as channels of one image. leads: each by itself, given
    its lead time; one heavy call serves all, and forecast --stride can leave frames out. attention: together, each
    given its lead time and attending to the others. causal: as attention, but to those before it alone. The last two
    make a single frame as channels does."""
    difference: bool = False
    """Train on differences from the last known frame, for data that change little from frame to frame."""
    every: Annotated[int, Range(1, 256)] = 1
    """Spacing of the observed points on each axis: 4 observes every fourth."""
    noise: Annotated[float, Range(0, 100)] = 0.0
    """Standard deviation of the noise on observed values, in standard deviations of the field."""
    periodic: bool = False
    """Whether opposite edges of the field meet. Those of the simulated equations always do, as do those of longitudes
    that go round the circle. Those of latitudes never do."""
    geometry: Literal["sphere", "plane"] = "sphere"
    """How axes of latitudes and longitudes count. sphere: edges as above, and the loss counts points by their area.
    plane: as any other axes, all points alike."""
    mask: str = ""
    """Points that are hidden: filled, told to the networks, and in no loss. auto: those that the training data never
    have a number for. any: those that the data ever lack one for. Or a variable over space alone: points where it is 0
    or missing; not:VARIABLE: all others."""
    static: tuple[str, ...] = ()
    """Variables over space alone, such as orography, as inputs of the network that reads the past; FILE:VARIABLE: of
    another file."""
    forcings: tuple[str, ...] = ()
    """Inputs of the same network that are known ahead. day: the time of the year. hour: of the day. sun: the height
    of the sun at each lead time. Or variables of the data, which are then not forecast."""
    weights: tuple[str, ...] = ()
    """How much variables count in the loss, each in its own standard deviation: VARIABLE:WEIGHT; others 1."""
    anomalies: Annotated[int, Range(0, 12)] = 0
    """Harmonics of a climatology by the time of the year, fit to the training data at each point; networks then see
    anomalies to it. 2 or 3 are usual; 0: none."""
    size: Size | None = None
    """Size of the networks. mini: ten minutes of a CPU core for small fields of two dimensions, which have it by
    default. tiny: minutes of one for a line of points, the default of these. small: an hour. base: for a GPU."""
    rate: Rate = "dual"
    """dual: a heavy network once per past, and a light one at every step. both: also a second heavy network now and
    then, which sees the frames being made. single, medium, light: one network at every step."""
    trained_by: TrainedBy | OfFrames = "diffusion"
    """diffusion: the denoising loss. rolling: a window whose frames become clean one after the other, each with a heavy
    call of its own. refiner: PDE-Refiner, a mean and three calls that refine it. residual: a regression once, then
    diffusion of its residual by a network that also gets the regression's features. corrdiff: the same without the
    features. crps, energy: a sample in one call, trained by a score of two draws. regression: the mean, in one call."""

    def __call__(self, progress: Reporter | None = None) -> Experiment:
        """The experiment for these fields. Raises ValueError for a source that holds none, and as `read_fields`."""
        self.check_options()
        source, apart = self.data.source, self.frames_apart
        task = Forecast(self.past, self.frames, self.lead, self.difference, self.every, self.noise)
        externals = Externals(forcings=self.forcings, lead=self.lead, frames=self.frames)
        names = (*self.data.variables, *externals.variables) if self.data.variables else ()
        how = ClipReading.of(self.data, task.span)
        content = find_fields(source, names=names, levels=self.data.levels, clips=how)[1]
        content = content.picked([name for name in content.variables if name not in externals.variables])
        periodic = self.periodic or (source in SIMULATIONS and SIMULATIONS[source][0].periodic)
        geometry = Geometry.of(content, sphere=self.geometry == "sphere", periodic=periodic)
        if self.geometry == "sphere":
            check_even(source, geometry.axes)
        in_order = ordered(content)[0]
        frame = in_order.trajectories[0].shape[1:]
        size = self.size or ("tiny" if frame[1] == 1 else "mini")
        each, tier = (frame[0], frame[1], frame[2]), TIERS[size]
        shape = task.target(each)
        heavy = heavy_network(each if apart else shape, tier, periodic=geometry.periodic, poles=geometry.poles)
        _ = ratios(task.shape(shape), heavy)  # a misfit of `every` is refused before all frames are read
        if self.mask:
            geometry = geometry.masked(hidden_points(source, in_order, self.mask), in_order.variables)
        externals = replace(externals, statics=self.static, fields=packed_statics(source, in_order, self.static))
        task = replace(task, geometry=geometry, externals=externals, anomalies=Anomalies(self.anomalies))
        fields = task.read_fields(self.data, "train")
        task = replace(task.of(fields), weights=_weights(self.weights, fields.variables))
        _ = Windows(task.read_fields(self.data, "test", fields.statistics), task)  # what training needs, seen now
        of_latents = self.of_latents(task, each)
        if of_latents is not None:
            task, each = of_latents
            shape, tier = task.target(each), replace(tier, patch=1)
            heavy = heavy_network(each if apart else shape, tier, periodic=False)
        trained_by = {"rolling": RollingConfig, "refiner": RefinerConfig}.get(self.trained_by, self.trained_by)
        networks, method = conditional_networks(task, shape, heavy, self.rate, trained_by, task.frames if apart else 1)
        if apart:
            among = {"attention": self.window != "leads", "causal": self.window == "causal"}
            networks = by_lead(networks, range(1, task.frames + 1), **among)
        progress = progress or PlainReporter()
        for note in self._notes(task, fields, content, size, each):
            progress.note(note)
        parts = [name_of(source)[:40], "forecast", *["latents"] * (of_latents is not None), size, self.rate]
        parts += [self.trained_by] * (self.trained_by != "diffusion") + [self.window] * apart
        of_frames = {"rolling": Rolling(frames=task.frames), "refiner": Refinement()}
        usual = SharedNoise(Cosine(), task.frames) if self.window == "leads" else GaussianProcess(Cosine())
        process = of_frames.get(self.trained_by, usual)
        return Experiment("-".join(parts), networks, method, tier.fit, self.data, process, condition=task)

    def check_options(self) -> None:
        """Raise ValueError for options that exclude each other and for a source that holds no fields."""
        source = self.data.source
        together = self.trained_by == "refiner" or (self.trained_by, self.window) == ("rolling", "leads")
        if self.frames_apart and together:
            raise ValueError(f"{self.trained_by} makes the frames of a window together: drop --window {self.window}")
        if self.trained_by == "rolling" and self.window_length == 1:
            raise ValueError(
                f"rolling needs a window of two frames or more (with --codec latents): give --frames {4 * self.frames}"
            )
        if self.trained_by == "refiner" and self.rate == "both":
            raise ValueError("refiner has no state that a second heavy network would see: drop --rate both")
        if self.difference and (self.every > 1 or self.noise):
            raise ValueError(
                "a difference is from the whole last frame, which --every and --noise hide: drop --difference, or those"
            )
        if not is_fields(source):
            if source and not Path(source).exists():
                raise FileNotFoundError(f"no such file or folder: {source}, nor is it one of {', '.join(SIMULATIONS)}")
            raise ValueError(
                f"{source or 'no source'} holds no fields: give --data.source {', '.join(SIMULATIONS)}, or a file "
                "of arrays (trajectory, time, channel, space): .npz with `fields`, .npy, .h5, .nc, .zarr or .grib, or "
                "a folder or pattern ('*.nc') of these"
            )

    def _notes(self, task: Forecast, fields: Fields, content: FieldSource, size: Size, each: Shape) -> Iterator[str]:
        """Say what was read, what is forecast of it and by what. each: (C, H, W) of a frame as networks see it."""
        length, observed, wide = many(len(fields), "time step"), task.shape(task.target(each)), fields.shape[1] > 1
        first = "--fit.max-seconds 480" + ", or --size mini" * (size != "mini" and wide)
        yield (
            f"{fields.name}: {many(len(fields.trajectories), 'trajectory')}, {length} of {fields.shape} (C, H, W)\n"
            f"given: {many(task.past, 'frame')}, observed as {observed} (C, H, W){_besides(task)} with "
            f"noise of {task.noise:g}\nmade: {many(task.frames, 'frame')}, {many(task.lead, 'step')} apart, "
            f"{task.plain_time(task.lead_times(1)[0])}\n{_channels(task, content)}\n"
            f"networks of size {size}, by default {TIERS[size].fit.iterations:,} iterations; for a first look: {first}"
        )
        if (frames := task.of_data) is not task:
            clips = f"a frame here is a latent {each}, of {frames.frames // task.frames} of the clip's frames"
            yield f"{clips}; training writes no grids of these: draw by dualrate forecast"
        if content.note:
            yield f"{self.data.source}: {content.note}"
        yield from task.of_data.geometry.notes(fields.shape)
        if task.every == 1 and not task.noise and not task.of_data.of_clips:
            yield (
                "the whole field is observed: if its law is deterministic, it has one future: a regression is enough "
                "(--trained-by regression); several futures are open where starts are uncertain (--noise 0.1 or "
                "--every 4)"
            )

    @property
    def frames_apart(self) -> bool:
        """Whether networks make each frame of a window given its lead time."""
        return self.window == "leads" or (self.window != "channels" and self.window_length > 1)

    @property
    def window_length(self) -> int:
        """Frames of a window, or the latents that networks make in place of them."""
        return self.frames

    def of_latents(self, task: Forecast, frame: Shape) -> tuple[LatentForecast, Shape] | None:
        """The same forecast of latents of frames, and (C, H, W) of one; None: networks see the frames themselves."""
        return None


@dataclass(frozen=True)
class Clips(Forecasting):
    """Frames of your own clips that come next: of a folder of animations, videos and folders of pictures, or of one of
    these. The recipe looks at them first. Give --data.source with --help to see the other options."""

    codec: Path | None = None
    """Forecast latents by this codec, which decodes them: a run of clip-latents, its folder first. --past and --frames
    are rounded up to whole latents."""

    def __call__(self, progress: Reporter | None = None) -> Experiment:
        data, past, frames = self.data, self.past, self.frames
        data = data if is_fields(data.source) else replace(data, source=f"{CLIPS}{data.source}")
        usual = {"size": SIDE}
        if self.codec is not None:
            if options := [name for name in WITHOUT_CODEC if getattr(self, name) != getattr(Forecasting(), name)]:
                raise ValueError(f"latents are forecast without --{', --'.join(options)}: drop that, or --codec")
            each, (channels, side, _) = clip_codec(self.codec)[1:]
            past, frames = (-(-count // each) * each for count in (past, frames))
            usual = {"size": side, "channels": channels}
        if data.source.startswith(CLIPS):
            data = replace(data, **{name: getattr(data, name) or value for name, value in usual.items()})
        return Forecasting.__call__(replace(self, data=data, past=past, frames=frames), progress)

    @property
    def window_length(self) -> int:
        return self.frames if self.codec is None else self.frames // clip_codec(self.codec)[1]

    def of_latents(self, task: Forecast, frame: Shape) -> tuple[LatentForecast, Shape] | None:
        if self.codec is None:
            return None
        codec, each, expected = clip_codec(self.codec)
        if frame != expected:
            raise ValueError(
                f"{self.codec} encodes frames of {expected} (C, H, W), {self.data.source} has frames of {frame}: drop "
                "--data.size and --data.channels, or name other clips"
            )
        latents = LatentForecast.at(codec, each, task, frame, self.noise)
        fields = latents.items(self.data, "train")
        latents = latents.of(fields)
        _ = Windows(latents.items(self.data, "test"), latents)
        return latents, fields.shape


def _weights(words: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """A weight for each variable; none where none is said. Raises ValueError for what is no VARIABLE:WEIGHT."""
    weights = dict(variable_number(each, names, "weight", "WEIGHT", above=0) for each in words)
    return tuple(weights.get(name, 1.0) for name in names) if words else ()


def _channels(task: Forecast, content: FieldSource) -> str:
    """A table of the channels, and of what is left out."""
    about = task.metadata.variables or (Description(),) * len(task.names)
    numbers = zip(task.names, about, task.statistics.mean, task.statistics.std, strict=True)
    lines = [(name, each.units, each.height, f"{mean:.4g}", f"{std:.4g}") for name, each, mean, std in numbers]
    used = {*task.externals.variables, *task.externals.statics}
    used |= {each for name in content.variables for each in (name, level_of(name)[0])}
    left = {"left out": content.varying, "over space alone, so left out (see --static, --mask)": content.statics}
    notes = [many(len(lines), "channel")]
    for why, names in left.items():
        if some := [name for name in names if name not in used]:
            notes.append(f"{why}: {some_of(some, 12)}")
    return as_text(Table(("channel", "unit", "level", "mean", "deviation"), (*lines[:CHANNELS],), (*notes,), texts=3))


def _besides(task: Forecast) -> str:
    """The channels of what is known, beyond those of frames, in words."""
    planes, externals = len(task.geometry.planes), task.externals
    parts = [f"{planes} of the mask"] * bool(planes)
    parts += [f"{len(externals.statics)} static ({', '.join(externals.statics)})"] * bool(externals.statics)
    parts += [f"{externals.channels} of forcings ({', '.join(externals.forcings)})"] * bool(externals.channels)
    return f", of these {', '.join(parts)}," if parts else ""


def by_lead(networks: NetworksConfig, leads: Sequence[int], *, attention: bool, causal: bool = False) -> NetworksConfig:
    """Networks of frames, that are each made by themselves and told their lead, of those of a frame.

    Raises ValueError for networks that know whole windows alone.
    """
    how: Any = {"leads": tuple(leads), "attention": attention, "causal": causal}
    if not all(hasattr(networks, name) for name in how):
        raise ValueError(
            f"these networks ({type(networks).__name__}) make whole windows: frames are made by themselves (--window "
            "leads, attention or causal) by --rate dual, single, medium or light, --trained-by diffusion, crps, energy "
            "or regression"
        )
    return replace(networks, **how)  # pyright: ignore[reportArgumentType]


def heavy_network(
    shape: Shape, tier: ForecastTier, *, periodic: bool | tuple[bool, bool], poles: bool = False
) -> UViTConfig:
    """The heavy network for samples of this shape (C, H, W).

    periodic: whether edges meet, down and across, or both; poles: whether rows go on over poles, where levels halve
    """
    down, across = (periodic, periodic) if isinstance(periodic, bool) else periodic
    channels, height, width = shape
    longest = max(height, width)
    patch = tier.patch * (1 if longest <= 128 else 2 if longest <= 256 else 4)
    points = [width] if height == 1 else [height, width]
    while any(side % patch for side in points):
        patch //= 2
    grids, sides = [longest // patch], [side // patch for side in points]
    coarsest = COARSEST // 2 if tier.transformers else COARSEST
    while (grids[-1] > coarsest or len(grids) == 1) and all(side % 2 ** len(grids) == 0 for side in sides):
        grids.append(grids[-1] // 2)
    (fine, coarse), (few, many) = tier.channels, tier.blocks
    levels = [Level("conv", fine if i == 0 else coarse, few) for i in range(len(grids) - 1)]
    last = tier.transformers if grids[-1] <= 16 else 0
    levels.append(Level("transformer" if last else "conv", last or coarse, many))
    edges = {"periodic": across and (down or height == 1), "across": across and not down and height > 1}
    edges["poles"] = poles and edges["across"] and sides[-1] % 2 ** len(grids) == 0
    return UViTConfig(width, channels, tuple(levels), patch=patch, embedding=tier.embedding, height=height, **edges)


RECIPES = {
    "forecast": ("frames of your own fields that come next, or of a simulated system", Forecasting()),
    "ks-forecast": (
        "the Kuramoto-Sivashinsky equation, observed at every fourth point with noise, a Lyapunov time ahead",
        Forecasting(frames=3, lead=4, every=4, noise=0.1),
    ),
    "clips": (
        "frames of your own clips that come next: GIF, WEBP, MP4, folders of pictures, or sprites that bounce",
        Clips(DataConfig("moving-sprites"), past=2, window="attention", difference=True, size="mini"),
    ),
    "sphere-forecast": (
        "barotropic flow on the sphere, observed at every fourth point with noise, one to three days ahead",
        Forecasting(DataConfig("barotropic-t21"), frames=3, lead=4, every=4, noise=0.1, size="mini"),
    ),
}
"""Recipes: functions that return an Experiment."""
