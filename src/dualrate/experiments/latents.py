"""Experiments on latents: their codec is that of their data."""

from __future__ import annotations

from dataclasses import replace

from dualrate.data.latents import is_encoded, read_latents
from dualrate.experiments.experiment import Experiment


def on_codec_of_data(experiment: Experiment) -> Experiment:
    """The experiment with the codec whose latents its data are, where they say it is, unless the experiment has it
    already, wherever that is; one on images as it is. Raises as `read_latents`.
    """
    source = experiment.data.source
    if not is_encoded(source):
        return experiment
    codec = read_latents(source, "train").codec
    return experiment if experiment.codec.fingerprint == codec.fingerprint else replace(experiment, codec=codec)
