"""Decoders as denoisers: p(x | z_0) by diffusion, given a latent z_0 that stays the same over the whole trajectory.

    single-rate   x_hat(x_t, z_0, t)                                             N calls an image
    dual-rate     context = E(z_0);  x_hat = g(x_t, t, context)                  one heavy call and N light ones

z_0 is a condition (`Cond.z_0`), so whatever takes a denoiser takes a decoder: trajectories, guidance, meters, the
denoising loss. A context that is of z_0 alone is of no time: it never ages, and any sampler may use it (`Reuse.FREE`).

Source: Unified Latents (Heek et al. 2026, arXiv 2602.17270), whose decoder is single-rate; two rates are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Plain
from dualrate.diffusion.process import Process, per_row
from dualrate.diffusion.values import Cond, Context, Reuse


@dataclass(frozen=True)
class Decoder(Plain):
    """One network at every step. network: (x_t, log_snr, z_0, label) -> v."""

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError where `cond` has no z_0."""
        log_snr = self.process.log_snr(t).to(z.dtype)
        v = self.network(z, per_row(log_snr, z), latent_of(cond), cond.label)
        return self.process.x_hat(z, v.to(z.dtype), log_snr)


@dataclass(frozen=True)
class DualRateDecoder:
    """A heavy network on z_0, whatever z and t are when it is called, and a light one on x_t.

    encoder: (log_snr at t = 1, z_0, label) -> features, already at the light network's widths
    light:   (x_t, log_snr, label, features) -> v
    """

    encoder: nn.Module
    light: nn.Module
    process: Process
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Raises ValueError where `cond` has no z_0."""
        z_0 = latent_of(cond)
        log_snr = self.process.log_snr(torch.ones((), dtype=torch.float64)).to(z_0.dtype)
        return Context(self.encoder(per_row(log_snr, z_0), z_0, cond.label))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError without a context: then nothing is known of z_0."""
        if not context.features:
            raise ValueError("a dual-rate decoder sees z_0 through its heavy call alone: begin the plan with one")
        log_snr = self.process.log_snr(t).to(z.dtype)
        v = self.light(z, per_row(log_snr, z), cond.label, context.features)
        return self.process.x_hat(z, v.to(z.dtype), log_snr)


def latent_of(cond: Cond) -> Tensor:
    """z_0. Raises ValueError where there is none."""
    if cond.z_0 is None:
        raise ValueError("a decoder makes an image of a latent, got none: pass Cond(label, z_0)")
    return cond.z_0
