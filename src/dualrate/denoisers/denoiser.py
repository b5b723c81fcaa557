"""Denoisers: what a sampler calls. A heavy `encode` now and then, a light `denoise` at every step.

    encoder  E(z_tau, tau, label)             -> context     H times per image
    light    g(z_t, t, context, tau, label)   -> x_hat       N times per image

A plain network is the case where `encode` returns an empty context. Networks see z_t and log_snr and know neither
schedule nor plan; here their output becomes x_hat, in float32: v of a Gaussian process, logits of a categorical one
(`Process.x_hat`).

Source: Dual-Rate Diffusion (Bartosh et al. 2026, arXiv 2605.18190). `Context.x_hat` is ours: an encoder that keeps its
output head has already denoised (z_tau, tau), so the step it was refreshed for needs no light call.

Counting calls: a denoiser around another one. `reuse` passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.autograd import forward_ad

from dualrate.diffusion.process import Process, per_row
from dualrate.diffusion.values import Cond, Context, Refresh, Reuse

Renewal = Callable[[Tensor, Tensor, Context, Cond], Context]  # of z, t, the context that is held, cond


class Denoiser(Protocol):
    @property
    def reuse(self) -> Reuse:
        """Which samplers may use a context at a later time than its own."""
        ...

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """A heavy call. z: (B, C, H, W); t: (B,)."""
        ...

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """x_hat: (B, C, H, W) float32, the estimate of E[x | z_t, context]."""
        ...


def renewal_if_any(denoiser: Denoiser) -> Renewal | None:
    """What makes a part of a context anew, and x_hat if that comes of it, for less than a heavy call: its `renew`."""
    return getattr(denoiser, "renew", None)


def renewal(denoiser: Denoiser) -> Renewal:
    """The same. Raises ValueError for a denoiser that has none."""
    found = renewal_if_any(denoiser)
    if found is None:
        raise ValueError(
            f"{type(denoiser).__name__} makes a context whole or keeps it, and the plan has a partial step: name a "
            "denoiser that renews a part (toca, duca), or make the step keep or full"
        )
    return found


def between(denoiser: Denoiser) -> tuple[Refresh, ...]:
    """What its steps between two heavy calls do to the context, in turn, where a plan says no more than how many there
    are: as it may say by an attribute of that name.
    """
    return getattr(denoiser, "between", (Refresh.KEEP,))


def has_exits(denoiser: Denoiser) -> bool:
    """Whether rows may leave its network before the end: what a call costs is then for its threshold to say."""
    return getattr(denoiser, "has_exits", False)


def of_network(denoiser: Denoiser, name: str) -> Any:
    """What a single network offers by that name, such as to be cut; None of any other denoiser or network."""
    return getattr(denoiser.network, name, None) if isinstance(denoiser, Plain) else None


def check_labels(denoiser: Denoiser, labels: Sequence[int]) -> None:
    """Raises ValueError for labels that its networks have no embedding of, as far as these say how many they have.

    On a GPU such a label would end the process.
    """
    tables = [part for part in _parts(denoiser) if isinstance(getattr(part, "num_classes", None), int)]
    if not tables:
        return
    counts = [
        part.num_classes + getattr(part, "null", True) for part in tables if part.num_classes
    ]  # the null class too
    known = range(min(counts, default=0))
    if strange := [label for label in labels if label not in known]:
        rule = (
            f"are 0 to {known[-1]}, got {strange[0]!r}" if known else f"are none, got {strange[0]!r}: drop the labels"
        )
        raise ValueError(f"the labels that these networks know {rule}")


def _parts(value: object) -> Iterator[Any]:
    """The modules within a denoiser."""
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif is_dataclass(value):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))


def posterior_mean(denoiser: Denoiser, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """x_hat of a denoiser that makes its heavy call here."""
    return denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)


@dataclass(frozen=True)
class Plain:
    """One network at every step. network: (z, log_snr, label) -> output."""

    network: nn.Module
    process: Process
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        log_snr = self.process.log_snr(t).to(z.dtype)
        return self.process.x_hat(z, self.network(z, per_row(log_snr, z), cond.label).to(z.dtype), log_snr)


@dataclass(frozen=True)
class DualRate:
    """A heavy context encoder and a light denoiser.

    encoder: (z_tau, log_snr_tau, label) -> (features, output or None), features as the light network takes them
    light:   (z_t, log_snr_t, label, features, log_snr_tau, present) -> output; no features: the light network alone
    """

    encoder: nn.Module
    light: nn.Module
    process: Process
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        log_snr = self.process.log_snr(t).to(z.dtype)
        features, own = self.encoder(z, per_row(log_snr, z), cond.label)
        x_hat = None if own is None else self.process.x_hat(z, own.to(z.dtype), log_snr)
        return Context(features, tau=t, x_hat=x_hat)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        log_snr = self.process.log_snr(t).to(z.dtype)
        tau = None if context.tau is None else per_row(self.process.log_snr(context.tau).to(z.dtype), z)
        output = self.light(z, per_row(log_snr, z), cond.label, context.features, tau, context.present)
        return self.process.x_hat(z, output.to(z.dtype), log_snr)


@dataclass
class Meter:
    """Rows (image x guidance branch) seen by each network.

    partial, alone: of the light calls, those that renew a part of a context, and those without one
    """

    heavy: int = 0
    light: int = 0
    partial: int = 0
    alone: int = 0


@dataclass(frozen=True)
class Metered:
    """Counts the rows of every network call. Sits innermost, so that guidance branches are counted.

    A partial refresh is a light call too. A denoise call that returns an output computed before runs no network and
    is not counted; one that carries a forward-mode derivative along counts twice.
    """

    inner: Denoiser
    meter: Meter = field(default_factory=Meter)

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        context = self.inner.encode(z, t, cond)
        if context.features or context.x_hat is not None:
            self.meter.heavy += z.shape[0]
        return context

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        self.meter.light += z.shape[0]
        self.meter.partial += z.shape[0]
        return renewal(self.inner)(z, t, context, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        x_hat = self.inner.denoise(z, t, context, cond)
        if context.x_hat is None:
            rows = z.shape[0] * (1 if forward_ad.unpack_dual(z).tangent is None else 2)
            self.meter.light += rows
            self.meter.alone += 0 if context.features else rows
        return x_hat
