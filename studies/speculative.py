"""Speculative sampling: how many drafts are accepted, how many heavy calls in turn an image takes, and its MACs.

    OMP_NUM_THREADS=1 .venv/bin/python studies/speculative.py --images 200

A dual-rate model verifies; its light network with the latest context drafts, or its frozen x_hat, or another model
(--other). Prints a table in Markdown; `sample` at every step takes N calls of N rows.
"""

from __future__ import annotations

import torch
from common import command, load, markdown, on_one_thread

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.contrib.speculative import Draft, frozen, light, other, speculate
from dualrate.denoisers.denoiser import Metered

BATCH = 50
HEADER = (
    "draft", "N", "gamma", "m", "accepted", "by quarters of the steps", "calls in turn", "heavy rows", "drafts",
    "MACs over heavy at every step",
)  # fmt: skip


def line(model: dr.Model, name: str, rough: dr.Model | None, steps: int, gamma: float, window: int, images: int):
    """A row of the table; every number is a mean over images, `accepted` over the drafts that were verified."""
    target = Metered(model.denoiser)
    drafts: dict[str, Draft] = {"light": light(target), "frozen": frozen}
    beside = Metered((rough or model).denoiser)
    draft = drafts[name] if name in drafts else other(beside)
    step, plan, found = dr.Ancestral(model.gaussian, gamma), dr.StepPlan.uniform(steps), []
    for first in range(0, images, BATCH):
        seeds = range(first, min(first + BATCH, images))
        labels = [seed % model.num_classes for seed in seeds] if model.num_classes else None
        found.append(speculate(target, draft, step, plan, model.shape, seeds, labels, window=window))
    calls, verified, drafted, coupled, accepted = (
        torch.cat([getattr(one, part) for one in found]).double()
        for part in ("calls", "verified", "drafted", "coupled", "accepted")
    )
    macs = sum(
        one.meter.heavy * cost.heavy + one.meter.light * cost.light
        for one, cost in ((target, model.call_cost), (beside, (rough or model).call_cost))
    )
    cost = model.call_cost
    quarters = zip(accepted.chunk(4, 1), coupled.chunk(4, 1), strict=True)
    return (
        name, str(steps), f"{gamma:g}", str(window), f"{accepted.sum() / coupled.sum():.3f}",
        " ".join(f"{yes.sum() / tried.sum().clamp_min(1):.2f}" for yes, tried in quarters),
        f"{calls.mean():.1f}", f"{verified.mean():.1f}", f"{drafted.mean():.1f}",
        f"{macs / images / (steps * (cost.heavy + (not cost.own) * cost.light)):.2f}",
    )  # fmt: skip


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="weights/fashion-mnist-retrofit")
    parser.add_argument("--other", help="a model that drafts besides, such as weights/fashion-mnist-light")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--gamma", type=float, nargs="+", default=[0, 1])
    parser.add_argument("--window", type=int, nargs="+", default=[4])
    parser.add_argument("--images", type=int, default=200)
    asked = parser.parse_args()
    on_one_thread()
    model, rough, progress = load(asked.model), load(asked.other) if asked.other else None, reporter()
    names = ["light", "frozen", *([asked.other] if asked.other else [])]
    rows = []
    for name in names:
        for steps in asked.steps:
            for gamma in asked.gamma:
                for window in asked.window:
                    rows.append(line(model, name, rough, steps, gamma, window, asked.images))
                    progress.note(" ".join(rows[-1]))
    print(markdown(HEADER, rows, texts=1))


if __name__ == "__main__":
    main()
