"""Fashion-MNIST, 28 x 28: single networks of six sizes and pairs of them, for two hours of one CPU core each.

Each has the same seconds of training, the rate annealed to zero: the models of docs/results/settled.md (ITERATIONS).
Patches of 2 give levels of 14 x 14 (convolutions) and 7 x 7 (49 tokens, transformer blocks). The light network keeps a
separate convolutional level for fine detail and shrinks the transformer, as the paper's does. No augmentation:
mirrored or shifted shoes are no longer Fashion-MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from dualrate.config.ranges import Ranged
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.methods.times import TimeSampler
from dualrate.networks.body import BodyConfig
from dualrate.networks.dis import DiSConfig
from dualrate.networks.dit import DiTConfig
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.shared import one_or_two, training
from dualrate.recipes.students import DISTILLING, StudentRecipe
from dualrate.system.progress import PlainReporter
from dualrate.training.config import FitConfig, OptimConfig

Pair = Literal["dual-45", "dual-25", "dual-17"]  # of networks
Single = Literal["heavy", "medium-45", "medium-25", "light", "light-10", "light-05"]


def network(conv: int, transformer: int, depth: int) -> UViTConfig:
    """One convolution block down and up at 14 x 14, `depth` transformer blocks at 7 x 7."""
    return UViTConfig(
        image_size=28,
        image_channels=1,
        levels=(Level("conv", conv, 1), Level("transformer", transformer, depth)),
        num_classes=10,
        patch=2,
        embedding=128,
        head_dim=next(size for size in (64, 48, 40) if transformer % size == 0),
    )


HEAVY = network(conv=64, transformer=192, depth=6)  # 167 million MACs
LIGHT = network(conv=48, transformer=96, depth=2)  # 29 million, 0.17 of heavy
NETWORKS: dict[Single, UViTConfig] = {
    "heavy": HEAVY,
    "medium-45": network(conv=56, transformer=128, depth=5),  # 75 million, 0.45
    "medium-25": network(conv=56, transformer=96, depth=3),  # 41 million, 0.25
    "light": LIGHT,
    "light-10": network(conv=32, transformer=80, depth=2),  # 16 million, 0.1
    "light-05": network(conv=24, transformer=48, depth=2),  # 8 million, 0.05
}
PAIRS: dict[Pair, tuple[Single, Single]] = {
    "dual-45": ("medium-45", "light"),
    "dual-25": ("medium-25", "light-10"),
    "dual-17": ("light", "light-05"),
}
ITERATIONS = {  # of equal processor time: measured by interleaved rounds
    "heavy": 14_500,
    "medium-45": 27_000,
    "medium-25": 44_000,
    "light": 64_000,
    "light-10": 89_000,
    "light-05": 124_000,
    "dual-45": 31_000,
    "dual-25": 46_500,
    "dual-17": 67_000,
}
BETTER_ALONE = (
    "a single network, trained for as long, makes better small images (FD-EfficientNet-Lite0 573, a pair 837, in 16 "
    "steps after 360 s of a CPU core on Fashion-MNIST)"
)
FIT = training(7000, 128, 7e-4, 300, ema_halflife=50_000, sample_every=1000)


def annealed(name: str) -> FitConfig:
    optim = replace(FIT.optim, decay="cosine")
    return replace(FIT, iterations=ITERATIONS[name], optim=optim, checkpoint_every=500, sample_every=5000)


def single(name: Single) -> Experiment:
    """One network of this size, called alike at every step. Raises KeyError for another name."""
    return Experiment(f"fashion-mnist-{name}", OneNetwork(NETWORKS[name]), DenoisingConfig(), annealed(name))


def dual(name: Pair = "dual-45") -> Experiment:
    """Two networks, trained together for plans of 1 to 8 heavy calls, the first late. Raises KeyError for another name.

    The encoder is no larger than it has to be to be as right as the heavy network (docs/results/tried.md).
    """
    times = TimeSampler(heavy=(1, 8), first=(0.6, 0.9))
    encoder, light = PAIRS[name]
    networks = TwoNetworks(NETWORKS[encoder], NETWORKS[light])
    return Experiment(f"fashion-mnist-{name}", networks, DenoisingConfig(times=times), annealed(name))


Flat = Literal["dit", "dis"]
FLAT: dict[Flat, BodyConfig] = {  # of about light's multiply-adds
    "dit": DiTConfig(28, 1, 96, 5, 10, patch=4, head_dim=32),  # 30 million
    "dis": DiSConfig(28, 1, 112, 5, 10, patch=4, head_dim=32),  # 31 million
}


@dataclass(frozen=True)
class FashionMnistFlat(Ranged):
    """A DiT or a DiS. Options that are not listed here come after that: give --body with --help to see all of them."""

    body: Flat = "dit"
    """dit: attention. dis: state spaces, several times slower on a CPU."""
    rate: Literal["single", "dual"] = "single"
    """single: one network at every step. dual: that now and then, and a lighter one of its kind at every step."""

    def __call__(self) -> Experiment:
        body = FLAT[self.body]
        light, name = None if self.rate == "single" else body.lighter(), f"fashion-mnist-{self.body}"
        return one_or_two(f"{name}{'-dual' * bool(light)}", body, light, FIT, DataConfig())


def small(seconds: float = 120) -> Experiment:
    """A dual-rate model: its samples are clothes after 20 seconds of one CPU core, better after 120.

    Small networks make many small updates, whose number counts most at this length.
    """
    networks = TwoNetworks(network(conv=32, transformer=96, depth=2), network(conv=16, transformer=48, depth=1))
    optim = OptimConfig(lr=3e-3, warmup=30)
    clock = {"iterations": None, "max_seconds": seconds}
    fit = replace(FIT, batch_size=64, optim=optim, ema_halflife=10_000, log_every=10, **clock)
    return Experiment("fashion-mnist-small", networks, DenoisingConfig(TimeSampler(heavy=(4, 32))), fit)


def small_with_advice() -> Experiment:
    """`small`, with a word on what is better."""
    PlainReporter().note(f"{BETTER_ALONE}: dualrate train fashion-mnist-first")
    return small()


def first(seconds: float = 120) -> Experiment:
    """One network for a first look: its samples are clothes after a minute of one CPU core."""
    optim = OptimConfig(lr=3e-3, warmup=100)
    clock = {"iterations": None, "max_seconds": seconds}
    fit = replace(FIT, batch_size=32, optim=optim, ema_halflife=5000, log_every=10, **clock)
    return Experiment("fashion-mnist-first", OneNetwork(network(48, 128, 3)), DenoisingConfig(), fit)


def early_exit() -> Experiment:
    """Exits of the heavy network, whose run --method.backbone-from names: ten minutes of one CPU core."""
    fit = training(500, 32, 2e-3, 20, decay="cosine", ema_halflife=2000, sample_every=250)
    return Experiment("fashion-mnist-early-exit", EarlyExitNetwork(HEAVY), EarlyExitConfig(), fit)


def distilled() -> StudentRecipe:
    """Students of the heavy model, about 35 minutes of one CPU core each."""
    return StudentRecipe(None, LIGHT, DISTILLING)


RECIPES = {
    "fashion-mnist-first": ("one network, for a first look: two minutes", first),
    "fashion-mnist-small": ("two small networks: two minutes", small_with_advice),
    **{f"fashion-mnist-{name}": (f"one network: {name}", partial(single, name)) for name in NETWORKS},
    **{f"fashion-mnist-{name}": (f"two networks: {' and '.join(PAIRS[name])}", partial(dual, name)) for name in PAIRS},
    "fashion-mnist-flat": ("a DiT or a DiS, at one rate or two", FashionMnistFlat()),
}
