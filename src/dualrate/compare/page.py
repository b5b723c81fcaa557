"""The page of a comparison: made of what was measured and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dualrate.codecs.token_codec import BETWEEN, texts
from dualrate.compare.contenders import rivals_table
from dualrate.compare.judges import Verdict, roles, verdict_table, verdicts
from dualrate.compare.savings import AT_EQUAL_COST, COSTS, ComparisonResults, Savings, savings
from dualrate.compare.work import MeasuredContender, TimedContender
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.latents import LOOKED_AT
from dualrate.report.figures import pareto_figure, plan_figure
from dualrate.report.html import Drawing, Element, Facts, Gallery, Passage, Picture, Points, Section, Text, page
from dualrate.report.image_grid import image_grid
from dualrate.report.rows import shared_metrics
from dualrate.report.saving import POWER
from dualrate.report.table import (
    EACH,
    Table,
    capital,
    compute_unit,
    costs,
    heavy_calls,
    judge_cells,
    judge_header,
    judge_notes,
    name,
    plan_of,
    scored,
    significant,
    table,
)
from dualrate.system.environment import environment

COLUMNS = 10
MANY = 1_000_000  # images: nobody draws more to tell two plans apart


def compare_page(results: ComparisonResults) -> str:
    title = "Quality against compute"
    if not results.finished:
        return page(title, [Section("", _unfinished(results)), *_screening(results), _method(results)])
    return page(
        title,
        [
            Section("", _headline(results)),
            Section("Fronts", _figures(results)),
            *_saved(results),
            *_judged(results),
            *_rivals(results),
            Section("Samples from the same seeds", [_samples(results)]),
            Section("Every plan on the front", [front_table(results.finished)]),
            *_trainings(results),
            Section("Where the heavy calls go", _plans(results)),
            *_screening(results),
            _method(results),
        ],
    )


def _headline(results: ComparisonResults) -> list[Element]:
    found = savings(results)
    elements: list[Element] = [Text(_best(results), "lead"), *_given(results), *_unfinished(results)]
    said = [_agreement(verdict) for verdict in verdicts(results)] or [""] * len(found)
    sentences = [_sentence(one) + more for one, more in zip(found, said, strict=True)]
    return [*elements, Points(sentences)] if found else elements


def _given(results: ComparisonResults) -> list[Element]:
    """Of which latents the images are, where a model drew them."""
    if (latents := results.latents) is None:
        return []
    prefix, unit = compute_unit([2 * latents.macs])
    says = (
        f"Images of {len(latents.z_0):,} latents drawn by {latents.drawn_by}, so distances are gFDs. A latent cost "
        f"{significant(2 * latents.macs / unit)} {prefix}FLOPs, which is counted in no row. Screening is of the same "
        "latents, with other noise of the decoders."
    )
    return [Text(says, "note")]


def _best(results: ComparisonResults) -> str:
    """The best score of either side, and what it cost."""
    ranked = sorted(results.finished, key=lambda one: one.row.score.value)
    best = ranked[0].measured.row
    so_far = "So far. " if results.unfinished else ""
    says = f"{so_far}Best of all: {name(best)}, {best.score.metric} {scored(best)}."
    sides = [side for side in (results.own, results.rivals) if side]
    if len(sides) < 2:
        return says
    own, rival = (min((one.row for one in side), key=lambda row: row.score.value) for side in sides)
    return (
        f"{so_far}Best dual-rate: {name(own)}, {own.score.metric} {scored(own)}, at {costs(own)} an image. Best of all "
        f"others: {name(rival)}, {scored(rival)}, at {costs(rival)} an image."
    )


def _sentence(one: Savings) -> str:
    """The savings of one contender, in words."""
    row = one.finished.row
    start = f"{capital(name(row))} ({row.score.metric} {significant(row.score.value)}): "
    parts = []
    for counted, found in zip(COSTS[:2], one.savings, strict=False):
        if math.isinf(found.ratio):
            least = f", they need at least {found.low:.2f} times" if 0 < found.low < math.inf else ""
            parts.append(f"no other measured reaches it{least}")
        else:
            parts.append(f"the others need {found} times its {counted.name} for the same score")
    return start + "; ".join(parts) + "."


def _agreement(verdict: Verdict) -> str:
    """What the judges come to on the first of COSTS, in words."""
    return f" On {COSTS[0].name} the {len(verdict.by_judge)} judges {verdict.words[0]}."


def _judged(results: ComparisonResults) -> list[Section]:
    made = verdict_table(results)
    return [Section("Whether the judges agree", [made])] if made.cells else []


def _trainings(results: ComparisonResults) -> list[Section]:
    made = trainings_table([one.measured for one in results.finished])
    return [Section("Every training", [made])] if made.cells else []


def _rivals(results: ComparisonResults) -> list[Section]:
    made = rivals_table(results.screened)
    return [Section("What else calls a network", [made])] if made.cells else []


def _saved(results: ComparisonResults) -> list[Section]:
    made = savings_table(results)
    return [Section("What dual-rate saves at equal quality", [made])] if made.cells else []


def trainings_table(measured: Sequence[MeasuredContender]) -> Table:
    """A line per contender whose network was trained several times, lowest cost first."""
    several = [one for one in measured if any(len(scores) > 1 for scores in one.trainings.values())]
    metrics = several[0].trainings if several else ()
    cells = []
    for one in sorted(several, key=lambda one: one.row.macs):
        scores = ("; ".join(map(significant, one.trainings[metric])) for metric in metrics)
        cells.append((one.row.network, one.row.sampler, plan_of(one.row), *scores))
    note = "one score a training, in the order in which they were named; elsewhere stands their geometric mean"
    return Table(("network", "sampler", "plan", *metrics), tuple(cells), (note,))


def savings_table(results: ComparisonResults) -> Table:
    """A line per dual-rate contender that `savings` holds; none without both sides."""
    found = savings(results)
    header = (
        "network",
        "sampler",
        "plan",
        results.judge.metric,
        AT_EQUAL_COST,
        *(counted.name for counted in COSTS),
        "to tell",
    )
    cells = [
        (
            one.finished.row.network,
            one.finished.row.sampler,
            plan_of(one.finished.row),
            significant(one.finished.row.score.value),
            str(one.score),
            *map(str, one.savings),
            _to_tell(one),
        )
        for one in found
    ]
    notes = (
        f"{AT_EQUAL_COST}: the least of all other networks and samplers for at most as many, over the plan's own: "
        "above 1, it is better",
        "elsewhere: cost of the best of these for the plan's score, over its own: above 1, it is cheaper. "
        "Between two plans of one network and sampler the score is a straight line in logarithms",
        f"in brackets 95% intervals over {_noise(results)}, of both sides; never: no other reaches the score",
        "at most: what reaches the score is the cheapest plan of its curve that was measured, and is better, so that a "
        "cheaper one could do; the interval then begins at 0, as where it may be so as far as the noise tells",
        "times of a network's plans are taken to rise with their FLOPs: what noise has turned round is pooled",
        f"to tell: as many images of each row, or times as many trainings of each network, would tell the ratio in "
        f"{COSTS[0].name} from 1 with a chance of {100 * POWER:.0f}%, if the scores are the true ones",
        f"{_dearest(results)}the intervals hold no noise of timing, and the front was picked among the same images",
        *results.unplanned,
        *results.unfinished,
    )
    return Table(header, tuple(cells), notes)


def _dearest(results: ComparisonResults) -> str:
    """Up to where a ratio could be found."""
    if not results.rivals:
        return ""
    flops = max(one.row.flops for one in results.rivals)
    prefix, unit = compute_unit([flops])
    return f"the others were measured up to {significant(flops / unit)} {prefix}FLOPs; "


def _noise(results: ComparisonResults) -> str:
    several = any(one.measured.trainings for one in results.finished)
    return "images and trainings" if several else "the images of one training of each network"


def _to_tell(one: Savings) -> str:
    """Its ratio of FLOPs from 1; a dash where no other is as cheap. Images do not lessen the noise of training."""
    times, count = one.savings[0].to_tell, one.finished.row.score.fingerprint.count
    if not math.isfinite(times):
        return "-"
    return f"{times:.1f} times the trainings" if one.finished.measured.trainings else _rounded_count(times * count)


def _rounded_count(number: float) -> str:
    """Two digits, of thousands: 12,000."""
    rounded = float(f"{number:.1e}")
    return f"{rounded:,.0f}" if rounded < MANY else f"over {MANY:,}"


def _figures(results: ComparisonResults) -> list[Element]:
    rows = [one.row for one in results.finished]
    many = sorted({one.speed.batch for one in results.finished})
    return [
        Drawing(pareto_figure(rows, "flops"), "Score against FLOPs; N/H beside each point, faint: beaten by its own"),
        Drawing(
            pareto_figure(rows, "seconds"),
            f"Score against measured time, in batches of {', '.join(map(str, many))} images",
        ),
    ]


def _samples(results: ComparisonResults) -> Gallery:
    ordered = sorted(results.finished, key=lambda one: one.row.macs)
    return Gallery([_sample(one) for one in ordered])


def _sample(one: TimedContender) -> Picture | Passage:
    caption = f"{name(one.row)}: {one.row.score.metric} {significant(one.row.score.value)}"
    if one.alphabet:
        return Passage(BETWEEN.join(texts(one.alphabet, one.images)), caption)
    return Picture(image_grid(one.images, COLUMNS), caption)


def front_table(finished: Sequence[TimedContender]) -> Table:
    """Costs and metrics of every contender, lowest cost first."""
    ordered = sorted(finished, key=lambda one: one.row.macs)
    prefix, unit = compute_unit([one.row.flops for one in ordered])
    rows = [one.row for one in ordered]
    details = ordered[0].details
    beside = (f"{details.kernel_metric} x 1000", "precision", "recall") if details else ()
    decoders = any(one.nearness for one in ordered)
    header = (
        "network",
        "sampler",
        "N",
        "H",
        f"{prefix}MACs",
        f"{prefix}FLOPs",
        "ms alone",
        "ms in batches",
        "MB",
        *judge_header(rows),
        *beside,
        *(("PSNR, dB",) * decoders),
    )
    batches = ", ".join(dict.fromkeys(f"{one.speed.batch} ({one.contender.network})" for one in ordered))
    notes = (
        f"N steps, H heavy calls ({EACH}: the whole model at every step); FLOPs = 2 MACs; milliseconds per image, "
        f"alone and in batches of the size whose doubling gains less than 5%: {batches}",
        "MB: peak memory of a network's first plan at that batch size: on a GPU what torch held, else of the process; "
        "neither compiled nor recorded",
        *judge_notes(rows),
        *(("beside the scores: of the first training alone",) * bool(details and ordered[0].measured.trainings)),
        *((f"PSNR: of {LOOKED_AT:,} images at most, from those whose latents were given; standard error",) * decoders),
    )
    metrics = shared_metrics(rows)
    return Table(header, tuple(_cells(one, unit, metrics, decoders=decoders) for one in ordered), notes)


def _cells(one: TimedContender, unit: float, metrics: Sequence[str], *, decoders: bool) -> tuple[str, ...]:
    row, details, near = one.row, one.details, one.nearness
    kernel = details.kernel if details else None
    return (
        row.network,
        row.sampler,
        str(row.num_steps),
        heavy_calls(row),
        significant(row.macs / unit),
        significant(row.flops / unit),
        significant(1000 * one.speed.alone),
        significant(1000 * one.speed.batched),
        f"{one.memory / 1e6:.0f}",
        *judge_cells(row, metrics),
        *(
            (
                f"{1000 * kernel.value:.2f} +- {1000 * kernel.standard_error:.2f}",
                f"{details.precision_recall.precision:.3f}",
                f"{details.precision_recall.recall:.3f}",
            )
            if details and kernel
            else ()
        ),
        *((EACH if near is None else f"{near.psnr:.2f} +- {near.error:.2f}",) if decoders else ()),
    )


def _plans(results: ComparisonResults) -> list[Element]:
    shown = reusing_plans(results.finished)
    if not shown:
        return [Text("Every network here runs at every step.")]
    return [Drawing(plan_figure(shown), "Plans that reuse what a heavy call computed")]


def reusing_plans(finished: Sequence[TimedContender]) -> list[tuple[str, StepPlan]]:
    """Labels and plans that reuse something, each once, lowest cost first."""
    ordered = sorted(finished, key=lambda one: one.row.macs)
    reusing = [one for one in ordered if one.contender.reuses]
    labels = {(one.row.network, one.contender.plan): one.contender.note for one in reusing}
    return [
        (f"{network} {made.num_steps}/{made.num_heavy}{f', {note}' if note else ''}", made)
        for (network, made), note in labels.items()
    ]


def _screening(results: ComparisonResults) -> list[Section]:
    if not results.screened:
        return []
    rows = [one.row for one in results.screened]
    text = (
        "All contenders on fewer images, of other seeds than the front's, only to choose which deserve many; seconds "
        "are those of drawing these images, on whatever machine it was, and may have been disturbed."
    )
    return [Section("Screening", [Text(text, "note"), table(rows)])]


def _unfinished(results: ComparisonResults) -> list[Element]:
    goes_on = [f"{sentence} The same command goes on." for sentence in results.unfinished]
    return [Text(sentence, "note") for sentence in (*results.unplanned, *goes_on)]


def _method(results: ComparisonResults) -> Section:
    facts = {**environment(results.device), "command": results.command}
    if results.finished:
        facts["precision"] = results.finished[0].row.precision
        facts["images scored on"] = "; ".join(dict.fromkeys(one.measured.ran_on for one in results.finished))
        facts["fingerprint"] = results.finished[0].row.score.fingerprint.json()
    models = {one.contender.network: one.contender.run for one in results.screened}
    facts |= {network: str(run) for network, run in models.items()}
    if results.latents:
        facts["latents drawn by"] = f"{results.latents.drawn_by}, weights {results.latents.weights[:12]}"
    note = results.finished[0].row.score.note if results.finished else ""
    elements = [Facts(list(facts.items())), Points(roles(results)), *([Text(note, "note")] if note else [])]
    return Section("How it was measured", elements)
