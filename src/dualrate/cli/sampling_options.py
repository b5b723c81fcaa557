"""The options that say how images are drawn, and the step and plan that they mean."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from dualrate.config.imports import import_named
from dualrate.config.ranges import GuidanceWeight, HeavyCalls, NoiseLevel, Probability, Ranged, Steps
from dualrate.denoisers.catalogue import DENOISERS, SHARED
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import GAMMA as RECOMMENDED_GAMMA
from dualrate.drawing.choice import RECOMMENDED, SMOOTH, Choice, Note, Places
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.drawing.plan_search import read_plan
from dualrate.experiment.experiment import Model
from dualrate.runs.store import called_by, check_denoiser, is_run
from dualrate.sampling.catalogue import SAMPLERS, at_gamma, sampler_named, taking


def _names(markovian: bool) -> str:
    kind = {name: sampler for name, sampler in SAMPLERS.items() if sampler.markovian == markovian}
    return ", ".join(f"{name}*" if sampler.of_table else name for name, sampler in kind.items())


SAMPLER = (
    f"Where there is no default: {RECOMMENDED} at gamma {RECOMMENDED_GAMMA:g}; {SMOOTH} with a --denoiser that caches; "
    f"of a student its own, ancestral or ddim; ancestral with --eta. May reuse a dual-rate context: "
    f"{_names(markovian=True)}; for a heavy call at every step, or one network: {_names(markovian=False)}; or "
    "package.module:Class, a step of your own. "
    "*: needs `dualrate calibrate RUN` once, which measures without guidance."
)
GAMMA = (
    f"Noise level of {' and '.join(taking('gamma'))}: 0 posterior variance (of a sampler that is named, if not given), "
    "1 transition variance."
)
ETA = (
    f"Share of the noise of {' and '.join(taking('eta'))} that is drawn afresh: 1 all of it (if not given), 0 none, "
    "which is DDIM; below 1, for a heavy call at every step, or one network."
)
DENOISER = (
    f"How the networks are called. For a single network: {', '.join(DENOISERS)}, which spend less at steps without a "
    f"heavy call; {SHARED}3 shares three middle blocks. The "
    "directory of another run: its network makes the steps without a context. package.module:name: your own. If not "
    "given, as trained."
)


@dataclass(frozen=True)
class SamplingOptions(Ranged):
    """When the networks run. What is not given is as docs/choosing.md recommends."""

    steps: Steps | None = None
    """N, steps of the sampler; 32, or a distilled student's own, if not given. Heun calls the network twice in each but
    the first and the last."""
    heavy: HeavyCalls | None = None
    """H, heavy calls per image. If not given: a quarter of the steps, within what was trained; a distilled student's
    own; of one network every step. Fewer, which is said, where the encoder was trained at fewer of the steps."""
    places: Places | None = None
    """Of the heavy calls: spread evenly over the steps, or over those after the first quarter. late if not given, where
    the model was trained on steps without a context."""
    switch_at: Probability | None = None
    """Time, 1 for noise and 0 for data, until which another network makes the steps: that of --denoiser LIGHT, as in
    DuoDiff and T-Stitch, or the light one of a dual-rate model that was trained without a context too."""
    plan: Path | None = None
    """A StepPlan as JSON, instead of --steps, --heavy, --places, --switch-at, --grid and --times."""
    sampler: Annotated[str | None, arg(help=SAMPLER)] = None
    grid: str | None = None
    """Steps equal in t (t), in log-SNR (log-snr), between them (blend:0.3; 0 is t, 1 log-snr), or as in Karras et al.
    2022 (karras); the sampler's own, if not given."""
    times: tuple[Probability, ...] | None = None
    """The N + 1 times themselves, from 1 (noise) to 0 (data), instead of --steps and --grid: 1 0.7 0.3 0."""
    gamma: Annotated[Probability | None, arg(help=GAMMA)] = None
    eta: Annotated[Probability | None, arg(help=ETA)] = None
    denoiser: Annotated[str | None, arg(help=DENOISER)] = None
    codec: Path | None = None
    """Folder of the codec of a model of latents, where that is not where training found it; or a decoder's run."""
    codec_sampler: str | None = None
    """Of that codec's decoder, if it draws, or NAME:GAMMA; as it was trained, or sde-dpm++2m:0.1 of a decoder's run, if
    not given."""
    codec_steps: Steps | None = None
    """Of that codec's decoder; as it was trained, or 16 of a decoder's run, if not given."""
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight; 1 is none."""
    interval: tuple[NoiseLevel, NoiseLevel] | None = None
    """Noise levels (low, high] of sigma/alpha in which guidance acts; everywhere if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        import_named("sampler", self.sampler)
        self._choice(None if self.plan is None else StepPlan.uniform(1))  # what excludes each other, before any work
        if not is_run(self.denoiser):
            import_named("denoiser", self.denoiser)
        check_denoiser(self.denoiser)
        if is_run(self.denoiser) and self.plan is None and self.switch_at is None and self.heavy is None:
            raise ValueError(
                f"say which steps are those of {self.denoiser}: the first, until --switch-at 0.6; all but the last "
                f"--heavy 8; or by --plan, which "
                f"dualrate plan RUN --denoiser {self.denoiser} --budget 0.5x writes"
            )
        if self.codec_sampler is not None:
            name, _ = at_gamma(self.codec_sampler)
            import_named("sampler", name)
            sampler_named(name)

    def drawer(self, model: Model, note: Note = warnings.warn, **more: Any) -> Drawer:
        """What the options ask for. note: told where it has fewer heavy calls; more: fields of a `Drawer`.

        Raises what `Choice`, its `drawer` and `Drawer` do.
        """
        model = called_by(model, self.denoiser).with_codec(self.codec, self.codec_sampler, self.codec_steps)
        return self.choice().drawer(model, note=note, guidance=self.guided, **more)

    @property
    def guided(self) -> Guidance:
        return Guidance(self.guidance, self.interval)

    def choice(self) -> Choice:
        """Raises what `read_plan` and `Choice` raise."""
        return self._choice(None if self.plan is None else read_plan(self.plan))

    def _choice(self, plan: StepPlan | None) -> Choice:
        return Choice(
            self.steps,
            self.heavy,
            self.sampler,
            self.gamma,
            self.eta,
            self.grid,
            self.times,
            self.places,
            plan,
            self.switch_at,
        )
