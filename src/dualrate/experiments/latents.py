"""Experiments on latents: their codec is that of their data."""

from __future__ import annotations

from dataclasses import replace

from dualrate.data.latents import is_encoded, read_latents
from dualrate.experiments.experiment import Experiment


def on_codec_of_data(experiment: Experiment) -> Experiment:
    """The experiment with the codec whose latents its data are; one on images as it is. Raises as `read_latents`."""
    source = experiment.data.source
    return replace(experiment, codec=read_latents(source, "train").codec) if is_encoded(source) else experiment
