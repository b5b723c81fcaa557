"""The figure of docs/results/where.md, of the settings in where.json.

    python -m studies.where

A setting: name, of how many samples a condition; ratio [low, high] of compute at equal quality, high null where no
single network reaches the pair's score; light: the best score of a single network of the light one's cost over the best
of any single network; note.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

from dualrate.report.figures import png
from dualrate.system.files import write_whole

RESULTS = Path("docs/results")


def figure(settings: list[dict]) -> Figure:
    made = Figure((9.5, 3.8), layout="constrained")
    bars, scatter = made.subplots(1, 2, sharey=False, width_ratios=(3, 2))
    for i, one in enumerate(reversed(settings)):
        low, ratio, high = one["low"], one["ratio"], one["high"]
        colour = "C2" if low > 1 else "C3" if high is not None and high < 1 else "C7"
        end = 1.6 * max(ratio, low) if high is None else high
        bars.plot([low, end], [i, i], color=colour, linewidth=2)
        bars.plot([ratio], [i], "o", color=colour)
        scatter.plot([one["light"]] * 2, [low, end], color=colour, linewidth=2)
        scatter.plot([one["light"]], [ratio], "o", color=colour)
        if high is None:
            bars.plot([end], [i], ">", color=colour)
            scatter.plot([one["light"]], [end], "^", color=colour)
    bars.set_yticks(range(len(settings)), [one["name"] for one in reversed(settings)], fontsize=8)
    for axes, at, scale in ((bars, bars.axvline, bars.set_xscale), (scatter, scatter.axhline, scatter.set_yscale)):
        at(1, color="black", linewidth=0.8)
        scale("log")
        axes.grid(alpha=0.3)
    bars.set_xlabel("compute at equal quality: best single network / two rates")
    scatter.set(xlabel="score: light alone / best single", ylabel="the same ratio", xscale="log")
    scatter.set_xticks([1, 1.2, 1.5, 2], ["1", "1.2", "1.5", "2"])
    scatter.minorticks_off()
    return made


if __name__ == "__main__":
    write_whole(RESULTS / "where.png", png(figure(json.loads((RESULTS / "where.json").read_text()))))
