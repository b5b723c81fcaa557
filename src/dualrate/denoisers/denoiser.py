"""Denoisers: what a sampler calls.

    encoder  E(z_tau, tau, label)             -> context     H times per image
    light    g(z_t, t, context, tau, label)   -> x_hat       N times per image

A plain network is the case where `encode` returns an empty context. Networks see z_t and log_snr and know neither
schedule nor plan; here their output becomes x_hat, in float32: v of a Gaussian process, logits of a categorical one
(`Process.x_hat`).

Source: Dual-Rate Diffusion (Bartosh et al. 2026, arXiv 2605.18190). `Context.x_hat` is ours: an encoder that keeps its
output head has already denoised (z_tau, tau), so the step it was refreshed for needs no light call.

A conditional denoiser makes x of a tensor y that stays the same over the whole trajectory (`Cond.given`):

    single-rate   x_hat(z_t, y, t)                                             N calls a sample
    dual-rate     context = E(y);  x_hat = g(z_t, t, context)                  one heavy call and N light ones

    both rates    features = R(y);  context = E(z_tau, tau; features);  x_hat = g(z_t, t, context; features)

A context of y alone has no time: it never ages, and any sampler may use it (`Reuse.FREE`). All M samples of one y share
it, so a sample costs c_E / M + N c_g. Of both rates, y is read before the first step (`Denoiser.read`), and plans are
those of the context that ages: c_R / M + H c_E + N c_g. Where y is a latent, this is a decoder (Unified Latents, Heek
et al. 2026, arXiv 2602.17270), single-rate in the paper; two rates are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dualrate.diffusion.context import Cond, Context, Refresh, Reuse
from dualrate.diffusion.process import Process, per_row
from dualrate.networks.blocks import add_shared
from dualrate.system.device import pick_device


class Denoiser(ABC):
    """A model as a sampler calls it. A class with `reuse`, `encode` and `denoise` is one without deriving from this.

    reuse:         which samplers may use a context at a later time than its own
    between:       actions on the context, in turn, of the steps between two heavy calls, where a plan has nothing but
                   the number of heavy calls. A PARTIAL step calls `renew`
    alone_differs: whether a step without a context costs something else than a light call: it runs another network, or
                   the whole of one
    varies:        whether the cost of a call depends on its rows; an image's cost is then a mean over images
    """

    reuse: Any  # a Reuse. Any: a property serves as well
    between: Any = (Refresh.KEEP,)
    alone_differs: Any = False
    varies: Any = False

    def __repr__(self) -> str:
        """The denoiser with its fields, but of a network the class alone."""
        named = {name: type(v).__name__ if isinstance(v, nn.Module) else repr(v) for name, v in vars(self).items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in named.items())})"

    @abstractmethod
    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """A heavy call. z: (B, C, H, W); t: (B,) or ()."""

    @abstractmethod
    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """x_hat: (B, C, H, W) float32, the estimate of E[x | z_t, context]."""

    def read(self, cond: Cond) -> Cond:
        """The condition with its features, for all steps and all its samples: with none, unless overridden.

        cond: for M samples of each condition it has a label, if any, for each condition
        """
        return cond

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        """The context with a part computed again, and x_hat if the call computes it, for less than a heavy call.

        Raises ValueError for a denoiser that cannot.
        """
        raise ValueError(f"{type(self).__name__} has no partial steps: use toca or duca, or make the step keep or full")


def abilities(denoiser: Denoiser) -> Denoiser:
    """The holder of a denoiser's `between`, `alone_differs` and `varies`: itself, if it derives from `Denoiser`.

    For any other it is the class `Denoiser`, with the usual values.
    """
    return denoiser if isinstance(denoiser, Denoiser) else Denoiser  # pyright: ignore[reportReturnType]


def read(denoiser: Denoiser, cond: Cond) -> Cond:
    """The condition as `Denoiser.read` returns it; unchanged where the denoiser does not derive from `Denoiser`."""
    return denoiser.read(cond) if isinstance(denoiser, Denoiser) else cond


@runtime_checkable
class Labelled(Protocol):
    """A module that embeds labels: `num_classes` of them, and whether there is a null class after these."""

    num_classes: int
    null: bool


def check_labels(denoiser: Denoiser, labels: Sequence[int]) -> None:
    """Raise ValueError for labels that its networks have no embedding of, where their number can be seen.

    On a GPU such a label would end the process.
    """
    tables = [table for network in networks_of(denoiser) for table in _tables(network)]
    count = min((table.num_classes + table.null for table in tables if table.num_classes), default=0)
    strange = [label for label in labels if label not in range(count)]
    if tables and strange:
        rule = f"are 0 to {count - 1}" if count else "are none"
        raise ValueError(f"the labels that these networks know {rule}, got {strange[0]!r}")


_TABLES: WeakKeyDictionary[nn.Module, list[ref[nn.Module]]] = WeakKeyDictionary()  # of every network that was asked


def _tables(network: nn.Module) -> list[Any]:
    """The modules of a network that embed labels.

    They are cached for each network, which may have thousands of modules, and looked up again when one was deleted.
    """
    tables = [table() for table in _TABLES[network]] if network in _TABLES else [None]
    if None in tables:
        tables = [part for part in network.modules() if isinstance(part, Labelled)]
        _TABLES[network] = list(map(ref, tables))
    return tables


def device_of(denoiser: Denoiser, device: torch.device | str | None) -> torch.device:
    """This device. None: that of the denoiser's networks, or where none are seen, `pick_device`'s."""
    if device is None:
        weights = (weight for network in networks_of(denoiser) for weight in network.parameters())
        return next((weight.device for weight in weights), None) or pick_device(None)
    return torch.device(device)


def networks_of(value: object) -> Iterator[nn.Module]:
    """Yields the networks of a denoiser, and of all denoisers within it."""
    if isinstance(value, nn.Module):
        yield value
    elif is_dataclass(value):
        for part in vars(value).values():
            yield from networks_of(part)


def modules_of(value: object) -> Iterator[nn.Module]:
    """Yields all modules within a denoiser."""
    for network in networks_of(value):
        yield from network.modules()


def condition_of(cond: Cond) -> tuple[Tensor | None, ...]:
    """Arguments of a network after z and log_snr: (label,), or (y, label) where there is a y."""
    return (cond.label,) if cond.given is None else (cond.given, cond.label)


def posterior_mean(denoiser: Denoiser, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """x_hat of a denoiser that makes its heavy call here."""
    return denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)


@dataclass(frozen=True, repr=False)
class Plain(Denoiser):
    """One network at every step. network: (z, log_snr, label) -> output, or (z, log_snr, y, label) where y is given."""

    network: nn.Module
    process: Process
    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return Context()

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        log_snr = self.process.log_snr(t).to(z.dtype)
        return self.process.x_hat(z, self.network(z, per_row(log_snr, z), *condition_of(cond)).to(z.dtype), log_snr)


@dataclass(frozen=True, repr=False)
class DualRate(Denoiser):
    """A heavy context encoder and a light denoiser.

    encoder: (z_tau, log_snr_tau, label), or (z_tau, log_snr_tau, y, label) where y is given -> (features, output or
             None), features as the light network takes them
    light:   (z_t, log_snr_t, label, features, log_snr_tau, present) -> output; no features: the light network alone
    """

    encoder: nn.Module
    light: nn.Module
    process: Process
    reuse: Reuse = Reuse.MARKOV

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        log_snr = self.process.log_snr(t).to(z.dtype)
        features, output = self.heavy(z, per_row(log_snr, z), cond)
        x_hat = None if output is None else self.process.x_hat(z, output.to(z.dtype), log_snr)
        return Context(features, tau=t, x_hat=x_hat)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        log_snr = self.process.log_snr(t).to(z.dtype)
        tau = None if context.tau is None else per_row(self.process.log_snr(context.tau).to(z.dtype), z)
        output = self.called(z, per_row(log_snr, z), cond, context, tau)
        return self.process.x_hat(z, output.to(z.dtype), log_snr)

    def heavy(self, z: Tensor, log_snr: Tensor, cond: Cond) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The encoder's features and output. log_snr: (B,)"""
        return self.encoder(z, log_snr, *condition_of(cond))

    def called(self, z: Tensor, log_snr: Tensor, cond: Cond, context: Context, tau: Tensor | None) -> Tensor:
        """The light network's output. log_snr, tau: (B,), log-SNR both."""
        return self.light(z, log_snr, cond.label, context.features, tau, context.present)


@dataclass(frozen=True, repr=False)
class Conditional(Plain):
    """One network at every step. network: (z_t, log_snr, y, label) -> v."""

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        """Raises ValueError where `cond` has no y."""
        given_of(cond)
        return super().denoise(z, t, context, cond)


@dataclass(frozen=True, repr=False)
class DualRateConditional(DualRate):
    """A heavy network on y, whatever z and t are when it is called, and a light one on z_t.

    encoder: (log_snr at t = 1, y, label) -> features, already at the light network's widths
    light:   (z_t, log_snr, label, features) -> v
    Of M samples a condition, `cond.given` has a row each condition and z one each sample; so has the context.
    """

    reuse: Reuse = Reuse.FREE

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        """Raises ValueError where `cond` has no y."""
        return Context(features_of(self.encoder, self.process, cond))

    def called(self, z: Tensor, log_snr: Tensor, cond: Cond, context: Context, tau: Tensor | None) -> Tensor:
        """Raises ValueError without a context: then nothing is known of y."""
        if not context.features:
            raise ValueError("the light network sees the condition through the heavy call: begin the plan with one")
        return self.light(z, log_snr, cond.label, context.features)


@dataclass(frozen=True, repr=False)
class BothRates(DualRate):
    """A heavy network on y, once; a second one on z_tau, whose context ages; and a light one.

    reader:  (log_snr at t = 1, y, label) -> features: of the light network, then as many of the encoder
    encoder: (z_tau, log_snr_tau, label, features of y) -> (features, output or None)
    light:   as of `DualRate`; without a context its features are those of y
    A `cond` that was not read is read at each call.
    """

    reader: nn.Module = field(kw_only=True)

    def read(self, cond: Cond) -> Cond:
        """Raises ValueError where `cond` has no y."""
        return cond if cond.features else replace(cond, features=features_of(self.reader, self.process, cond))

    def heavy(self, z: Tensor, log_snr: Tensor, cond: Cond) -> tuple[tuple[Tensor, ...], Tensor | None]:
        features = self.read(cond).features
        return self.encoder(z, log_snr, cond.label, features[len(features) // 2 :])

    def called(self, z: Tensor, log_snr: Tensor, cond: Cond, context: Context, tau: Tensor | None) -> Tensor:
        features = self.read(cond).features
        features = features[: len(features) // 2]
        if context.features:
            pairs = zip(context.features, features, strict=True)
            features = tuple(add_shared(ageing, of_y) for ageing, of_y in pairs)
        return self.light(z, log_snr, cond.label, features, tau, context.present)


def features_of(network: nn.Module, process: Process, cond: Cond) -> tuple[Tensor, ...]:
    """Features that a network, (log_snr at t = 1, y, label) -> features, computes of y.

    Raises ValueError where there is no y.
    """
    y = given_of(cond)
    label = None if cond.label is None else cond.label[:: max(1, len(cond.label) // max(1, len(y)))]
    log_snr = process.log_snr(torch.ones((), dtype=torch.float64)).to(y.dtype)
    return network(per_row(log_snr, y), y, label)


def given_of(cond: Cond) -> Tensor:
    """y, the tensor of a condition. Raises ValueError where there is none."""
    if cond.given is None:
        raise ValueError("this model makes a sample of a condition, got none: pass Cond(label, given)")
    return cond.given


@dataclass
class Meter:
    """Rows (image x guidance branch) seen by each network: of the heavy one fewer, where samples share a condition.

    partial, alone: of the light calls, those that renew a part of a context, and those without one
    read: of conditions, before the first step
    """

    heavy: int = 0
    light: int = 0
    partial: int = 0
    alone: int = 0
    read: int = 0


@dataclass(frozen=True)
class Wrapper(Denoiser):
    """A denoiser that calls another one, and has its contexts: a subclass overrides the calls that it changes."""

    inner: Denoiser

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def read(self, cond: Cond) -> Cond:
        return read(self.inner, cond)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self.inner.encode(z, t, cond)

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        return self.inner.renew(z, t, context, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.inner.denoise(z, t, context, cond)


@dataclass(frozen=True)
class Metered(Wrapper):
    """Counts the rows of every network call. Sits innermost, so that guidance branches are counted.

    A partial refresh is a light call too. A denoise call that returns an output computed before runs no network and
    is not counted; one that carries a forward-mode derivative along counts twice.
    """

    meter: Meter = field(default_factory=Meter)

    def read(self, cond: Cond) -> Cond:
        with_features = read(self.inner, cond)
        if with_features.features and not cond.features:
            self.meter.read += len(with_features.features[0])
        return with_features

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        context = self.inner.encode(z, t, self.read(cond))
        if context.features or context.x_hat is not None:
            self.meter.heavy += len(context.features[0]) if context.features else _rows(z)
        return context

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        self.meter.light += z.shape[0]
        self.meter.partial += z.shape[0]
        return self.inner.renew(z, t, context, self.read(cond))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        x_hat = self.inner.denoise(z, t, context, cond if context.x_hat is not None else self.read(cond))
        if context.x_hat is None:
            self.meter.light += _rows(z)
            self.meter.alone += 0 if context.features else _rows(z)
        return x_hat


def _rows(z: Tensor) -> int:
    """Rows of a call, twice as many with a forward-mode derivative."""
    return len(z) * (1 if forward_ad.unpack_dual(z).tangent is None else 2)
