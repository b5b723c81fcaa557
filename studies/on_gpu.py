"""The tables of docs/results/gpu.md, of the rows in docs/results/gpu: `python -m studies.on_gpu`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dualrate.report.table import significant
from studies.common import RESULTS, markdown, place

Rows = Mapping[str, Any]  # of a piece of tools/gpu, by their names
COMPARED = {
    "sampler": "images of every sampler",
    "graphs": "the same recorded as CUDA graphs, to eager calls on the GPU",
    "cache": "images of every cache",
    "method": "losses and gradients of every training method",
    "training pair": "a training of eight iterations",
    "resume": "the same, stopped half-way and resumed",
}
NETWORKS = {"imagenet-64": "ImageNet 64 x 64", "cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST"}
MODELS = {
    "dual": "two rates",
    "light": "light network alone",
    "medium": "medium",
    "large": "large",
    "corrdiff": "CorrDiff",
    "one call, dual": "two rates in one call, by CRPS",
    "one call, large": "large in one call, by CRPS",
}


def agreement(rows: Rows) -> str:
    """The largest error of each kind of comparison, in either precision."""
    lines = []
    for kind, words in COMPARED.items():
        errors = [
            [row["error"] for name, row in rows.items() if name.startswith(f"{kind} ") and name.endswith(precision)]
            for precision in ("float32", "bfloat16")
        ]
        lines.append([words, len(errors[0]), *(f"{max(one):.1g}".replace("e-0", "e-") for one in errors)])
    head = ("what is compared", "comparisons, in each precision", "largest in float32", "largest in bfloat16")
    return markdown(head, lines, texts=1)


def calls(rows: Rows) -> str:
    """Milliseconds of a call. A network's multiply-adds are as its share of the peak times its milliseconds."""
    lines = []
    for network, words in NETWORKS.items():
        for batch in (1, 8, 64):
            eager, graph = (rows[f"calls of {network}, {way}, batch {batch}"] for way in ("eager", "graphs"))
            ms = [f"{significant(eager[f'{one} ms'])}, {significant(graph[f'{one} ms'])}" for one in ("heavy", "light")]
            heavy, light = (eager[f"{one} MFU"] * eager[f"{one} ms"] for one in ("heavy", "light"))
            lines.append([words, batch, *ms, f"{graph['light ms'] / graph['heavy ms']:.2f}, {light / heavy:.2f}"])
    head = ["networks", "batch", *(f"{one} call, ms: eager, graph" for one in ("heavy", "light"))]
    return markdown([*head, "light over heavy: time, multiply-adds"], lines, texts=1)


def conditions(rows: Rows) -> str:
    """Of one task: each model's plan of the lowest CRPS."""
    lines = []
    for name in (one for one in MODELS if one in rows):
        best = min(rows[name]["plans"], key=lambda plan: plan["crps"])
        cells = [MODELS[name], round(rows[name]["seen"] / 1000), best["steps"]]
        for of, scale in (("macs", 1e-6), ("ms", 1e3)):
            cells.append(", ".join(dict.fromkeys(f"{scale * best[of][count]:.0f}" for count in ("1", "16"))))
        scores = zip((best["crps"], best["energy"]), best["errors"], strict=False)
        cells += [f"{score:.4f} ({error:.4f})" for score, error in scores]
        lines.append([*cells, f"{best['spread_skill']:.2f}"])
    both = "a sample, alone and of 16"
    head = ("model", "images seen, thousands", "steps", f"million multiply-adds {both}", f"microseconds {both}")
    return markdown([*head, "CRPS", "energy score", "spread / skill"], lines, texts=1)


def page() -> None:
    right, seconds = (
        json.loads((RESULTS / "gpu" / f"{name}.json").read_text()) for name in ("right_and_fast", "conditions-20s")
    )
    tables = {"agreement": agreement(right["rows"]), "calls": calls(right["rows"])}
    tables |= {task: conditions(seconds[task]) for task in ("inpainting", "super-resolution")}
    for name, table in tables.items():
        place(f"gpu {name}", table, RESULTS / "gpu.md")


if __name__ == "__main__":
    page()
