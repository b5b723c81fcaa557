"""A comparison for machines: JSON with everything but the pictures, CSV with a line per finished contender."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path

from dualrate.compare.judges import Verdict, verdicts
from dualrate.compare.savings import AT_EQUAL_COST, COSTS, ComparisonResults, Savings, savings
from dualrate.data.latent_set import DrawnLatents
from dualrate.report.saving import Saving
from dualrate.report.table import plan_of, records
from dualrate.system.environment import environment


def as_records(results: ComparisonResults) -> list[dict[str, object]]:
    """One flat dict per finished contender, unrounded; with several judges also what they come to, where it saves."""
    lines = records([one.row for one in results.finished])
    words = {one.first.finished.contender.key: _words(one) for one in verdicts(results)}
    for line, one in zip(lines, results.finished, strict=True):
        contender, details = one.contender, one.details
        line |= {
            "run": contender.run.name,
            "note_on_plan": contender.note,
            "denoiser": contender.denoiser and Path(contender.denoiser).name,  # of a run its name, as above
            "plan": json.loads(contender.plan.to_json()),
            "seconds_alone": one.speed.alone,
            "peak_bytes": one.memory,
            "ran_on": one.measured.ran_on,
            **{f"{metric} trainings": list(each) for metric, each in one.measured.trainings.items()},
            **words.get(contender.key, {}),
        }
        if results.latents:
            line |= {"latents_by": results.latents.drawn_by}
        if one.nearness:
            line |= {"psnr": one.nearness.psnr, "psnr_standard_error": one.nearness.error}
        if details:
            line |= {
                "kernel_metric": details.kernel_metric,
                "kernel": details.kernel.value,
                "kernel_standard_error": details.kernel.standard_error,
                "precision": details.precision_recall.precision,
                "recall": details.precision_recall.recall,
            }
    return lines


def _words(verdict: Verdict) -> dict[str, str]:
    return {f"judges on {costs.name}": word for costs, word in zip(COSTS, verdict.words, strict=True)}


def _judged(verdict: Verdict) -> dict[str, object]:
    """Ratios by judge, and what they come to."""
    ratios = {metric: _by_costs(one) for metric, one in verdict.by_judge.items()}
    return {"judges": ratios, **_words(verdict)}


def _by_costs(one: Savings) -> dict[str, object]:
    by_costs = {costs.name: _ratios(found) for costs, found in zip(COSTS, one.savings, strict=True)}
    return {AT_EQUAL_COST: asdict(one.score) if math.isfinite(one.score.ratio) else None, **by_costs}


def as_json(results: ComparisonResults) -> str:
    """Everything of the page but the pictures and the words; "never" stands for what no rival reaches."""
    judged = {one.first.finished.contender.key: _judged(one) for one in verdicts(results)}
    saved = [
        {
            "network": one.finished.row.network,
            "sampler": one.finished.row.sampler,
            "plan": plan_of(one.finished.row),
            **_by_costs(one),
            **judged.get(one.finished.contender.key, {}),
        }
        for one in savings(results)
    ]
    return json.dumps(
        {
            "command": results.command,
            "environment": environment(results.device),
            "unfinished": list(results.unfinished),
            "unplanned": list(results.unplanned),
            **({"latents": _latents(results.latents)} if results.latents else {}),
            "front": as_records(results),
            "savings": saved,
            "screening": records([one.row for one in results.screened]),
        },
        indent=1,
    )


def _latents(drawn: DrawnLatents) -> dict[str, object]:
    """What decoders were given. macs: of a latent, in no row's cost"""
    of = {"drawn_by": drawn.drawn_by, "weights": drawn.weights, "digest": drawn.digest, "codec": drawn.codec}
    return {**of, "count": len(drawn.z_0), "macs": drawn.macs}


def _ratios(found: Saving) -> dict[str, object]:
    ratios = {"ratio": found.ratio, "low": found.low, "high": found.high}
    finite = {name: value if math.isfinite(value) else "never" for name, value in ratios.items()}
    to_tell = found.to_tell if math.isfinite(found.to_tell) else None
    return {**finite, "at_most": found.at_most, "times_as_much_tells": to_tell}


def as_csv(results: ComparisonResults) -> str:
    """A line per finished contender, for a spreadsheet."""
    lines = [{k: v for k, v in line.items() if not isinstance(v, dict)} for line in as_records(results)]
    target = io.StringIO()
    if lines:
        writer = csv.DictWriter(target, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return target.getvalue()
