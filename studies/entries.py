"""Entries of `dualrate compare` that the reports of studies/report.py are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SDE = "@sde-dpm++2m:0.2"
REDUCED = {  # few plans, for a CPU
    "heavy": ("16", "8@dpm++2m", "16@dpm++2m", *(f"{steps}{SDE}" for steps in (8, 16, 32))),
    "light": (f"32{SDE}", f"64{SDE}"),
    "dual": ("16/4", f"16/4{SDE}", f"32/8{SDE}"),
    "dual-kept": (f"16/4{SDE}", f"32/8{SDE}"),
}


FASHION = {"heavy": "heavy", "medium": "medium", "light": "light", "dual": "dual-rate"}  # model: its name on the page
# between the rungs of the ladder, where what the best rivals pay for dual-rate's scores would else be a guess
BETWEEN = (
    *(("medium", steps) for steps in ("6", "8", "15", "30")),
    *(("heavy", steps) for steps in ("6", "11")),
    *(("dual", plan) for plan in ("16/4", "32/8")),
)
SETTLED = "@sde-dpm++2m:0.1"
PLANS = "docs/results/plans"  # `dualrate plan --search` by hand: blend 0.5, six steps alone (docs/results/spectra.md)
EVEN = "log-snr"  # the usual grid of a single network until 2026-11-26
KARRAS = f"{PLANS}/karras-8.json@sde-dpm++2m:0.05"
ALONE = {  # single networks that were trained alike, under the best of 20 pairs of grid and gamma, and near them
    "light": (*(f"{steps}@dpm++2m" for steps in (5, 6, 8)), KARRAS, *(f"{n}{SETTLED}" for n in (8, 10, 12))),
    "medium-25": (*(f"{steps}@dpm++2m" for steps in (5, 6, 8)), KARRAS, *(f"{n}{SETTLED}" for n in (8, 10, 12, 14))),
    "medium-45": (*(f"{steps}@dpm++2m" for steps in (5, 6, 7, 8)), KARRAS, *(f"{n}{SETTLED}" for n in (8, 10))),
    "heavy-annealed": (*(f"{steps}@dpm++2m" for steps in (6, 8)), f"8{SETTLED}"),
}


def blended(plan: str, gamma: float) -> str:
    """A way to sample a pair; plan: blend, steps and heavy calls."""
    return f"{PLANS}/blend-{plan}.json@sde-dpm++2m:{gamma}"


def single(steps: int, grid: str = "blend-0.5") -> str:
    """A way to sample a single network, on the pair's own family of times if not another."""
    return f"{PLANS}/single/{steps}/{grid}.json{SETTLED}"


TOGETHER = {  # at two rates; less noise is what a judge likes that was not there when plans were chosen
    "dual-25": (
        *(blended(plan, 0.1) for plan in ("0.7-8-2", "0.5-10-3", "0.5-12-3")),
        *(blended(plan, 0.05) for plan in ("0.5-8-2", "0.5-10-3")),
    ),
    "dual-45": (blended("0.7-8-2", 0.1), blended("0.7-12-4", 0.1)),
}
NEAR = {  # dual-25 and what decided its ratios by some judge, at 10,000 images or more, or lies between two of these
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
SMALL_STUDENTS = {  # of medium-25, by algorithm B: the steps and heavy calls of each, at which it is sampled too
    "25-8-4": "8/4",
    "25-8-2": "8/2",
    "25-16-2": "16/2",
    "light-10-8": "8",
    "light-10-10": "10",
    "light-8": "8",
    "medium-25-4": "4",
    "medium-25-6": "6",
}
NATURAL = {  # of natural images of 16 x 16
    "dual-25": (blended("0.5-8-2", 0.2), blended("0.5-10-3", 0.15), blended("0.5-12-3", 0.1)),
    "light": (*(f"{steps}@dpm++2m" for steps in (5, 6, 7, 8, 10)), *(f"{n}{SETTLED}" for n in (8, 10, 12))),
    "light-10": (*(f"{steps}@dpm++2m" for steps in (6, 7, 8, 10, 12)), *(f"{n}{SETTLED}" for n in (10, 12, 16))),
    "heavy": ("8@dpm++2m",),
}
HEAVY = "weights/fashion-mnist-heavy-annealed"
RIVALS = (  # itself, then what spends less of it without training, or with another network for the first steps
    *(f":{steps}{SETTLED}" for steps in (6, 8, 12)),
    ":8@dpm++2m",
    *(f"+{name}:16/8" for name in ("shared-encoder", "deep-cache", "taylor", "fora")),
    *(f"+weights/fashion-mnist-light:16/{heavy}{SETTLED}" for heavy in (12, 10)),
)
FLAT = (  # the same of networks with 256 positions, among which caches by tokens choose
    *(f"heavy=runs/flat-heavy:{steps}{SETTLED}" for steps in (6, 8, 12, 16)),
    *(f"heavy=runs/flat-heavy:{steps}@dpm++2m" for steps in (8, 16)),
    *(f"heavy=runs/flat-heavy+{name}:16/8" for name in ("shared-encoder", "taylor", "fora", "toca", "duca")),
    *(f"heavy=runs/flat-heavy+runs/flat-light:16/{heavy}{SETTLED}" for heavy in (12, 10)),
    *(f"medium=runs/flat-medium:{steps}{SETTLED}" for steps in (6, 8, 12, 16, 24)),
    *(f"light=runs/flat-light:{steps}{SETTLED}" for steps in (16, 32)),
    *(f"retrofit=runs/flat-retrofit:{PLANS}/late-{plan}.json{SETTLED}" for plan in ("16-4", "14-3")),
    f"retrofit=runs/flat-retrofit:32/8{SETTLED}",
)
CACHES = ("shared-encoder", "deep-cache", "taylor", "taylor-published", "fora")
FEWER, MORE = ("16/4", "16/8"), ("32/8", "32/16")
MANY = (  # more plans of the caches, and what noise on the path does to them
    *(f"heavy={HEAVY}:{steps}@dpm++2m" for steps in (4, 6, 8, 12, 16)),
    *(f"heavy={HEAVY}+{name}:{plan}" for name in CACHES for plan in (*FEWER, *MORE)),
    f"heavy={HEAVY}+fora:{PLANS}/even-16-8-karras.json@dpm++2m",  # as published
    *(f"heavy={HEAVY}+{name}:16/8{SETTLED}" for name in ("shared-encoder", "taylor", "fora")),
    f"retrofit=weights/fashion-mnist-retrofit+forecast-context:16/8{SETTLED}",
    f"retrofit=weights/fashion-mnist-retrofit:16/8{SETTLED}",
)


def each(models: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Every model with every of its ways to sample."""
    return [(name, how) for name, ways in models.items() for how in ways]


def trained_alike(rows: Iterable[tuple[str, str]], again: Mapping[str, Sequence[int]] = {}) -> list[str]:
    """Entries of released models of Fashion-MNIST, each under a way to sample. again: further seeds of a model."""
    return [f"{name}={_trained(f'weights/fashion-mnist-{name}', again.get(name, ()))}:{how}" for name, how in rows]


def taught_alike() -> list[str]:
    """Entries of `SMALL_STUDENTS`, two trainings each."""
    rows = SMALL_STUDENTS.items()
    return [f"student-{name}={_trained(f'runs/settle-student-{name}', (1,))}:{how}" for name, how in rows]


def _trained(run: str, again: Sequence[int]) -> str:
    """A run, and the same from other seeds."""
    return ",".join((run, *(f"{run}-seed{seed}" for seed in again)))


DRAWN = {  # of decoders, those near the front
    "light": (8,),
    "small": (4, 6, 8, 12),
    "medium": (4, 6, 8),
    "heavy": (6,),
    "dual": (4, 6, 8, 12),
    "dual-medium": (4, 6, 8, 12),
    "retrofit": (6,),
}
