"""What is looked at before a training run does any work: where it would write, and what its images lack."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dualrate.codecs.codec import Codec
from dualrate.data.loader import TrainingSet
from dualrate.experiments.experiment import Experiment, Model
from dualrate.machine.folders import check_link, some_of

SAMPLES = "sample.json"  # is in a folder of samples, which no run can be in
OF_A_RUN = ("experiment.json", "checkpoints", ".lock")  # one of them is there as soon as a run has started
TRIAL = ".trial-"  # of files that are made to see whether any can be
LOGS = (".log", ".out", ".err")  # what a shell or a scheduler may have put there first


def check_out(name: str, out: Path) -> None:
    """Raises ValueError or OSError unless a run of this name can be trained in `out`. Leaves no trace.

    `out` may be new, empty but for logs, or hold a run; a link to a directory is followed.
    """
    if not re.fullmatch(r"\w[\w.-]{0,79}", name, flags=re.ASCII):
        raise ValueError(f"a run's name is 1 to 80 letters, digits and _ . - and no path, got {name!r}")
    check_link(out)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file, so no run can be in {out}: choose another --out")
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=TRIAL):  # which NFS shows while it is open, to all processes
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {existing} ({error.strerror}): choose another --out") from error
    if existing == out:
        _check_content(out)


def check_names(plain: Any) -> None:
    """Raises ValueError where a part of an experiment, as JSON, is of a class that no other process can import."""
    if isinstance(plain, list):
        for part in plain:
            check_names(part)
    if not isinstance(plain, dict):
        return
    module, colon, name = str(plain.get("type")).partition(":")
    if colon and (module == "__main__" or "<locals>" in name):
        where = "in a notebook or script" if module == "__main__" else f"within a function of {module}"
        own = name.rpartition(".")[2]
        raise ValueError(
            f"{own} is defined {where}, where no command finds it again, so what is trained could not be loaded: move "
            f"the class to the top of a file of its own, such as my_parts.py, and write `from my_parts import {own}` "
            "here; commands then load the run by dualrate --import my_parts COMMAND ..."
        )
    for part in plain.values():
        check_names(part)


def _check_content(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir())
    if "model.safetensors" in names:
        raise ValueError(
            f"{out} holds released weights, which would be loaded instead of the run: choose another --out"
        )
    if SAMPLES in names:
        raise ValueError(f"{out} holds samples ({SAMPLES}): choose another --out")
    foreign = [name for name in names if not name.endswith(LOGS) and not name.startswith((TRIAL, ".nfs"))]
    if foreign and not set(OF_A_RUN) & set(names):
        raise ValueError(f"{out} holds {some_of(foreign)} but no run: choose a new or empty directory as --out")


def check_codec(experiment: Experiment, images: TrainingSet) -> None:
    """Raises ValueError unless the images are what the experiment's codec is trained on: images, or its own latents."""
    if images.alphabet != experiment.codec.alphabet:
        found, expected = (
            f"a text of {len(alphabet)} characters" if alphabet else "a set of pictures"
            for alphabet in (images.alphabet, experiment.codec.alphabet)
        )
        raise ValueError(
            f"{images.name} is {found}, and {experiment.name} is of {expected}, these or others: name the data that it "
            "was begun on, or begin a new run (dualrate train text-tokens is of texts)"
        )
    own, of_data = experiment.codec.fingerprint, images.codec.fingerprint
    if own == of_data:
        return
    said = {True: "latents by the codec {} (sha256)", False: "images"}
    found, expected = (said[bool(one)].format(one[:12]) for one in (of_data, own))
    raise ValueError(
        f"{images.name} has {found}, and {experiment.name} is trained on {expected}: name the data that it was begun "
        "on, or begin a new run, in Python with `dualrate.experiments.latents.on_codec_of_data`"
    )


def check_end(experiment: Experiment, codec: Codec) -> None:
    """Raises ValueError unless what is sampled is what the codec decodes: latents with their noise, or without."""
    drawn, taken = experiment.process.end, codec.log_snr
    if drawn != taken:
        said = [f"with noise, at log-SNR {end:g}" if end is not None else "without noise" for end in (taken, drawn)]
        raise ValueError(
            f"the codec decodes latents {said[0]}, the process of {experiment.name} ends in latents {said[1]}: give a "
            "NoisyEnd with a schedule of that log_snr_max, as in recipes/fashion_mnist_latents.py, or a GaussianProcess"
        )


def check_export(model: Model) -> None:
    """Raises ValueError for a decoder, which draws nothing of noise alone."""
    if model.experiment.networks.latent is not None:
        raise ValueError(f"{model.name} is a decoder, which is given latents: export the model that draws them")


def data_notes(images: TrainingSet, num_classes: int, batch_size: int) -> list[str]:
    """What is odd about the images but no error. num_classes: of the networks, 0 if unconditional."""
    notes = []
    if images.labels is not None and num_classes:
        missing = np.flatnonzero(np.bincount(images.labels, minlength=num_classes)[:num_classes] == 0).tolist()
        if missing:
            found = f"{len(missing)} of the networks' {num_classes} classes: {some_of(missing, 10)}"
            notes.append(f"{images.name} has no image of {found}")
    if len(images) < batch_size:
        notes.append(f"{images.name} has {len(images)} image(s), fewer than a batch of {batch_size}: they repeat in it")
    return notes
