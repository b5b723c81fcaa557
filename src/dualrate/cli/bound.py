"""`dualrate bound`: the likelihood of held-out images, as a bound in bits per dimension."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from dualrate.cli.console import loaded
from dualrate.cli.options import AsJson, AtATime, Compile, Device, Graphs, RunDir
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import LogSNR, Range, Ranged, Seed
from dualrate.data.images import ImageSet
from dualrate.experiments.experiment import Model
from dualrate.machine.progress import Reporter, image_progress
from dualrate.measuring.drawer import Drawer
from dualrate.measuring.likelihood import FITTED_ON, GREY_LEVEL, Likelihood
from dualrate.sampling.catalogue import ANCESTRAL


@dataclass(frozen=True)
class LikelihoodBound(Ranged):
    """Bound the negative log-likelihood of held-out images, in bits per dimension, term by term.

    Of a model of tokens: in bits a token, under the whole plan; then --variance, --gamma and --end mean nothing.
    """

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions(sampler=ANCESTRAL)
    variance: Literal["measured", "own"] = "measured"
    """Of the steps: what suits training images best, measured first; or the sampler's own (--gamma)."""
    end: LogSNR = GREY_LEVEL
    """Log-SNR at which the plan is cut and the rest is rounding; by default where noise is one grey level wide."""
    num: Annotated[int, Range(2, 10_000_000)] = 500
    """Test images."""
    seed: Seed = 0
    """Of the noise."""
    batch_size: AtATime = 125
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.measuring.evaluator import messages
        from dualrate.measuring.likelihood import bits_per_dimension, check_bounded, ending, fit_variance

        if self.variance == "measured" and self.sampling.gamma is not None:
            raise ValueError("--gamma sets the variance that the measured one replaces: add --variance own")
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        check_bounded(model)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size)
        if model.experiment.codec.instant:
            self._of_tokens(drawer, progress)
            return
        plan = ending(drawer.plan, model.process.schedule, self.end)
        data, test = model.experiment.data, self._test_data(model, progress)
        how = {"end": self.end, "seed": self.seed, "progress": image_progress(progress)}
        if self.variance == "measured":
            train = data.images("train", messages(progress.note))
            count = min(FITTED_ON, len(train))
            progress.note(f"measuring the variance of {plan.num_steps} steps on {count} training images")
            drawer = replace(drawer, step=fit_variance(drawer, train, count=count, **how))
            progress.close()
        found = bits_per_dimension(drawer, test, count=self.num, **how)
        progress.close()
        before, end = model.process.schedule.log_snr(torch.tensor(plan.t[-2:], dtype=torch.float64)).tolist()
        if self.json:
            about = {"run": str(self.run_dir), "num_steps": plan.num_steps, "num_heavy": plan.num_heavy}
            print(json.dumps({**about, "sampler": drawer.sampler, "end_log_snr": end, **asdict(found)}))
            return
        print(
            f"{self.num} test images of {test.name}; {drawer.sampler}; {plan.num_steps} steps, {plan.num_heavy} heavy\n"
        )
        print(table(found))
        print(f"\n{verdict(found, _grey_levels(before))}")

    def _of_tokens(self, drawer: Drawer, progress: Reporter) -> None:
        """Which have no variance, and no rounding at the end."""
        from dualrate.measuring.likelihood import bits_per_token

        test = self._test_data(drawer.model, progress)
        how = {"count": self.num, "seed": self.seed, "progress": image_progress(progress)}
        found = bits_per_token(drawer, test, **how)
        progress.close()
        plan = drawer.plan
        if self.json:
            about = {"run": str(self.run_dir), "num_steps": plan.num_steps, "num_heavy": plan.num_heavy}
            print(json.dumps({**about, "sampler": drawer.sampler, **asdict(found)}))
            return
        print(f"{self.num} of the test data of {test.name}; {plan.num_steps} steps, {plan.num_heavy} heavy\n")
        print(f"bits a token, at most: {found.total} (standard error); the last step {found.each_step[-1]:.3f} of it")

    def _test_data(self, model: Model, progress: Reporter) -> ImageSet:
        """Raises ValueError if there are fewer than --num."""
        from dualrate.measuring.evaluator import messages

        test = model.experiment.data.images("test", messages(progress.note))
        if self.num > len(test):
            raise ValueError(f"{test.name} has {len(test)} to be tested on: --num is 2 to {len(test)}, got {self.num}")
        return test


def _grey_levels(log_snr: float) -> float:
    """The noise of a state z / alpha, in distances of two 8-bit values."""
    return math.exp((GREY_LEVEL - log_snr) / 2)


def table(found: Likelihood) -> str:
    """The terms and their sum."""
    whole = found.total.value
    lines = [f"{'term':16}{'bits/dim':>10}{'+- SE':>10}{'share':>8}"]
    for name, term in (("prior", found.prior), ("steps", found.steps), ("reconstruction", found.reconstruction)):
        lines.append(f"{name:16}{term.value:10.4f}{term.error:10.4f}{term.value / whole:8.1%}")
        if name == "steps":
            last = found.each_step[-1]
            lines.append(f"{'  the last one':16}{last:10.4f}{'':10}{last / whole:8.1%}")
    lines.append(f"{'bound':16}{whole:10.4f}{found.total.error:10.4f}")
    return "\n".join(lines)


def verdict(found: Likelihood, noise: float) -> str:
    """What the bound is mostly about. noise: in grey levels, of the state that the last step starts from."""
    fine = (found.each_step[-1] + found.reconstruction.value) / found.total.value
    return (
        "An upper bound on the mean of -log2 p(image) per value: lower is better.\n"
        f"{fine:.0%} of it is the last step and the rounding: detail below noise of {noise:.2g} grey levels."
    )
