"""A sampler of your own: the midpoint method, one of second order. Every command knows it by `module:name`.

    export PYTHONPATH=.     # so that Python finds examples/
    dualrate sample RUN --steps 8 --sampler examples.own_sampler:Midpoint --out out/midpoint
    dualrate compare RUN:8@examples.own_sampler:Midpoint RUN:16@ddim --out out/midpoint.html

RUN is a model of one network, such as weights/fashion-mnist-light. A sampler of a pair has to keep the forward law of
(z_s, z_t), and says so by `markovian = True`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dualrate as dr
from dualrate.sampling.step import Carry, Denoise, Draw, Stepped


@dataclass(frozen=True)
class Midpoint(dr.Step):
    """DDIM over the whole step, with the x_hat that is found half way."""

    process: dr.GaussianProcess
    order = 2  # no annotation: a fact about the class, not a field
    calls_per_step = 2
    draws_noise = False

    def __call__(self, denoise: Denoise, z: Tensor, t: Tensor, s: Tensor, draw: Draw, carry: Carry) -> Stepped:
        ddim, middle = dr.DDIM(self.process), (t + s) / 2
        z_middle, _ = ddim(denoise, z, t, middle, draw, carry)
        x_hat = denoise(z_middle, middle)
        return ddim(lambda z, t: x_hat, z, t, s, draw, carry)
