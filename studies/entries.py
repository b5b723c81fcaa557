"""Requests of `dualrate compare` that the report of studies/report.py is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SETTLED = "@sde-dpm++2m:0.1"
PLANS = "docs/results/plans"  # plans of the pair, and grids of single networks
EVEN = "log-snr"  # the usual grid of a single network until 2026-11-26


def blended(plan: str, gamma: float) -> str:
    """A way to sample a pair; plan: blend, steps and heavy calls."""
    return f"{PLANS}/blend-{plan}.json@sde-dpm++2m:{gamma}"


def single(steps: int, grid: str = "blend-0.5") -> str:
    """A way to sample a single network, on the pair's own family of times if not another."""
    return f"{PLANS}/single/{steps}/{grid}.json{SETTLED}"


NEAR = {  # dual-25 and what decided its ratios by some metric, at 10,000 images or more, or lies between two of these
    "dual-25": (
        *(blended(plan, 0.1) for plan in ("0.7-8-2", "0.5-10-3", "0.5-12-3")),
        blended("0.5-8-2", 0.05),
    ),
    "light-10": (
        *(f"{steps}@dpm++2m" for steps in (5, 6, 8, 10)),
        *(single(steps, EVEN) for steps in (10, 12)),
        *(single(steps) for steps in (6, 8, 10, 12)),
    ),
    "light": (
        *(f"{steps}@dpm++2m" for steps in (6, 7, 8)),
        *(single(steps, EVEN) for steps in (8, 10)),
        *(single(steps) for steps in (8, 10)),
    ),
    "medium-25": (
        *(f"{steps}@dpm++2m" for steps in (6, 7, 8)),
        *(single(steps, EVEN) for steps in (10, 12)),
        *(single(steps) for steps in (8, 10)),
    ),
}
AGAIN = {"dual-25": (1, 2), "light-10": (1, 2), "light": (1, 2), "medium-25": (1,)}  # trained from these seeds, too


def each(models: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Every model with every of its ways to sample."""
    return [(name, how) for name, ways in models.items() for how in ways]


def trained_alike(rows: Iterable[tuple[str, str]], again: Mapping[str, Sequence[int]] = {}) -> list[str]:
    """Entries of released models of Fashion-MNIST, each under a way to sample. again: further seeds of a model."""
    return [f"{name}={_trained(f'weights/fashion-mnist-{name}', again.get(name, ()))}:{how}" for name, how in rows]


def _trained(run: str, again: Sequence[int]) -> str:
    """A run, and the same from other seeds."""
    return ",".join((run, *(f"{run}-seed{seed}" for seed in again)))
