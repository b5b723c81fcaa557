"""Both stages of Unified Latents by one command: killed in each, and between them, it goes on; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from latents.autoencoders import photos
from latents.tiny_stage import LATENT, first_stage

import dualrate as dr
from dualrate.cli import train as cli_train
from dualrate.codecs.codec import read_codec
from dualrate.data.latent_set import read_latents
from dualrate.diffusion.process import GaussianProcess, NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment, Stages
from dualrate.options.training import Run
from dualrate.runs import train as runs_stages
from dualrate.runs import train as runs_train
from dualrate.runs.store import load
from dualrate.runs.train import in_stages

QUICK = {"sample_every": 9, "checkpoint_every": 1}


@pytest.fixture
def stages(tmp_path: Path, monkeypatch) -> Stages:
    """tiny, among the recipes; the working directory is empty but for its images."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "images.npz", images=photos(24).transpose(0, 2, 3, 1))
    first = first_stage(tmp_path / "images.npz")
    first = replace(first, fit=replace(first.fit, **QUICK))
    base = Experiment("base", dr.OneNetwork(LATENT), dr.DenoisingConfig(), first.fit, process=first.process)
    made = Stages("tiny", first, base)
    monkeypatch.setitem(cli_train.STAGES, "tiny", lambda: made)
    return made


def test_one_command_goes_on_from_wherever_it_was_killed(stages: Stages, monkeypatch, capsys) -> None:
    """In the first stage, in its latents, and in the second; the result is that of stages that were never killed."""
    for experiment, folder in in_stages(stages, Path("straight")):
        dr.train(experiment, folder)
    fit, train = runs_train.fit, ("train", "tiny")

    def stopped_in(stage: str):
        """`fit`, which a run of that stage leaves after an iteration."""

        def stopping(method, batches, config, out, *of, **how):
            if out.name == stage:
                config = replace(config, max_seconds=1e-6, optim=replace(config.optim, decay="none"))
            return fit(method, batches, config, out, *of, **how)

        return stopping

    def killed(*of, **how):
        raise KeyboardInterrupt("killed")

    for place, what, instead, code, left in (
        (runs_train, "fit", stopped_in("first"), 0, {"first"}),
        (runs_stages, "encode", killed, 130, {"first"}),
        (runs_train, "fit", stopped_in("base"), 0, {"first", "latents", "base"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, what, instead)
            assert call(monkeypatch, *train) == code
        assert {path.name for path in Path("runs/tiny").iterdir()} == left
    assert call(monkeypatch, *train) == 0
    told = capsys.readouterr().err
    assert told.count("out of time, saved at iteration 1") == 2
    assert told.count("finished at iteration 2") == 4  # the first stage has nothing left to do, three times of four
    for part in ("first", "base"):
        one, other = (load(Path(root) / part, note=str).networks.state_dict() for root in ("straight", "runs/tiny"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_latents("runs/tiny/latents", "train").packed.dataset["row"]["each"] == 1  # no mirrored ones
    drawn = ("sample", "runs/tiny/base", "--num", 2, "--steps", 2, "--out", "drawn")
    assert call(monkeypatch, *drawn) == 0
    capsys.readouterr()
    assert call(monkeypatch, "sample", "runs/tiny", "--out", "more") == 2
    assert "runs/tiny is no run, it holds base, first: name one, as runs/tiny/base" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"give its .*/base or .*/first"):
        read_codec("runs/tiny")
    assert call(monkeypatch, "train", "tiny", "--first.fit.iterations", 3) == 2
    assert "codec" in capsys.readouterr().err  # the latents are of the first stage as it was


def test_stages_go_on_at_another_place(stages: Stages) -> None:
    """The latents say where the codec was; it is beside them."""
    more = replace(stages, base=replace(stages.base, fit=replace(stages.base.fit, iterations=3)))
    for made, out in ((stages, "here"), (more, "there")):
        if Path("here").exists():
            Path("here").rename("there")
        for experiment, folder in in_stages(made, Path(out)):
            Run(out=folder, device="cpu").train(experiment)
    model = load("there/base", note=str)
    assert (model.iteration, model.experiment.codec.folder) == (3, str(Path("there/first").resolve()))


def test_a_stage_that_the_clock_ends_is_followed_by_the_next(stages: Stages) -> None:
    first, base = (
        replace(one, fit=replace(one.fit, iterations=None, max_seconds=0.01)) for one in (stages.first, stages.base)
    )
    cli_train.TrainStages(replace(stages, first=first, base=base), Path("timed"), device="cpu").run()
    assert load("timed/base", note=str).iteration >= 1


def test_stages_that_do_not_fit_are_refused(stages: Stages, monkeypatch, capsys) -> None:
    base = stages.base
    for other, said in (
        ({"process": NoisyEnd(Cosine(log_snr_max=4.0))}, "at log-SNR 5.0, base takes .* at 4.0"),
        ({"process": GaussianProcess(Cosine())}, "at None: make"),
        ({"networks": dr.OneNetwork(replace(LATENT, image_channels=3))}, r"are \(2, 4, 4\) .* takes \(3, 4, 4\)"),
        ({"data": DataConfig("images.npz")}, "give the images as --first.data"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(stages, base=replace(base, **other))
    with pytest.raises(ValueError, match="trains no codec"):
        replace(stages, first=base)
    Path("run").mkdir()
    Path("run/experiment.json").write_text("{}")
    assert call(monkeypatch, "train", "tiny", "--out", "run") == 2
    assert "run is a run of one stage" in capsys.readouterr().err
