"""Reference statistics from files: both published layouts, and everything that is not one of them."""

import hashlib
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch

from dualrate.data.images import ImageSet
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.references import load_reference
from dualrate.metrics.store import require_same
from metrics.armed import Armed, armed_pickle
from metrics.scored import score_of

GENERATOR = np.random.default_rng(0)
MU = GENERATOR.normal(size=4)
SIGMA = np.cov(GENERATOR.normal(size=(4, 30)))


class Quadrants:
    """Four features: the mean of every quarter of the image."""

    metric, identity, dim, usual_count = "FD-quadrants", "quadrants:0123456789ab", 4, 100

    def features(self, images) -> torch.Tensor:
        quarters = torch.as_tensor(np.array(images)).float().mean(1)
        return torch.nn.functional.adaptive_avg_pool2d(quarters, 2).flatten(1)


def pixels(count: int = 60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "reference.npz"


def load(path):
    return load_reference(path, Quadrants())


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_edm_layout(path, kind):
    np.savez(path, mu=MU.astype(kind), sigma=SIGMA.astype(kind))
    reference = load(path)
    assert reference.stats.mean.dtype == reference.stats.cov.dtype == torch.float64
    np.testing.assert_allclose(reference.stats.mean, MU, rtol=1e-6)
    np.testing.assert_allclose(reference.stats.cov, SIGMA, rtol=1e-6)
    assert reference.stats.count is None
    assert reference.name == "reference.npz"
    assert reference.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("images", [3, 30, 60])
def test_statistics_in_float32_of_fewer_images_than_features_are_those_in_float64(path, monkeypatch, images):
    monkeypatch.setattr(Quadrants, "dim", 64)
    generator = np.random.default_rng(2)
    features = np.maximum(generator.normal(size=(images, 64)) * np.exp(-np.arange(64) / 8) + 0.4, 0)
    mean, cov = features.mean(0), np.cov(features, rowvar=False)
    np.savez(path, mu=mean.astype(np.float32), sigma=cov.astype(np.float32))
    rounded, exact = load(path).stats, GaussianStats(torch.from_numpy(mean), torch.from_numpy(cov), None)
    np.testing.assert_allclose(rounded.cov, cov, atol=1e-6 * cov.max())
    assert frechet_distance(rounded, exact) == pytest.approx(0, abs=1e-5 * np.trace(cov))


@pytest.mark.parametrize(("count", "noted"), [(7, True), (8, False)])
def test_few_training_images_are_all_that_there_are_so_the_note_says_how_many(count, noted):
    judge = Evaluator(Quadrants(), ImageSet(pixels(count), None, (), "few/train"), None)
    score = score_of(judge, pixels(), seeds="0-59", labels="none", resamples=10)
    note = f"the reference, {count} training images, is less than twice the 4 features"
    assert (note in score.note) == noted


def test_adm_layout_has_statistics_of_more_images_than_it_holds(path):
    images = pixels().transpose(0, 2, 3, 1)
    np.savez(path, mu=MU, sigma=SIGMA, mu_s=np.zeros(7), sigma_s=np.eye(7), arr_0=images)
    np.testing.assert_array_equal(load(path).stats.mean, MU)


def test_a_score_is_scipys_distance_from_the_file(path):
    mu, sigma = 100 + 9 * MU, 90 * SIGMA
    np.savez(path, mu=mu, sigma=sigma)
    score = score_of(Evaluator(Quadrants(), load(path), None), pixels(), seeds="0-59", labels="none", resamples=50)
    features = Quadrants().features(pixels()).double().numpy()
    cov = np.cov(features.T)
    cross = scipy.linalg.sqrtm(cov @ sigma).real
    expected = ((features.mean(0) - mu) ** 2).sum() + np.trace(cov + sigma - 2 * cross)
    assert score.value == pytest.approx(expected, rel=1e-9)
    assert score.low < score.value < score.high


def test_the_fingerprint_and_the_note_say_what_the_reference_is(path, tmp_path):
    np.savez(path, mu=MU, sigma=SIGMA)
    np.savez(tmp_path / "other.npz", mu=MU + 1, sigma=SIGMA)
    one, other = (
        score_of(Evaluator(Quadrants(), load(file), None), pixels(), seeds="0-59", labels="none", resamples=10)
        for file in (path, tmp_path / "other.npz")
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert one.fingerprint.reference == f"reference.npz:{digest[:12]}"
    assert one.fingerprint.reference_count is None
    assert "against the statistics in reference.npz" in one.note
    assert "no floor" in one.note
    with pytest.raises(ValueError, match=r"reference \(reference.npz:"):
        require_same([one.fingerprint, other.fingerprint])


NAN = np.where(np.arange(4) == 2, np.nan, MU)
BAD = {
    "nan": ({"mu": NAN, "sigma": SIGMA}, "NaN"),
    "infinity": ({"mu": MU, "sigma": SIGMA * np.inf}, "infinity"),
    "wrong dim": ({"mu": np.zeros(5), "sigma": np.eye(5)}, r"mu \(5,\) and sigma \(5, 5\); expected dimensions of 4"),
    "flat sigma": ({"mu": MU, "sigma": SIGMA[0]}, r"sigma \(4,\); expected"),
    "row mu": ({"mu": MU[None], "sigma": SIGMA}, r"mu \(1, 4\)"),
    "asymmetric": ({"mu": MU, "sigma": SIGMA + np.eye(4, k=1)}, "not symmetric"),
    "negative": ({"mu": MU, "sigma": np.diag([1.0, 1.0, 1.0, -0.1])}, "eigenvalue -0.1 < 0"),
    "integers": ({"mu": np.zeros(4, int), "sigma": np.eye(4)}, "int64; expected float32 or float64"),
    "no sigma": ({"mu": MU, "mu_s": MU}, "it holds mu, mu_s; expected mu and sigma"),
    "images alone": ({"arr_0": np.zeros((9, 6, 6, 3), np.uint8)}, "it holds arr_0; expected .*evaluate --images"),
    "nothing": ({}, "it holds nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_statistics_are_refused_and_the_expected_extractor_named(path, arrays, message):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"{message}.*") as caught:
        load(path)
    assert "FD-quadrants in the features quadrants:0123456789ab" in str(caught.value)
    assert str(path) in str(caught.value)


def test_pickles_are_never_opened(path, tmp_path):
    sentinel = tmp_path / "sentinel"
    content = armed_pickle(sentinel)
    (tmp_path / "edm2.pkl").write_bytes(content)
    (tmp_path / "renamed.npz").write_bytes(content)
    np.savez(tmp_path / "objects.npz", mu=np.array([Armed(sentinel)], dtype=object), sigma=SIGMA, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("mu.npy", content)
        archive.writestr("sigma.npy", content)
    for name in ("edm2.pkl", "renamed.npz", "objects.npz", "member.npz"):
        with pytest.raises(ValueError, match="quadrants:0123456789ab"):
            load(tmp_path / name)
        assert not sentinel.exists(), name


def test_a_pickle_is_answered_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "edm2.pkl").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"never opened.*\['fid'\].*numpy.savez\('FILE.npz'"):
        load(tmp_path / "edm2.pkl")


def test_damaged_and_missing_files_are_refused(path):
    np.savez(path, mu=MU, sigma=SIGMA)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(MU.tobytes(), (MU + 1).tobytes()))  # the archive's checksum notices
    with pytest.raises(ValueError, match="cannot be read"):
        load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load(path)
