"""A training in two stages: a codec that is trained on images, then a model of its latents.

Either is an experiment of its own, with a run of its own. What the second is trained on is known once the first has
been trained: its latents, in a folder (`runs/train.py`).

Experiments on latents: their codec is that of their data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.data.loader import Augment
from dualrate.experiment.experiment import DataConfig, Experiment


def on_codec_of_data(experiment: Experiment) -> Experiment:
    """The experiment with the codec whose latents its data are, where they say it is, unless the experiment has it
    already, wherever that is; one on images as it is. Raises as `read_latents`.
    """
    source = experiment.data.source
    if not is_encoded(source):
        return experiment
    codec = read_latents(source, "train").codec
    return experiment if experiment.codec.fingerprint == codec.fingerprint else replace(experiment, codec=codec)


@dataclass(frozen=True)
class Stages:
    """Raises ValueError for a base model of other latents than the first stage's, or with data of its own."""

    name: str
    """Of the two: letters, digits, _ . and -."""
    first: Experiment
    """Trains the codec: encoder, prior and decoder together."""
    base: Experiment
    """The model of its latents. These are its data."""

    def __post_init__(self) -> None:
        codec, base = self.first.codec, self.base
        if codec.data_shape(self.first.shape) == self.first.shape:
            raise ValueError(f"{self.first.name} trains no codec, so there are no latents for a second stage")
        if base.shape != self.first.shape:
            raise ValueError(
                f"the latents of {self.first.name} are {self.first.shape} (C, H, W), the networks of {base.name} take "
                f"{base.shape}: make them alike"
            )
        if base.process.end != self.first.process.end:
            raise ValueError(
                f"the first stage's decoder takes latents at log-SNR {self.first.process.end}, the process of "
                f"{base.name} ends at {base.process.end}: make the schedules' log_snr_max alike"
            )
        if replace(base.data, augment=Augment()) != DataConfig():
            raise ValueError(f"{base.name} is trained on the first stage's latents: give the images as --first.data")

    def on_latents(self, folder: Path) -> Experiment:
        """The base model's, on latents in a folder. Raises as `read_latents`."""
        return on_codec_of_data(replace(self.base, data=replace(self.base.data, source=str(folder))))
