"""studies/errors.py: errors by noise level and age, on denoisers whose errors are known."""

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dualrate as dr
from dualrate.data.images import to_float
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Context, Reuse
from dualrate.training.config import FitConfig
from tests.training.toy import Recorder

ROOT = Path(__file__).resolve().parents[2]
NET = dr.UViTConfig(8, 1, (dr.Level("conv", 8, 1),), patch=2, embedding=16)


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    return importlib.import_module("errors")


class Constant:
    """x_hat is a number: of a light call with a context, of one without, and of the encoder at its own time."""

    reuse = Reuse.MARKOV

    def __init__(self, kept: float, alone: float, own: float) -> None:
        self.kept, self.alone, self.own = kept, alone, own
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # z_t and t, or z_tau and tau

    def encode(self, z, t, cond) -> Context:
        self.seen.append((z, t))
        return Context((z,), tau=t, x_hat=torch.full_like(z, self.own))

    def denoise(self, z, t, context, cond):
        self.seen.append((z, t))
        light = torch.full_like(z, self.kept if context.features else self.alone)
        return light if context.x_hat is None else context.x_hat


@pytest.fixture
def models(tmp_path):
    """A dual-rate model whose x_hat is 0.5 with an older context, 0.25 without, 0.75 the encoder's own, and a heavy one
    whose is 0; their images.
    """
    images = np.random.default_rng(0).integers(0, 256, (4000, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    data = dr.DataConfig(str(tmp_path / "images.npz"))
    two = dr.Experiment("two", dr.TwoNetworks(NET, NET), dr.DenoisingConfig(dr.TimeSampler()), FitConfig(1), data)
    one = dr.Experiment("one", dr.OneNetwork(NET), dr.DenoisingConfig(), FitConfig(1), data)
    (networks, _), (network, _) = two.build(), one.build()
    x = to_float(data.load("test").images[:])
    dual = dr.Model("two", two, networks, Constant(0.5, 0.25, 0.75), 1, weights_hash="a" * 64)
    return dual, dr.Model("one", one, network, Constant(0.0, 0.0, 0.0), 1, weights_hash="b" * 64), x


def test_errors_of_known_estimates(study, models):
    dual, heavy, x = models
    cells = study.measure(dual, heavy, len(x), Recorder())
    json.dumps([asdict(cell) for cell in cells])
    whole = {cell.age: cell for cell in cells if cell.log_snr == study.ALL}
    for age, x_hat in ((study.OWN, 0.75), (study.NONE, 0.25)):
        each = (x - x_hat).square().flatten(1).mean(1).double()
        found = whole[age]
        assert found.count == len(x)
        assert found.data.value == pytest.approx(each.mean().item(), rel=1e-5)
        assert found.data.error == pytest.approx(each.std().item() / len(x) ** 0.5, rel=1e-4)
        assert (found.heavy.value, found.heavy.error) == (pytest.approx(x_hat**2), pytest.approx(0, abs=1e-9))
        assert found.excess.value == pytest.approx((each - x.square().flatten(1).mean(1)).mean().item(), rel=1e-4)
    for young, old in study.AGES:  # the share of (t, tau) with tau <= 1
        assert whole[study.named((young, old))].count == pytest.approx((1 - (young + old) / 2) * len(x), rel=0.1)
        assert whole[study.named((young, old))].heavy.value == pytest.approx(0.5**2)
    for age in whole:
        assert sum(cell.count for cell in cells if cell.age == age and cell.log_snr != study.ALL) <= whole[age].count
    assert len(study.markdown(study.HEADER, (cell.texts() for cell in cells), texts=2).splitlines()) == len(cells) + 2


def test_contexts_are_as_old_as_their_cell_says_and_of_the_same_path(study, models):
    """z_tau given z_t is the transition's: what is left has the variance of it."""
    dual, heavy, x = models
    study.measure(dual, heavy, len(x), Recorder(), batch_size=len(x))
    (_, t), *_ = dual.denoiser.seen  # without a context
    pairs = dual.denoiser.seen[3:]  # after the two calls at t itself
    for (young, old), (z_tau, tau), (z, own) in zip(study.AGES, pairs[::2], pairs[1::2], strict=True):
        age = tau - own
        assert young <= age.min()
        assert age.max() <= old
        assert tau.max() <= 1
        law = dual.process.transition(z, own, tau)
        left = (z_tau - law.mean) / law.variance.sqrt()
        assert left.square().mean().item() == pytest.approx(1, rel=0.05)
        assert set(own.tolist()) <= set(t.tolist())


def test_a_single_network_has_no_ages_and_another_process_no_comparison(study, models):
    dual, heavy, _ = models
    heavy.denoiser.reuse = Reuse.FREE
    cells = study.measure(heavy, heavy, 40, Recorder())
    assert {cell.age for cell in cells} == {study.NONE}
    assert {cell.excess.value for cell in cells} == {0.0}
    shifted = replace(heavy.experiment, process=dr.GaussianProcess(Cosine(shift=-1.0)))
    with pytest.raises(ValueError, match="another process"):
        study.measure(dual, replace(heavy, experiment=shifted), 4, Recorder())
