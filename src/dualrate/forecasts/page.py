"""The page of a forecast: report/templates/forecast.html with its scores and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from dualrate.config.ranges import many
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.curves import Panel, curves_figure, spectra_figure
from dualrate.forecasts.evaluation import ForecastReport, StabilityReport, bad_news, some_leads
from dualrate.forecasts.folder import ForecastWritten, lead_axis, shown
from dualrate.forecasts.pictures import forecast_figure, plume_figure
from dualrate.forecasts.scores import THRESHOLDS, ForecastScores, Score
from dualrate.forecasts.spectra import spectrum_of
from dualrate.forecasts.stability import STEADY, WITHIN, Stability
from dualrate.forecasts.sums import slices
from dualrate.report.figures import ranks_figure, svg
from dualrate.report.html import page
from dualrate.system.files import forget

COLUMNS = 3  # lead times of spectra and ranks


def forecast_page(
    forecast: Forecast, written: ForecastWritten, scored: ForecastReport | None, judged: StabilityReport
) -> str:
    """The HTML page of a forecast. scored: None where no truth is known."""
    record = written.record
    factor, lead = lead_axis(record, forecast)

    def over_leads(leads: NDArray[np.float64], panels: list[Panel]) -> str:
        return svg(curves_figure((leads * factor).tolist(), panels, lead))

    hidden, plume = ", or hidden by the mask" * bool(forecast.geometry.mask), ""
    if film := written.film:
        strip = film.html()
        caption = (
            f"From left to right, and below from top to bottom: {film.names}, of which the first {film.past} frame(s) "
            "were given; below those that were made a bar grows, and in the still picture a line is before them."
        )
        caption += " Grey: the truth is not known." * (written.truth is not None and record.known < record.frames)
    else:
        first = shown(written.x, written.truth, record, forecast)
        figure = forecast_figure(first)
        figure.set_facecolor("white")
        strip, caption = svg(figure), f"Variable {record.variables[0]}, over {lead}. Grey: not known{hidden}."
        if min(first.members.shape[:2]) > 1:
            plume = svg(plume_figure(first))
    scores, steady = None if scored is None else scored.by_name["forecast"], judged.stability
    return page(
        "forecast.html",
        title=f"Forecast by {record.model}",
        worst=" ".join(bad_news(scored, judged, written.burst, written.troubles)) or _no_bad_news(scores, steady),
        headline=forecast_headline(written, scores),
        notes=[] if scored is None else scored.notices,
        strip=strip,
        strip_caption=caption,
        plume=plume,
        tables=[] if scored is None else scored.tables,
        curves="" if scored is None else over_leads(scored.by_name["forecast"].leads, _panels(scored)),
        intervals=scores is not None and len(scores.crps.replicates) > 0,
        spectra=svg(spectra_figure(_spectra(forecast, written, scores, judged.power))),
        ranks="" if scores is None or scores.members < 2 else svg(ranks_figure(_ranks(forecast, scores))),
        stability=f"{judged.says}.",
        steady="" if steady is None else over_leads(steady.leads, [_steady_panel(steady)]),
        steady_caption="Members over training data; of several variables the mean.",
        made_by={
            "starts": f"{record.starts}, {record.source}",
            "members": record.members,
            "frames": f"{record.frames}, to {lead} {record.lead_times[-1] * factor:g}",
            "sampler": f"{record.sampler}, precision {record.origin.precision}",
            "weights": f"{record.path} at iteration {record.iteration}",
            "command": record.calls[-1]["command"],
            "device": f"{record.calls[-1]['device']}, torch {record.calls[-1].get('torch', '?')}",
        },
    )


def _no_bad_news(scores: ForecastScores | None, steady: Stability | None) -> str:
    says = ["better than each forecast without a model at all lead times"] if scores is not None else []
    says += ["members differ as much as they err"] * (scores is not None and scores.members > 1)
    says += ["the roll-out is stable"] * (steady is not None)
    return f"No bad news: {', '.join(says)}." if says else "Nothing is judged: neither the truth nor the data is there."


def forecast_headline(written: ForecastWritten, scores: ForecastScores | None) -> str:
    """Says counts and scores of a forecast in a few sentences."""
    record = written.record
    what = f"{many(record.members, 'member')} of {many(record.starts, 'start')}, {many(record.frames, 'frame')}"
    if scores is None:
        return f"{what}. The truth is not known, so there are no scores."
    until, (factor, unit) = scores.until.value, written.forecast.shown_unit(record.lead_times[-1])

    def how_long(time: float) -> str:
        if time < scores.leads[0]:
            return "not even to the first frame"
        return "to the end" if np.isinf(time) else f"until {time * factor:.3g} {unit}".rstrip()

    shares = [f"{threshold} {how_long(time)}" for threshold, time in zip(THRESHOLDS, until, strict=True)]
    return (
        f"{what}. Fair CRPS {scores.crps.value[0]:.3f} at the first lead time, {scores.crps.value[-1]:.3f} at the "
        f"last. The mean's correlation with the truth stays above {' and '.join(shares)}."
    )


def _panels(scored: ForecastReport) -> list[Panel]:
    scores = scored.by_name["forecast"]
    several = scores.members > 1
    crps = {name: score.crps for name, score in scored.by_name.items()}
    errors = {"RMSE of mean": scores.rmse} | ({"spread": scores.spread} if several else {})
    correlation = Panel(
        "correlation of mean", {"forecast": scores.correlation}, {threshold: f"{threshold}" for threshold in THRESHOLDS}
    )
    panels = [Panel("fair CRPS", crps, bottom=0), Panel("RMSE, spread", errors, bottom=0), correlation]
    if several:
        panels.append(Panel("spread / skill", {"forecast": scores.spread_skill}, {1.0: "calibrated"}))
    return panels


def _spectra(
    forecast: Forecast, written: ForecastWritten, scores: ForecastScores | None, training: NDArray[np.float64] | None
) -> Mapping[str, Mapping[str, list[float]]]:
    """Spectra of the first variable at a few lead times, normalised: members, and the truth or the training data."""
    spectra: dict[str, dict[str, list[float]]] = {}
    spectrum = spectrum_of(forecast.geometry)
    leads = written.record.lead_times if scores is None else scores.leads
    for i in some_leads(len(leads), COLUMNS):
        power, (count, number) = torch.zeros(()), written.x.shape[:2]
        for members, part in product(written.x, slices(number, int(np.prod(written.x.shape[3:])))):
            x = forecast.statistics.normalised(torch.tensor(members[part, i]))[:, :1]
            power = power + spectrum(x.double()).sum(0)[0] / (count * number)
            forget(written.x)
        curves = {"members": power.numpy()}
        if written.truth is not None and i < written.record.known:
            truth = forecast.statistics.normalised(torch.tensor(written.truth[:, i]))[:, :1]
            curves["truth"] = spectrum(truth.double()).mean(0)[0].numpy()
        elif training is not None:
            curves["training data"] = training[0]
        spectra[f"lead {forecast.plain_time(float(leads[i]))}"] = {
            name: power[1:].tolist() for name, power in curves.items()
        }
    return spectra


def _ranks(forecast: Forecast, scores: ForecastScores) -> Mapping[str, list[float]]:
    leads = scores.leads.tolist()
    return {f"lead {forecast.plain_time(leads[i])}": scores.ranks[i].tolist() for i in some_leads(len(leads), COLUMNS)}


def _steady_panel(stability: Stability) -> Panel:
    lines = {}
    for number, name in enumerate(STEADY):
        judged = ~np.isnan(stability.bounds[0, :, number])  # the others never change, or have no such band
        if judged.any():
            lines[name] = Score(stability.ratios[:, judged, number].mean(1))
    return Panel("members / training data", lines, {bound: f"{bound}" for bound in WITHIN}, log=True)
