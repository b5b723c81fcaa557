"""Tables and figures of docs/results/forecasts.md, of the rows that docs/results/contest-SYSTEM.json.xz and
roll-outs.json.xz keep.

    python -m studies.forecasts

The best single network is the cheapest plan of any, by diffusion, CRPS or ML-EM, whose plans are those of its cells
that no cheaper one beat in the search. No plan between two of a curve is measured: the score is a line between them in
logarithms. Scores are means over trainings, starts and lead times; intervals are over starts and trainings.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dualrate.report.figures import log_axis, png
from dualrate.report.table import significant
from dualrate.system.files import write_whole
from studies import roll_outs
from studies.common import RESULTS, Row, kept_in, markdown, place
from studies.contest import BY_STEPS
from studies.equal_score import TAILS, Ratio, Scores, at_equal_score, resampled
from studies.systems import PAGE, SYSTEMS, crps, interval

SHOWN = 4, 8  # steps of the tables of ratios and lengths
LISTED = 4, 8, 16  # steps of the table of scores by diffusion, of two rates and the large network
WORDS = {
    "dual": "two rates", "single": "large", "crps": "CRPS, one call", "medium + single": "medium, large",
    "medium + broad + single": "medium, broad, large", "crps-4": "CRPS of four draws, one call",
    "consistency-1": "consistency, 1 step", "consistency-2": "consistency, 2 steps", "moments-2": "moments, 2 steps",
    "frozen": "diffusion, large as a frozen encoder",
}  # fmt: skip
COLOURS = {"dual": "C3", "single": "C0", "broad": "C4", "medium": "C2", "light": "C1"}
MARKS = {
    "diffusion": ("o", "-"), "frozen": ("v", ":"), "crps": ("*", ""), "crps-4": ("d", ""), "ML-EM": ("s", ""),
    "consistency-1": ("P", ""), "moments-2": ("X", ""),
}  # others: a small cross  # fmt: skip
Plan = tuple[str, str, Any]  # a network, what trained it, and steps or, of ML-EM, a cell
COSTS = [("macs", 1), ("macs", 16), ("ms", 1), ("ms", 16)]
COUNTS = 1, 16, 50  # members of a start of the table of members and of the figure, where they were counted
FEW = 6  # members of a single network, beside whose memory that of 50 of two rates is


def plan_of(row: Row) -> Plan:
    """Its key; of ML-EM the whole cell stands for the steps."""
    if row["method"] != "ML-EM":
        return row["network"], row["method"], row["steps"]
    p = ", ".join(f"{share:g}" for share in row["probabilities"])
    return row["network"], row["method"], f"{row['steps']}, {row['sampler']}, p = {p}"


def energy(row: Row) -> NDArray[np.float64]:
    """(starts,)"""
    return np.array(row["energy"])


METRICS = {"CRPS": crps, "energy score": energy}


def word(name: str) -> str:
    return WORDS.get(name, name)


def seconds_of(rows: Sequence[Row]) -> float:
    """The seconds of most of the trainings."""
    return Counter(row["seconds"] for row in rows if row["kind"] == "final").most_common(1)[0][0]


def entries(rows: Sequence[Row]) -> list[Row]:
    """Trainings of the usual seconds, a row for each plan, and the cells of ML-EM that were scored as these are."""
    usual = seconds_of(rows)
    kinds = [row for row in rows if row["kind"] == "final" or (row["kind"] == "levels" and not row["between"])]
    return [row for row in kinds if row["seconds"] == usual]


def costs(rows: Sequence[Row]) -> dict[tuple[str, int], dict[Plan, float]]:
    """Million multiply-adds and milliseconds of a member, and MiB of all, by members and plan: what was measured.

    Milliseconds of ML-EM are those of its networks' calls, each a step of the longest plan that was timed.
    """
    tables: dict[tuple[str, int], dict[Plan, float]] = defaultdict(dict)
    for row in [*entries(rows), *(row for row in rows if row["kind"] == "time")]:
        for name in ("macs", "ms", "mib"):
            for count, value in row.get(name, {}).items():
                tables[name, int(count)][plan_of(row)] = value
    for row in (row for row in entries(rows) if row["method"] == "ML-EM"):
        for count in map(int, row["macs"]):
            steps = [step_of(tables["ms", count], network) for network in row["network"].split(" + ")]
            if all(steps):
                tables["ms", count][plan_of(row)] = float(np.dot(steps, row["calls"]))
    return tables


def step_of(milliseconds: Mapping[Plan, float], network: str) -> float:
    """Milliseconds of a step by diffusion, in the longest plan that was timed; 0 without one."""
    timed = {plan[2]: value / plan[2] for plan, value in milliseconds.items() if plan[:2] == (network, "diffusion")}
    return timed[max(timed)] if timed else 0.0


def ratio_of(scores: Scores[Plan], cost: Mapping[Plan, float], plan: Plan) -> Ratio | None:
    """Cost of single networks at a plan's score, over its own; None where that, or all of theirs, was not measured."""
    singles = [rival for rival in scores if rival[0] != "dual" and rival in cost]
    return at_equal_score(scores, cost, plan, singles) if plan in cost and singles else None


def by_plan(rows: Sequence[Row]) -> dict[Plan, list[Row]]:
    plans: dict[Plan, list[Row]] = defaultdict(list)
    for row in rows:
        plans[plan_of(row)].append(row)
    return plans


def score_table(rows: Sequence[Row]) -> str:
    """A line for each plan of two rates and of the large network, and the best one of every other; the best first."""
    trainings, cost = by_plan(entries(rows)), costs(rows)
    scores = resampled(entries(rows), plan_of, crps)
    ordered = sorted(trainings, key=lambda plan: scores[plan][0])
    best = {plan[:2]: plan for plan in reversed(ordered)}
    lines = []
    for plan in ordered:
        network, method, steps = plan
        listed = method not in BY_STEPS or steps in LISTED
        if not (listed if network in ("dual", "single") else plan == best[network, method]):
            continue
        training = trainings[plan][0]
        setting = f"{training['batch']}, {training['rate']:g}" if "rate" in training else ""
        spread = f"{np.mean([row['spread_skill'] for row in trainings[plan]]):.2f}"
        cells = [
            "/".join(f"{cost[name, n][plan]:.2f}" for n in COUNTS[:2] if plan in cost[name, n])
            for name in ("macs", "ms")
        ]
        cells = [setting, len(trainings[plan]), *cells, interval(scores[plan], 4), spread]
        lines.append([word(network), word(method), steps, *cells])
    heads = ["batch, rate", "trainings", "million multiply-adds a member, of 1/16", "ms, of 1/16"]
    return markdown(["network", "trained by", "steps", *heads, "CRPS", "spread / skill"], lines)


def ratio_table(rows: Sequence[Row]) -> str:
    """Ratios of the cost of single networks, alone or by ML-EM, that score as well as two rates to what these cost."""
    cost = costs(rows)
    scores = {name: resampled(entries(rows), plan_of, values) for name, values in METRICS.items()}
    singles = [plan for plan in scores["CRPS"] if plan[0] != "dual"]
    best = min(singles, key=lambda plan: scores["CRPS"][plan][0])
    lines = []
    pairs = [plan for plan in scores["CRPS"] if plan[0] == "dual" and (plan[1] not in BY_STEPS or plan[2] in SHOWN)]
    for plan in sorted(pairs):
        cells = [interval(scores["CRPS"][plan] - scores["CRPS"][best], 4)]
        for metric, of in [*(("CRPS", of) for of in COSTS), ("energy score", COSTS[1])]:
            cells.append(str(ratio_of(scores[metric], cost[of], plan) or ""))
        lines.append([f"{word(plan[1])}, {plan[2]} steps" if plan[1] in BY_STEPS else word(plan[1]), *cells])
    heads = [
        "CRPS less that of the best of others",
        "ratio at equal CRPS: multiply-adds, of 1",
        "of 16",
        "ms, of 1",
        "of 16",
        "at equal energy score: multiply-adds, of 16",
    ]
    return markdown(["two rates", *heads], lines, texts=1)


def length_table(rows: Sequence[Row]) -> str:
    """Two rates and large by the seconds of their trainings, seed 0, and two rates less large in as many steps."""
    lengths, usual = [row for row in rows if row["kind"] == "final" and row["seed"] == 0], seconds_of(rows)
    plans = {plan_of(row) for row in lengths if row["seconds"] > usual and row["steps"] in LISTED}
    scores = {
        of: resampled([row for row in lengths if row["seconds"] == of], plan_of, crps)
        for of in sorted({row["seconds"] for row in lengths})
    }
    lines = [
        [
            *map(word, plan[:2]),
            plan[2],
            *(f"{table[plan][0]:.4f}" if plan in table else "" for table in scores.values()),
        ]
        for plan in sorted(plans)
    ]
    for pair in sorted(plan for plan in plans if plan[0] == "dual"):
        large = "single", *pair[1:]
        leads = [
            interval(table[pair] - table[large], 4) if {pair, large} <= table.keys() else ""
            for table in scores.values()
        ]
        lines.append(["two rates less large", word(pair[1]), pair[2], *leads])
    return markdown(["network", "trained by", "steps", *(f"{of:g} s" for of in scores)], lines)


def member_table(rows: Sequence[Row]) -> str:
    """The best plan of each network and method: costs by members of a start, and of two rates the ratios at equal CRPS,
    with 50 members."""
    trainings, cost, many = entries(rows), costs(rows), COUNTS[-1]
    scores = {name: resampled(trainings, plan_of, values) for name, values in METRICS.items()}
    ordered = sorted(scores["CRPS"], key=lambda plan: (scores["CRPS"][plan][0], plan[2]))
    lines = []
    for plan in {plan[:2]: plan for plan in reversed(ordered)}.values():
        cells = ["/".join(significant(cost["macs", n][plan]) for n in COUNTS if plan in cost["macs", n])]
        cells.append("/".join(significant(n * cost["ms", n][plan]) for n in COUNTS if plan in cost["ms", n]))
        cells.append("/".join(f"{cost['mib', n][plan]:.0f}" for n in (1, FEW, *COUNTS[1:]) if plan in cost["mib", n]))
        cells += [interval(scores[metric][plan], 3) for metric in METRICS]
        ratios = [str(ratio_of(scores["CRPS"], cost[of, many], plan)) for of in ("macs", "ms") if plan[0] == "dual"]
        lines.append([f"{word(plan[0])}, {word(plan[1])}", plan[2], *cells, "; ".join(ratios)])
    heads = ["million multiply-adds a member, of 1/16/50", "ms of 1/16/50", "MiB of 1/6/16/50", *METRICS]
    heads.append("ratio at equal CRPS, of 50: multiply-adds; ms")
    return markdown(["network", "steps", *heads], sorted(lines, key=lambda line: line[5]), texts=1)


def figure(rows: Sequence[Row]) -> Figure:
    """CRPS against multiply-adds a member, by members of a start, a line a network."""
    scores, cost = resampled(entries(rows), plan_of, crps), costs(rows)
    counts = [count for count in COUNTS if cost["macs", count]]
    canvas = Figure((4.5 * len(counts), 4.2), layout="constrained")
    panels = canvas.subplots(1, len(counts), sharey=True)
    curves: dict[tuple[str, str], list[Plan]] = defaultdict(list)
    for plan in sorted(scores, key=lambda plan: cost["macs", 1][plan]):
        curves[plan[:2]].append(plan)
    for axes, members in zip(panels, counts, strict=True):
        for (network, method), plans in curves.items():
            values = np.stack([scores[plan] for plan in plans], 1)
            low, high = np.quantile(values[1:], TAILS, axis=0)
            marker, line = MARKS.get(method, ("x", ""))
            ends = np.maximum(0, [values[0] - low, high - values[0]])
            axes.errorbar(
                [cost["macs", members][plan] for plan in plans], values[0], ends,
                color=COLOURS.get(network, "C7"), linestyle=line, marker=marker, markersize=10 if marker == "*" else 4,
                label=f"{word(network)}, {word(method)}",
            )  # fmt: skip
        log_axis(axes, "x")
        axes.set(xlabel="million multiply-adds a member", title=f"members of a start: {members}")
        axes.grid(alpha=0.3)
    least = min(each[0] for each in scores.values())
    panels[0].set_ylim(0.92 * least, 1.7 * least)  # what is far worse stands in the table
    panels[0].set_ylabel("fair CRPS")
    canvas.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    return canvas


TABLES = {"scores": score_table, "ratios": ratio_table, "length": length_table, "members": member_table}


def page() -> None:
    """All tables that the page has a place for, and the figures."""
    for system in SYSTEMS:
        file = RESULTS / f"contest-{system}.json.xz"
        if file.exists():
            rows = kept_in(file)
            for name, table in TABLES.items():
                place(f"contest {system} {name}", table(rows), PAGE)
            write_whole(RESULTS / f"contest-{system}.png", png(figure(rows)))


if __name__ == "__main__":
    page()
    roll_outs.page()
