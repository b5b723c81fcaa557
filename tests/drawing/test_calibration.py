"""The covariance table: right on a field that is known, kept beside the weights it belongs to, read for a plan."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from trouble import flips, full_disk, unreadable

import dualrate as dr
from dualrate.cli.main import main
from dualrate.data.condition_rows import Given
from dualrate.data.images import ImageSet
from dualrate.diffusion.context import Context, Refresh, Reuse
from dualrate.drawing import calibration as module
from dualrate.drawing.calibration import _measured, read_table, write_table
from dualrate.drawing.choice import step_for
from dualrate.runs.store import COVARIANCE, RELEASED, load
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.sampling.covariance import Bands, CovarianceTable
from dualrate.system.folders import Manifest
from tests.theory.common import PROCESS, f64

ROOT = Path(__file__).resolve().parents[2]
HEAVY, DUAL, LIGHT = (ROOT / "weights" / f"fashion-mnist-{name}" for name in ("heavy-annealed", "dual-45", "light"))
BANDS = Bands((1, 8, 8), rings=4)
POWER = torch.tensor([0.5, 0.1, 0.05, 0.02, 0.01, 0.005]).double()[: BANDS.count] / 16  # so that images lie in [-1, 1]


class Quiet:
    def update(self, done, total, logs): ...
    def note(self, text): ...
    def close(self): ...


class Field:
    """The exact denoiser of a Gaussian field of this power, times a gain."""

    def __init__(self, reuse=Reuse.FREE, gain=1.0, power=POWER):
        self.reuse, self.gain, self.power = reuse, gain, power

    def encode(self, z, t, cond):
        return Context((z,), tau=t)

    def denoise(self, z, t, context, cond):
        t = t.expand(len(z))[:, None]
        alpha, sigma2 = PROCESS.alpha(t), PROCESS.sigma(t) ** 2
        gain = self.gain * alpha * self.power / (alpha**2 * self.power + sigma2)
        return BANDS.inverse(BANDS.spread(gain.to(z)) * BANDS.transform(z))


def fields(count, seed=0, power=POWER) -> Tensor:
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return BANDS.inverse(BANDS.spread(power[None].sqrt()) * BANDS.transform(noise))


def images(x) -> ImageSet:
    return ImageSet(((x.clamp(-1, 1) + 1) * 127.5).round().byte().numpy(), None, (), "field")


def measured(denoiser, count=1000, levels=12, *, x=None, given=None) -> CovarianceTable:
    """In batches of 600, as a derivative takes as long of few of these images as of many."""
    of = {
        "process": PROCESS,
        "gaussian": PROCESS,
        "shape": (1, 8, 8),
        "num_classes": 0,
        "name": "field",
        "device": torch.device("cpu"),
        "given": given,
    }
    model = SimpleNamespace(denoiser=denoiser, ready=lambda bfloat16: model, **of)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ROWS": 600, "LOWEST": -levels, "HIGHEST": levels}.items():
            patch.setattr(module, name, value)
        source = images(fields(count) if x is None else x)
        return _measured(model, source, count, BANDS, Quiet())  # type: ignore[arg-type]


def test_of_an_exact_denoiser_both_are_the_posterior_covariance():
    table = measured(Field(), levels=6)
    coarse = table.log_snr < 5  # finer than that, rounding to 8 bits is most of what is not known
    for column in (0, -1):
        assert ((table.variance[:, column] / exact(table.log_snr))[coarse] - 1).abs().max() < 0.12
        assert ((table.variance * table.ratio)[:, column] / exact(table.log_snr) - 1)[coarse].abs().max() < 1e-4
    assert table.trust() == [("any", pytest.approx(1, abs=0.05), pytest.approx(1, abs=0.2))]


class OfGiven(Field):
    """Field around what is given."""

    def encode(self, z, t, cond):
        return Context((cond.given,))

    def denoise(self, z, t, context, cond):
        (mean,) = context.features
        return mean + super().denoise(z - PROCESS.alpha(t.expand(len(z)))[:, None, None, None] * mean, t, context, cond)


def test_of_a_conditional_denoiser_it_is_the_covariance_given_the_condition_at_every_age():
    y, power = fields(600, 1), POWER / 4
    x = (y + fields(600, 2, power)) / 2
    table = measured(OfGiven(power=power / 4), 600, 5, x=x, given=lambda sample: y[sample].float() / 2)
    found, expected = table.variance * table.ratio, exact(table.log_snr, power / 4)[:, None]
    assert (found / expected - 1)[table.log_snr < 4].abs().max() < 1e-4
    assert (table.variance / expected - 1)[table.log_snr < 1].abs().max() < 0.15
    assert torch.equal(table.variance[:, 0], table.variance[:, -1])


def test_a_denoiser_that_trusts_too_little_has_a_ratio_below_one():
    table = measured(Field(gain=0.5), count=200)
    assert table.ratio[len(table.log_snr) // 2].max() < 0.6


def test_the_variance_of_the_data_is_what_a_heavy_call_knows_in_noise():
    """Without a context a model that was never trained so knows less than nothing."""
    assert torch.equal(made().data, made().variance[0, 0])


def test_a_dual_rate_model_has_an_entry_for_every_context():
    table = measured(Field(Reuse.MARKOV), count=8, levels=6)
    assert [age for age, _, _ in table.trust()] == ["0", "1", "2", "3", "4", "6", "8", "12", "none"]
    size = len(table.log_snr)
    used = torch.ones(size, size).tril().bool()
    assert bool((table.variance[:, :size][used] > 0).all())


def test_at_a_heavy_call_the_error_is_that_of_what_the_encoder_computed():
    """And the derivative is the light network's, which here sees half."""

    class Own(Field):
        def encode(self, z, t, cond):
            return Context((z,), tau=t, x_hat=Field().denoise(z, t, Context(), cond))

        def denoise(self, z, t, context, cond):
            return super().denoise(z, t, context, cond) if context.x_hat is None else context.x_hat

    own, at = (
        measured(Own(Reuse.MARKOV, gain=0.5), count=200, levels=5),
        9,
    )  # log-SNR 4: half of the lowest band is known
    assert (own.variance * own.ratio / 0.5 / exact(own.log_snr)[:, None])[at, at, 0] == pytest.approx(1, abs=1e-4)
    assert own.variance[at, at, 0] / exact(own.log_snr)[at, 0] == pytest.approx(1, abs=0.25)
    assert own.variance[at, at - 1, 0] / exact(own.log_snr)[at, 0] > 1.3


def exact(log_snr, power=POWER):
    """(M, K) posterior variance."""
    alpha2, sigma2 = torch.sigmoid(log_snr)[:, None], torch.sigmoid(-log_snr)[:, None]
    return power * sigma2 / (alpha2 * power + sigma2)


def made() -> CovarianceTable:
    """variance[i, j, k] = exp(i + j / 10 + k / 100)."""
    log_snr = torch.arange(-3, 4, dtype=torch.float64)
    i, j, k = (torch.arange(n).float() for n in (7, 8, BANDS.count))
    variance = torch.exp(i[:, None, None] + j[:, None] / 10 + k / 100)
    ratio = torch.ones_like(variance)
    ratio[..., 0], ratio[..., 3] = 1.39, 0.71
    ratio[..., 1], ratio[..., 2] = 0.69, 1.41
    ratio[0, :, 3] = -2.0
    return CovarianceTable(BANDS, log_snr, variance, ratio)


def test_entries_are_found_by_time_and_context():
    levels = (-8.0, -2.0, -0.5, 1.0, 2.5, 9.0)
    t = PROCESS.schedule.time(f64(*levels)).tolist()
    full, keep, none = Refresh.FULL, Refresh.KEEP, Refresh.NONE
    plan = dr.StepPlan((*t, 0.0), (full, keep, full, keep, none, none))
    rows = made().tabulated(PROCESS, plan).variance.log()[:, 0]
    want = [
        0 + 0,  # below the table: its first entry
        1 + 0.0,  # at -2, context of -8: as of the oldest in the table
        2.5 + 0.25,  # a heavy call between two
        4 + 0.25,  # at 1, context of -0.5: between the columns of -1 and 0
        5.5 + 0.7,  # without a context: the last column
        6 + 0.7,  # above the table
    ]
    torch.testing.assert_close(rows, torch.tensor(want), rtol=0, atol=1e-5)


def test_of_white_noise_all_that_is_not_known_of_an_image_is_the_noise_level():
    t = f64(0.2, 0.5, 0.9)
    table = CovarianceTable.of_white_noise(BANDS)
    plan = dr.StepPlan((1.0, *t.flip(0).tolist(), 0.0), (Refresh.FULL, Refresh.KEEP, Refresh.NONE, Refresh.FULL))
    rows = table.tabulated(PROCESS, plan).variance[1:]
    torch.testing.assert_close(
        rows.double(), (PROCESS.sigma(t.flip(0)) ** 2)[:, None].expand_as(rows), rtol=0.05, atol=0
    )
    assert table.probed(PROCESS, plan).trusted.all()


def test_derivatives_are_used_where_their_ratio_is_trusted():
    plan = dr.StepPlan((1.0, 0.5, 0.0), (Refresh.FULL, Refresh.FULL))
    step = made().probed(PROCESS, plan)
    assert step.trusted.tolist() == [[True, False, False, False], [True, False, False, True]]
    assert torch.equal(step.data, made().data)


def test_a_table_is_kept_beside_its_weights(tmp_path):
    model = replace(load(DUAL), path=tmp_path)
    with pytest.raises(ValueError, match=rf"has no {COVARIANCE}: measure it with `dualrate plan calibrate"):
        read_table(model)
    write_table(made(), tmp_path / COVARIANCE, model.weights_hash, 7)
    read_table(replace(model, conditions=Given(torch.zeros(2, 1, 1, 1))))  # whatever it is given
    again = read_table(model)
    for name in ("log_snr", "variance", "ratio"):
        assert torch.equal(getattr(again, name), getattr(made(), name))
    assert again.bands == BANDS
    assert [file.name for file in tmp_path.iterdir()] == [COVARIANCE]
    with pytest.raises(ValueError, match="for other weights: measure it again"):
        read_table(replace(model, weights_hash="other"))
    (tmp_path / COVARIANCE).write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match=r"is damaged.*measure it again with `dualrate plan calibrate"):
        read_table(model)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.of_table])
def test_released_weights_have_theirs(name):
    plan = dr.StepPlan.uniform(4)
    for run in (HEAVY, DUAL):
        model = load(run)
        step = step_for(model, plan, name)
        assert type(step) is SAMPLERS[name].step
        assert step.markovian == SAMPLERS[name].markovian
        images = next(iter(dr.sample_batches(model.denoiser, step, plan, model.shape, [0, 1], [0, 1])))
        assert images.isfinite().all()
        assert images.std() > 0.3
    with pytest.raises(ValueError, match="means nothing to"):
        step_for(model, plan, name, eta=0.5)


def test_the_command_measures_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "LOWEST", -2)
    monkeypatch.setattr(module, "HIGHEST", 2)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(64) % 10)
    run = tmp_path / "run"
    shutil.copytree(LIGHT, run, ignore=shutil.ignore_patterns("covariance*"))
    experiment = (run / "experiment.json").read_text()
    (run / "experiment.json").write_text(experiment.replace('"fashion-mnist"', f'"{tmp_path / "images.npz"}"'))
    Manifest.write(run, RELEASED)

    def command(*options):
        monkeypatch.setattr("sys.argv", ["dualrate", *options])
        main()

    command("plan", "calibrate", str(run), "--images", "4", "--rings", "3")
    told = capsys.readouterr().out
    assert "median ratio" in told
    assert read_table(load(run)).bands.count == 3
    command(
        "sample", str(run), "--sampler", "covariance-jvp", "--steps", "2", "--num", "2", "--out", str(tmp_path / "o")
    )
    assert "light_calls_per_image" in capsys.readouterr().out
    for wrong, message in (("1", "from 2 to"), ("65", "ask for 1 to")):
        with pytest.raises(SystemExit):
            command("plan", "calibrate", str(run), "--images", wrong)
        assert message in capsys.readouterr().err


def test_a_model_from_nowhere_has_no_place_for_a_table():
    from dualrate.drawing.calibration import calibrate

    with pytest.raises(ValueError, match="not loaded from a directory"):
        calibrate(replace(load(HEAVY), path=None), images=4, rings=3, progress=Quiet())


def test_any_flipped_bit_of_a_table_is_found(tmp_path):
    model = replace(load(DUAL), path=tmp_path)
    write_table(made(), tmp_path / COVARIANCE, model.weights_hash, 7)
    for flipped in flips((tmp_path / COVARIANCE).read_bytes(), 200):
        (tmp_path / COVARIANCE).write_bytes(flipped)
        with pytest.raises(ValueError, match=r"is damaged|for other weights"):
            read_table(model)


def test_a_table_that_cannot_be_read_is_not_damaged(tmp_path):
    model = replace(load(DUAL), path=tmp_path)
    write_table(made(), tmp_path / COVARIANCE, model.weights_hash, 7)
    with unreadable(tmp_path / COVARIANCE, tmp_path), pytest.raises(PermissionError, match=COVARIANCE):
        read_table(model)


def test_a_full_disk_leaves_the_old_table(tmp_path):
    model = replace(load(DUAL), path=tmp_path)
    write_table(made(), tmp_path / COVARIANCE, model.weights_hash, 7)
    with full_disk(500), pytest.raises(OSError, match="covariance"):
        write_table(made(), tmp_path / COVARIANCE, model.weights_hash, 8)
    read_table(model)
    assert [file.name for file in tmp_path.iterdir()] == [COVARIANCE]
