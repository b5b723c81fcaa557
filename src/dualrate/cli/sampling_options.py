"""The options of how images are drawn, and the sampler and plan that they stand for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from dualrate.comparison.candidates import check_denoiser
from dualrate.config.imports import import_named
from dualrate.config.ranges import GuidanceWeight, HeavyCalls, Members, NoiseLevel, Probability, Ranged, Steps
from dualrate.denoisers.catalogue import DENOISERS
from dualrate.drawing.choice import GAMMA as RECOMMENDED_GAMMA
from dualrate.drawing.choice import RECOMMENDED, SMOOTH, Choice, Note, Places, read_plan
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.experiment.model import Model
from dualrate.runs.store import called_by, is_run
from dualrate.sampling.catalogue import SAMPLERS, at_gamma, sampler_named, taking


def _names(markovian: bool) -> str:
    return ", ".join(name for name, sampler in SAMPLERS.items() if sampler.markovian == markovian)


SAMPLER = (
    f"For any number of heavy calls: {_names(markovian=True)}. For a heavy call at every step, or one network: "
    f"{_names(markovian=False)}. Or package.module:Class. Default: "
    f"{RECOMMENDED} at gamma {RECOMMENDED_GAMMA:g}, in Rolling Diffusion 0; with a --denoiser that caches, {SMOOTH}; a "
    "student's own."
)
GAMMA = (
    f"Noise that {' and '.join(taking('gamma'))} add: from the posterior variance (0) to the transition variance (1). "
    f"{RECOMMENDED} has {RECOMMENDED_GAMMA:g} by default, in Rolling Diffusion 0."
)
ETA = f"Share of fresh noise in {' and '.join(taking('eta'))}. 0 is DDIM."
DENOISER = (
    f"Another way to call the networks. For one network, a cache: {', '.join(DENOISERS)}. Or the directory of a run, "
    "whose network makes the steps without a context. Or package.module:name."
)


@dataclass(frozen=True)
class SamplingOptions(Ranged):
    """How images are drawn. The defaults are those that docs/choosing.md recommends."""

    steps: Steps | None = None
    """N, steps of the sampler. Default: 32, or those of a distilled student."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image. Default: a quarter of the steps; 1 where the heavy network sees only a condition; those
    of a distilled student."""
    places: Places | None = None
    """Where the heavy calls are: spread evenly over all steps (even), or over the steps after the first quarter (late).
    Default: late where the model allows it."""
    switch_at: Probability | None = None
    """Time (1 is noise, 0 is data) until which a lighter network makes the steps (DuoDiff, T-Stitch): the network of
    --denoiser RUN, or a dual-rate model's own light network without a context."""
    plan: Path | None = None
    """A StepPlan as JSON, instead of --steps, --heavy, --places, --switch-at and --grid."""
    sampler: Annotated[str | None, arg(help=SAMPLER)] = None
    grid: str | None = None
    """Times of the steps: t (equal in t), log-snr (equal in log-SNR), blend:0.3 (between them) or karras. Default: the
    sampler's usual grid, in Rolling Diffusion t. There they are those of a roll, whose first frame's noise counts."""
    gamma: Annotated[Probability | None, arg(help=GAMMA)] = None
    eta: Annotated[Probability | None, arg(help=ETA)] = None
    denoiser: Annotated[str | None, arg(help=DENOISER)] = None
    codec: Path | None = None
    """Folder of the codec, if that has moved, or the run of a decoder."""
    codec_sampler: str | None = None
    """Sampler of a diffusion decoder, NAME or NAME:GAMMA. Default: as in its training."""
    codec_steps: Steps | None = None
    """Steps of a diffusion decoder. Default: as in its training."""
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight; 1 is none."""
    interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """Noise levels sigma/alpha, low to high, at which guidance acts; all if not given."""
    members: Members = 1
    """M, samples of each condition. All M share the heavy call that reads the condition."""

    def __post_init__(self) -> None:
        super().__post_init__()
        import_named("sampler", self.sampler)
        self.choice()  # refuses before any work
        check_denoiser(self.denoiser)
        if is_run(self.denoiser) and (self.plan, self.switch_at, self.heavy) == (None, None, None):
            raise ValueError(
                f"say which steps {self.denoiser} makes: --switch-at 0.6, --heavy for the other steps, or a --plan of "
                f"dualrate plan RUN --denoiser {self.denoiser} --budget 0.5x"
            )
        if self.codec_sampler is not None:
            name, _ = at_gamma(self.codec_sampler)
            import_named("sampler", name)
            sampler_named(name)

    def drawer(self, model: Model, note: Note = warnings.warn, **more: Any) -> Drawer:
        """The drawer of these options. note: takes a sentence if it has fewer heavy calls; more: fields of a `Drawer`.

        Raises what `Choice`, its `drawer` and `Drawer` raise.
        """
        model = called_by(model, self.denoiser).with_codec(self.codec, self.codec_sampler, self.codec_steps)
        return self.choice().drawer(model, note=note, guidance=self.guided, members=self.members, **more)

    @property
    def guided(self) -> Guidance:
        return Guidance(self.guidance, self.interval)

    def choice(self) -> Choice:
        """The `Choice` of these options. Raises what `read_plan` and `Choice` raise."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Choice)}
        return Choice(**{**values, "plan": None if self.plan is None else read_plan(self.plan)})
