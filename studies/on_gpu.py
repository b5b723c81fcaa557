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


def agreement(rows: Rows) -> str:
    """The largest error of each kind of comparison, in either precision."""
    lines = []
    for kind, words in COMPARED.items():
        errors = [
            [row["error"] for name, row in rows.items() if name.startswith(f"{kind} ") and name.endswith(precision)]
            for precision in ("float32", "bfloat16")
        ]
        lines.append([words, len(errors[0]), *(f"{max(values):.1g}".replace("e-0", "e-") for values in errors)])
    head = ("what is compared", "comparisons, in each precision", "largest in float32", "largest in bfloat16")
    return markdown(head, lines, texts=1)


def calls(rows: Rows) -> str:
    """Milliseconds of a call. A network's multiply-adds are as its share of the peak times its milliseconds."""
    lines = []
    for network, words in NETWORKS.items():
        for batch in (1, 64):
            eager, graph = (rows[f"calls of {network}, {way}, batch {batch}"] for way in ("eager", "graphs"))
            ms = [
                f"{significant(eager[f'{role} ms'])}, {significant(graph[f'{role} ms'])}" for role in ("heavy", "light")
            ]
            heavy, light = (eager[f"{role} MFU"] * eager[f"{role} ms"] for role in ("heavy", "light"))
            lines.append([words, batch, *ms, f"{graph['light ms'] / graph['heavy ms']:.2f}, {light / heavy:.2f}"])
    head = ["networks", "batch", *(f"{role} call, ms: eager, graph" for role in ("heavy", "light"))]
    return markdown([*head, "light over heavy: time, multiply-adds"], lines, texts=1)


def page() -> None:
    rows = json.loads((RESULTS / "gpu" / "right_and_fast.json").read_text())["rows"]
    for name, table in {"agreement": agreement(rows), "calls": calls(rows)}.items():
        place(f"gpu {name}", table, RESULTS / "gpu.md")


if __name__ == "__main__":
    page()
