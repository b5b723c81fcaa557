"""`dualrate forecast`: members of a forecast from starts, frame after frame, in a folder. `dualrate data simulate`:
trajectories of a system, in a file.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.config.ranges import BatchSize, Images, Lead, Precision, Range, Ranged, Seed
from dualrate.forecasts.folder import PAGE
from dualrate.forecasts.forecast import forecast_by, starts_of
from dualrate.forecasts.model import with_stride
from dualrate.forecasts.netcdf import check_writable, write_fields
from dualrate.forecasts.simulations import SIMULATIONS
from dualrate.forecasts.systems import SIMULATING
from dualrate.forecasts.views import Views
from dualrate.options.console import Machine, command_line, data_progress, print_report, reporter
from dualrate.options.parsing import AsJson, Nproc, RunDir, SharedWork
from dualrate.options.sampling import SamplingOptions
from dualrate.system.progress import image_progress
from dualrate.system.workers import mapper

Start = Annotated[int, Range(0, 2**20)]
SystemName = Literal["kuramoto-sivashinsky", "kolmogorov", "moving-sprites", "barotropic-t21", "barotropic-t42"]


@dataclass(frozen=True)
class Forecast(Ranged, SharedWork):
    """Roll out a forecast: members from each start, to an array on disk. The same command continues after a kill.

    Where the truth is known, the forecast is scored by lead time, beside two baselines: the start's last frame, and
    random frames of the data. A page, index.html, shows the scores, pictures, and whether members go on looking like
    the training data.

    In the first window the heavy network runs once per start, for all members. After that it runs once per member and
    window.
    """

    run_dir: RunDir
    out: Path
    """Directory for the forecast: new, empty, or with a part of the same forecast."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    start_file: Annotated[Path | None, arg(name="from")] = None
    """Known frames to start from: .npy, .npz, .h5, .nc, .zarr or clips:FOLDER, as (time, channel, space) or (start,
    time, channel, space), the latest frame last, in the units of the training data; of a run of clips a clip, or a
    folder of them. No noise is added to them. A run with --every also takes the observed points alone. Default: starts
    in held-out data, whose truth is written too, as with --starts beside a file."""
    frames: Annotated[int, Range(1, 2**28)] = 100
    """T, frames to forecast."""
    stride: Lead = 1
    """Make only every stride-th frame, for a run trained with --window leads. --frames counts the frames that are
    made."""
    starts: Annotated[int, Range(1, 2**20)] | None = None
    """Number of starts, evenly spread over held-out data, or over the file of --from, and scored against what follows.
    Default: of held-out data 50, or all of them if there are fewer; of a file its latest frames alone, unscored."""
    seed: Start = 0
    """Seed of the first start; start i has seed + i, whatever the batch size."""
    batch_size: Annotated[BatchSize, arg(help="Members per batch, of all starts; fewer need less memory.")] = 125
    precision: Precision = "auto"
    """auto: bfloat16 where it is faster. In float32 the batch size changes only rounding, but a chaotic roll-out
    amplifies rounding."""
    format: Literal["npz", "netcdf", "zarr"] | None = None
    """Also write the forecast with the names of its variables. netcdf, zarr: forecast.nc or forecast.zarr, which xarray
    opens, over (init_time, number, lead_time, space), with coordinates, dates, units and the truth. npz: forecast.npz,
    one trajectory per member, grouped by start."""
    pictures: bool = False
    """Also draw forecast.png and an animation, forecast.webp, of the first start. A forecast of clips always has them,
    and forecast.mp4 with the extra video."""
    region: tuple[str, ...] = ()
    """Regions that are scored besides, where the truth is known: SOUTH:NORTH or SOUTH:NORTH,WEST:EAST in degrees, or
    tropics, north, south, europe, north-america."""
    threshold: tuple[str, ...] = ()
    """Events, VARIABLE:VALUE in the units of the data, whose Brier score and reliability are taken besides, where the
    truth is known."""
    nproc: Nproc = 1
    machine: Annotated[Machine, arg(name="")] = Machine()
    json: AsJson = False

    def run(self) -> None:
        model, progress = self.machine.loaded(self.run_dir)
        model = with_stride(model, self.stride)
        starts = starts_of(model, self.start_file, self.frames, progress.note, self.starts)
        progress.note(starts.says)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size, precision=self.precision)
        with closing(progress):
            result = forecast_by(
                drawer,
                starts,
                self.frames,
                self.out,
                seed=self.seed,
                format=self.format,
                pictures=self.pictures,
                progress=image_progress(progress, "frames"),
                note=progress.note,
                mapper=mapper(model.device),
                command=command_line(),
                views=Views(self.region, self.threshold),
            )
        report = {"run": str(self.run_dir), "out": str(self.out), **result.plain()}
        if result.scores is not None and self.json:
            report["scores"] = result.scores.plain()
        elif result.scores is not None:
            print(f"{result.scores}\n")
        print_report(self.json, report | {"page": str(self.out / PAGE)})


@dataclass(frozen=True, kw_only=True)
class Simulate(Ranged):
    """Make trajectories of a system, into a file that train reads as --data.source."""

    system: Annotated[Positional[SystemName], arg(metavar="NAME")]
    """Kuramoto-Sivashinsky: 1-D, 64 points. Kolmogorov: vorticity of a plane flow, 64 x 64 points.
    moving-sprites: three shapes of a colour that bounce in 64 x 64 pixels. barotropic-t21, -t42: vorticity and winds on
    the sphere, 32 x 64 or 64 x 128 points, with the extra sphere."""
    out: Path
    """A new file: .npz, or .nc with the extra forecast."""
    trajectories: Images = 100
    """Number of trajectories, each from a random start."""
    frames: Annotated[int, Range(2, 10_000_000)] = 100
    """Frames of each trajectory."""
    seed: Seed = 0
    """Seed of the random starts. Give each file another seed."""
    json: AsJson = False

    def run(self) -> None:
        check_writable(self.out)
        system, *_ = SIMULATIONS[self.system]
        arrays = system.simulate(self.trajectories, self.frames, self.seed, data_progress(reporter(), SIMULATING))
        write_fields(self.out, arrays, system.variables, system.every, system.axes, system.metadata)
        report = {"fields": "x".join(map(str, arrays.shape)), "step": system.every}
        apart = {"step_in_lyapunov_times": system.every / system.lyapunov_time}
        print_report(self.json, {**report, **apart, "out": str(self.out)})
