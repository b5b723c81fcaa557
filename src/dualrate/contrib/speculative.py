"""Speculative sampling: cheap drafts of several steps, verified by one call of the heavy network, whose law is exact.

A round of a row that stands at step i of N:

    draft    z_k+1 = m_p(z_k) + sqrt(v_k) n_k             k = i ... i + m - 1, by the draft, one after the other
    verify   m_q(z_k)                                     k = i ... i + m, one batched call of the target
    accept   u_k <= exp(-n_k . d_k - |d_k|^2 / 2)         d_k = (m_p - m_q) / sqrt(v_k), in turn up to the first refusal
    refused  z_k+1 = m_q + sqrt(v_k) (n_k - 2 e (e . n_k))   e = d_k / |d_k|: the draft's noise, reflected

Kernels of equal covariance v, N(m_p, v) and N(m_q, v), so coupled are equal as often as any coupling makes them, with
probability 2 Phi(-|d| / 2), and z_k+1 has the law N(m_q, v) whether or not it was accepted: the images have the law of
the target at every step. A round whose drafts are all accepted makes one more step, from the last state verified. So a
row advances by 1 to m + 1 steps a call: less latency where a batch costs as much time as a row, never fewer MACs.

Noise and u are keyed by (image seed, step). A step that is drafted again after a refusal draws the same: nothing was
decided by them before, since verifying ends at the refusal. So an image depends on its seed and on m, and with a draft
that is the target it is the image of `sample`.

Source: De Bortoli et al., "Accelerated diffusion models via speculative sampling", ICML 2025 (arXiv 2501.05370), which
halves the calls of the target at an exact law. Differences: the draft may be the light network of the target's own
dual-rate model, with the context of the last state that was verified; a frozen draft repeats the target's x_hat, not
its drift, from the state before the one drafted from, which is not called ahead of its round.

Rows advance at different rates, so this is another loop: `trajectory` has one time for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, cast

import torch
from torch import Tensor

from dualrate.config.ranges import Range, checked
from dualrate.denoisers.denoiser import Denoiser, check_labels, device_of, posterior_mean
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import Gaussian, GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond, Context, Refresh
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.step import Step
from dualrate.sampling.trajectory import StepNoise, first_state

Window = Annotated[int, Range(0, 10_000)]
Draft = Callable[[Tensor, Tensor, Context, Cond], Tensor]
"""(z, t, latest, cond) -> x_hat; latest: context and x_hat of the last state that the target was called at."""


def light(denoiser: Denoiser) -> Draft:
    """The light network, with the latest context of the target, which is the same dual-rate denoiser."""
    return lambda z, t, latest, cond: denoiser.denoise(z, t, latest.aged(), cond)


def other(denoiser: Denoiser) -> Draft:
    """Another model of the same shape and process."""
    return lambda z, t, latest, cond: posterior_mean(denoiser, z, t, cond)


def frozen(z: Tensor, t: Tensor, latest: Context, cond: Cond) -> Tensor:
    """The target's latest x_hat, which costs nothing."""
    assert latest.x_hat is not None
    return latest.x_hat


@dataclass(frozen=True)
class Speculated:
    """Images, and what they took. Of the N steps of an image N - calls are accepted drafts.

    z:        (B, ...) at the plan's last time
    calls:    (B,) calls of the target, one after the other: the latency
    verified: (B,) rows of these calls; drafted: (B,) rows of the draft's
    """

    z: Tensor
    calls: Tensor
    verified: Tensor
    drafted: Tensor


def reflection_coupling(p: Gaussian, q: Gaussian, normal: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A draw of q, and whether it is that of p with this noise: (B, ...), (B,). Their variances are equal.

    normal: (B, ...) standard normal; uniform: (B,) in (0, 1)
    """
    d = ((p.mean - q.mean) / q.variance.sqrt()).flatten(1).double()
    along, square = (normal.flatten(1) * d).sum(1), d.square().sum(1)
    accepted = uniform.log() <= -along - square / 2
    reflected = normal - (2 * along / square.clamp_min(torch.finfo(square.dtype).tiny))[:, None].mul(d).view_as(normal)
    chosen = accepted.view(-1, *[1] * (normal.ndim - 1))
    return torch.where(chosen, p.sample(normal), q.sample(reflected.to(normal))), accepted


@torch.no_grad()
def speculate(
    target: Denoiser,
    draft: Draft,
    step: Step,
    plan: StepPlan,
    shape: Sequence[int],
    seeds: Sequence[int],
    label: Sequence[int] | None = None,
    *,
    window: int = 4,
    device: torch.device | str | None = None,
) -> Speculated:
    """One batch of images with the law of `target` called at every step: `light`, `other` or `frozen` drafts.

    plan: a heavy call at every step, as StepPlan.uniform(32) has; shape, seeds, label, device: as of `sample_batches`
    window: m, the most steps that are drafted before a call
    Raises ValueError for a step that is not ancestral, of Gaussian noise, a plan that reuses contexts, a window out of
    range, and a guided dual-rate target, whose contexts have two rows an image.
    """
    if not (isinstance(step, Reverse) and isinstance(step.process, GaussianProcess) and step.draws_noise):
        raise ValueError(f"speculative sampling couples the kernels of ancestral steps, got {step}: use Ancestral")
    if set(plan.refresh) != {Refresh.FULL}:
        raise ValueError(
            f"speculative sampling has the law of a heavy call at every step, got {plan.num_heavy} in "
            f"{plan.num_steps} steps: pass StepPlan.uniform({plan.num_steps})"
        )
    window = checked("window", window, Window)
    if label is not None:
        check_labels(target, label)
    device = device_of(target, device)
    draws = Draws(0, torch.tensor(list(seeds), dtype=torch.int64, device=device))
    cond = Cond(None if label is None else torch.tensor(list(label), dtype=torch.int64, device=device))
    steps, times = range(plan.num_steps), torch.tensor(plan.t, dtype=torch.float64)
    noise = StepNoise(step.process, draws, plan.num_steps, shape)
    normals = torch.stack([noise(k, 0) for k in steps])  # (N, B, ...)
    uniforms = torch.stack([draws.uniform(f"step {k} accept") for k in steps])

    def kernel(x_hat: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        return cast(Gaussian, step.kernel(lambda *_: x_hat, z, t, s))

    z, latest = first_state(step.process, draws, shape), Context()
    done, counts = torch.empty_like(z), torch.zeros(3, len(z), dtype=torch.int64)
    live, at = torch.arange(len(z)), torch.zeros(len(z), dtype=torch.int64)  # rows that are not done, and their steps
    while len(live):
        reach = (plan.num_steps - 1 - at).clamp(max=0 if latest.x_hat is None else window)
        counts[:, live] += torch.stack((torch.ones_like(reach), reach + 1, reach))

        # A pair is a row and how far it is from where the row stands; pair[j, row] is its place among them all
        offset, row = (torch.arange(int(reach.max()) + 1)[:, None] <= reach).nonzero(as_tuple=True)
        pair = torch.full((int(offset.max()) + 1, len(z)), -1)
        pair[offset, row] = torch.arange(len(row))
        k, of = at[row] + offset, cond[live[row]]
        t, s = times[k].to(z.device), times[k + 1].to(z.device)
        normal, uniform = normals[k, live[row]], uniforms[k, live[row]]

        # Draft
        path, mean = z.new_empty(len(row), *z.shape[1:]), z.new_zeros(len(row), *z.shape[1:])
        path[pair[0]] = z
        for j in range(len(pair) - 1):
            drafting = (reach > j).nonzero()[:, 0]
            here, after = pair[j, drafting], pair[j + 1, drafting]
            p = kernel(draft(path[here], t[here], latest.rows(drafting), of[here]), path[here], t[here], s[here])
            mean[here], path[after] = p.mean, p.sample(normal[here])

        # Verify
        context = target.encode(path, t, of)
        if any(len(feature) != len(path) for feature in context.features):
            raise ValueError("a guided context has two rows an image, which no draft takes: sample without guidance")
        x_hat = target.denoise(path, t, context, of)
        q = kernel(x_hat, path, t, s)
        samples, good = reflection_coupling(Gaussian(mean, q.variance), q, normal, uniform)

        # Accept
        drafted = offset < reach[row]
        passed = (good.cpu() & drafted)[pair].logical_and(pair >= 0).long().cumprod(0).sum(0)
        last = pair[passed, torch.arange(len(z))]  # of each row the pair whose step is the last one that is decided
        z = torch.where(_like(drafted[last], samples), samples[last], q.sample(normal)[last])
        if step.process.ends(times[-1:]):
            z = torch.where(_like(k[last] + 1 == plan.num_steps, z), x_hat[last], z)
        latest, at = replace(context, x_hat=x_hat).rows(last), at + passed + 1
        ends, goes_on = (at == plan.num_steps).nonzero()[:, 0], (at < plan.num_steps).nonzero()[:, 0]
        done[live[ends]] = z[ends]
        z, latest, live, at = z[goes_on], latest.rows(goes_on), live[goes_on], at[goes_on]
    return Speculated(done, *counts)


def _like(rows: Tensor, like: Tensor) -> Tensor:
    return rows.to(like.device).view(-1, *[1] * (like.ndim - 1))
