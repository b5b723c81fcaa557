"""Scores of a model in one call, and bounds on the likelihood of held-out samples; `dualrate evaluate` calls these."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dualrate.config.ranges import Images, as_path
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluators import evaluators, features_named, messages
from dualrate.drawing.latents import latent_scores
from dualrate.drawing.likelihood import FITTED_ON, bits_per_dimension, bits_per_token, check_bounded, fit_variance
from dualrate.drawing.measure import check, ensemble_scores, measure, scored_together
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import Model
from dualrate.report.evaluation import Evaluation
from dualrate.report.table import aligned, table
from dualrate.system.device import environment
from dualrate.system.progress import PlainReporter, Reporter, image_progress
from dualrate.system.workers import mapper

SCORED, BOUNDED = 5000, 500  # images


def evaluate(
    model: Model | Drawer,
    count: Images | None = None,
    *,
    seed: int = 0,
    features: str | Path | None = None,
    reference: str | Path | None = None,
    keep: str | Path | None = None,
    details: bool = False,
    progress: Reporter | None = None,
) -> Evaluation:
    """Score samples of a model, drawn as is recommended, or as a `Drawer` says (`Choice(16, 4).drawer(model)`).

    Images are scored by their distance from the training images in the features of nets, and, where the drawer has
    members, as an ensemble; forecasts over one window by lead time; texts by their bound and a language model.

    count:     samples: 5,000 images or texts, or forecasts from 50 starts, where it is None
    seed:      of the first
    features:  as of `features_named`; reference: statistics in place of the training images'; details: also kernel
               distance, precision and recall
    keep:      a directory of the features of images, from which the same call continues after a kill
    Raises ValueError for options that other samples than images do not take, and as `evaluators` and `measure`.
    """
    progress = progress or PlainReporter(seconds=10)
    features_named(features)
    drawer = model if isinstance(model, Drawer) else Choice().drawer(model, note=progress.note)
    with closing(progress):
        modality, named = maker_of(drawer.model.experiment), {"features": features, "details": details}
        named |= {"reference": reference and as_path(reference), "keep": keep and as_path(keep)}
        named |= {"equal_classes": drawer.equal_classes}
        if modality.other_scores:
            refuse(modality.other_scores, named)
            scores = modality.score(drawer, count, seed, progress)
        else:
            seeds = range(seed, seed + (SCORED if count is None else count))
            scores = _of_images(drawer, seeds, named, progress)
    about = {"weights": drawer.model.identity, "steps": drawer.plan.num_steps, "members": drawer.members}
    about |= {"environment": environment(drawer.model.device)}
    about |= {} if "macs" in scores.plain else {"macs": drawer.cost.macs}
    return replace(scores, plain={**scores.plain, **about})


def _of_images(drawer: Drawer, seeds: range, named: Mapping[str, Any], progress: Reporter) -> Evaluation:
    """Scores of images; of a data set that no net judges those of members alone, if there are any."""
    model, shown, over = drawer.model, image_progress(progress), mapper(drawer.model.device)
    how = {"reference": named["reference"], "device": model.device, "progress": progress, "count": len(seeds)}
    try:
        judges = evaluators(model.experiment.data, named["features"], **how)
        check(judges, len(seeds), details=named["details"])
    except ValueError as error:
        if not scored_together(drawer, seeds):
            raise
        refuse(str(error), named)
        progress.note(f"no Frechet distance: {error}")
        ensemble = ensemble_scores(drawer, seeds, progress=shown, mapper=over)
        assert ensemble is not None
        return Evaluation(ensemble, {"ensemble": asdict(ensemble)}, text=str(ensemble))
    how = {"keep": named["keep"], "details": named["details"], "progress": shown, "mapper": over}
    measured = measure(drawer, seeds, *judges, ensemble=True, **how)
    row, latents = measured.row, latent_scores(drawer, seeds, measured, judges)
    plain = asdict(row) | {"flops": row.flops, "latents": latents and asdict(latents)}
    text = "\n\n".join(str(part) for part in (latents, row.ensemble, row.score.details) if part is not None)
    return Evaluation(row, plain, (table([row]),), text)


def bounded(drawer: Drawer, count: Images | None = None, *, seed: int = 0, progress: Reporter) -> Evaluation:
    """Bound the negative log-likelihood of `count` test images, in bits per dimension or per token.

    The variance of the steps is measured on training images.
    Raises ValueError for a number of images that there is not, and as `check_bounded` and `bits_per_dimension`.
    """
    check_bounded(drawer.model)
    experiment, note = drawer.model.experiment, messages(progress.note)
    test, count = experiment.data.images("test", note), BOUNDED if count is None else count
    if not 2 <= count <= len(test):
        raise ValueError(f"{test.name} has {len(test)} for testing: a count (--num) is 2 to {len(test)}, got {count}")
    how: dict[str, Any] = {"seed": seed, "progress": image_progress(progress)}
    bits_of, per = (bits_per_token, "token") if experiment.codec.instant else (bits_per_dimension, "dimension")
    with closing(progress):
        if bits_of is bits_per_dimension:
            train = experiment.data.images("train", note)
            fitted = min(FITTED_ON, len(train))
            progress.note(f"measuring the variance of the steps on {fitted} training images")
            drawer = replace(drawer, step=fit_variance(drawer, train, count=fitted, **how))
            progress.close()
        bits = bits_of(drawer, test, count=count, **how)
    terms = {"last step": bits.each_step[-1], "bound": bits.total}
    if bits_of is bits_per_dimension:
        terms = {"prior": bits.prior, "steps": bits.steps, "reconstruction": bits.reconstruction} | terms
    about = {"run": str(drawer.model.path), "num_steps": drawer.plan.num_steps, "num_heavy": drawer.plan.num_heavy}
    about |= {"sampler": drawer.sampler}
    lines = aligned(about | {"images": f"{count} of the test data of {test.name}"} | terms)
    says = f"bound: on the mean of -log2 p from above, in bits a {per}"
    return Evaluation(bits, about | asdict(bits), text=f"{lines}\n\n{says}")


def refuse(why: str, options: Mapping[str, object]) -> None:
    """Raise ValueError that names the options that are set, and why they cannot be."""
    if named := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise ValueError(f"{why}: drop {', '.join(named)}")
