"""Decoders of Fashion-MNIST's latents, trained on what a first stage left: `fashion-mnist-latents-first`, or any codec.

Heavy, medium, small and light are single-rate; what dual and retrofit are is said in `decoders.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dualrate.config.ranges import Ranged
from dualrate.experiments.experiment import Experiment
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes.decoders import decoder
from dualrate.recipes.fashion_mnist import network
from dualrate.recipes.fashion_mnist_latents import FIT, WEIGHTING

Size = Literal["heavy", "medium", "small", "light"]
Kind = Literal[Size, "dual", "retrofit"]
SIZES: dict[str, UViTConfig] = {
    name: replace(network(*widths), num_classes=0)
    for name, widths in {
        "heavy": (56, 128, 4),
        "medium": (48, 96, 2),
        "small": (36, 96, 1),
        "light": (24, 64, 1),
    }.items()
}
ITERATIONS: dict[Kind, int] = {
    "heavy": 3600,
    "medium": 7000,
    "small": 11_000,
    "light": 16_000,
    "dual": 2500,
    "retrofit": 1500,
}


@dataclass(frozen=True)
class DecoderRecipe(Ranged):
    """A decoder of latents of Fashion-MNIST. The codec is looked at first; options that are not listed here come after
    that: give --codec with --help to see all of them."""

    kind: Kind = "dual"
    """heavy, medium, small or light: one network. dual: a heavy one on the latent, once, and a light one at every step.
    retrofit: the same of trained ones."""
    codec: Path = Path("runs/fashion-mnist-latents/first")
    """Whose latents it decodes: a run that trained one, or its folder."""
    heavy: Path = Path("runs/fashion-mnist-decoder-heavy")
    """The trained heavy decoder; of a retrofit."""
    light: Path = Path("runs/fashion-mnist-decoder-light")
    """The trained light decoder; of a retrofit."""
    encoder: Size = "heavy"
    """Which of the sizes sees the latent, once: of dual and retrofit."""

    def __call__(self) -> Experiment:
        """About 40 minutes of one CPU core; a retrofit 30. Raises what reading the codec raises."""
        return decoder(
            "fashion-mnist-decoder",
            self.kind,
            SIZES,
            self.codec,
            heavy=self.heavy,
            light=self.light,
            encoder=self.encoder,
            weighting=WEIGHTING,
            fit=replace(FIT, iterations=ITERATIONS[self.kind]),
        )
