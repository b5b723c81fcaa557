"""Which feature net scores: the one given, the one shipped for these very images, or a cached one."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from metrics.squares import two_classes
from metrics.untrained import untrained
from runs.made import ONE, saved_random

from dualrate.data.images import ImageSet, load_images
from dualrate.drawing import evaluators as module
from dualrate.drawing.evaluators import SHIPPED, evaluator, evaluators, features_named, messages
from dualrate.drawing.measure import score_source, scorer
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics.distances import GaussianStats
from dualrate.metrics.features import CARD, Architecture, FeatureNet, Mixed, train_feature_net
from dualrate.report.image_grid import png_bytes


class Notes:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []

    def update(self, iteration, total, logs):
        assert logs["images"] > 0
        self.done.append((iteration, total))

    def note(self, text):
        self.notes.append(text)

    def close(self):
        pass


def saved(path, **options) -> DataConfig:
    squares = two_classes(80, **options)
    assert squares.labels is not None
    np.savez(path, images=squares.images, labels=squares.labels)
    return DataConfig(str(path))


@pytest.fixture
def data(tmp_path, monkeypatch) -> DataConfig:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    return saved(tmp_path / "squares.npz")


def test_a_net_is_trained_on_first_use_and_then_found(data, tmp_path):
    first, second = Notes(), Notes()
    judge = evaluator(data, features=None, progress=first)
    assert any("training a feature net" in note for note in first.notes)
    assert first.done[-1][0] == first.done[-1][1]
    assert isinstance(judge.reference, ImageSet)
    assert (len(judge.reference), judge.held_out and len(judge.held_out)) == (72, 8)
    assert list((tmp_path / "cache" / "features").glob(f"*/{CARD}"))
    again = evaluator(data, features=None, progress=second)
    assert again.net.card == judge.net.card
    assert not second.notes
    assert not second.done


@pytest.mark.parametrize(
    ("features", "least"),
    [(None, "FD-squares needs at least 192"), ("inception", "FID needs at least 4096")],
)
def test_too_few_images_are_refused_before_a_net_is_trained_or_loaded(data, tmp_path, monkeypatch, features, least):
    def nothing(*of, **how):
        pytest.fail("a net is trained, or loaded")

    monkeypatch.setattr(module, "train_feature_net", nothing)
    monkeypatch.setattr(module.pretrained, "load", nothing)
    for judges in (evaluator, evaluators):
        with pytest.raises(ValueError, match=rf"{least}.* images, got 100"):
            judges(data, features=features, progress=Notes(), count=100)


@pytest.mark.parametrize("command", ["evaluate RUN --num 100", "compare RUN --screen 100 --count 200 --out out.html"])
def test_commands_refuse_too_few_images_before_a_net_is_trained(data, tmp_path, monkeypatch, capsys, command):
    saved_random(replace(ONE, data=data), tmp_path / "run")
    monkeypatch.setattr(module, "train_feature_net", lambda *of, **how: pytest.fail("a net is trained"))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *command.replace("RUN", "run").split()) == 2
    assert "dualrate: FD-squares needs at least 192 images, got 100: draw or give more" in capsys.readouterr().err


def test_a_shipped_net_needs_no_training_and_serves_only_its_own_images(data, tmp_path, monkeypatch):
    train = load_images(data.source, split="train")
    net = train_feature_net(train, None, seed=5, epochs=1)
    net.save(tmp_path / "nets" / "squares")
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "nets")
    notes = Notes()
    assert evaluator(data, features=None, progress=notes).net.card == net.card
    assert not notes.done
    others = evaluator(saved(tmp_path / "others.npz", seed=1), features=None, progress=notes)
    assert others.net.card.identity != net.card.identity
    assert notes.done


def test_a_given_net_is_used_and_must_take_these_images(data, tmp_path):
    net = train_feature_net(two_classes(seed=8), None, seed=7, epochs=1)
    net.save(tmp_path / "own")
    notes = Notes()
    assert evaluator(data, features=tmp_path / "own", progress=notes).net.card == FeatureNet.load(tmp_path / "own").card
    larger = saved(tmp_path / "larger.npz", size=16)
    with pytest.raises(ValueError, match=r"images of \(1, 16, 16\).*takes \(1, 12, 12\)"):
        evaluator(larger, features=tmp_path / "own", progress=notes)
    with pytest.raises(OSError, match="features"):
        evaluator(data, features=tmp_path / "missing", progress=notes)


def test_a_net_that_hardly_knows_its_classes_is_refused(tmp_path, monkeypatch):
    """Given or trained here: of three classes whose labels say nothing of their images."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images, labels=generator.permutation(np.arange(90) % 3))
    noise = DataConfig(str(tmp_path / "noise.npz"))
    for _ in range(2):  # when it was kept, too
        with pytest.raises(ValueError, match=r"feature net of noise has accuracy .*a guess has 0\.33.*at least 0\.67"):
            evaluator(noise, features=None, progress=Notes())
    with pytest.raises(ValueError, match=r"at least 0\.67"):
        scorer(noise, Notes())
    untrained(Architecture(1, 8, 3, features=4), accuracy=0.5).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"accuracy 0\.50 .*at least 0\.67"):
        score_source(tmp_path / "noise.npz", noise, features=tmp_path / "net", progress=Notes())


def test_the_accuracy_of_a_net_stands_beside_its_distances(data, tmp_path, monkeypatch, capsys):
    """In the note, in JSON, and before the scores of a training."""
    untrained(Architecture(1, 12, 2, features=4), accuracy=0.875).save(tmp_path / "net")
    words = "the classifier of noise has accuracy 0.875 on held-out images, a guess 0.5"
    (score,) = score_source(data.source, data, features=tmp_path / "net", progress=Notes())
    assert score.accuracy == 0.875
    assert words in score.note
    options = ("--reference", data.source, "--features", tmp_path / "net")
    assert call(monkeypatch, "evaluate", "--images", data.source, *options) == 0
    assert words in capsys.readouterr().out
    assert call(monkeypatch, "evaluate", "--images", data.source, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["accuracy"] == 0.875
    notes = Notes()
    scorer(data, notes)
    assert any("the classifier of squares has accuracy" in note for note in notes.notes)


def test_images_without_labels_get_a_net_that_tells_how_they_are_turned(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    images = two_classes(80).images.copy()
    images[:, :, :4] = 255
    np.savez(tmp_path / "bare.npz", images=images)
    notes, bare = Notes(), DataConfig(str(tmp_path / "bare.npz"))
    judge = evaluator(bare, features=None, progress=notes)
    assert judge.metric == "FD-bare-turns"
    assert any("no classes, to tell how an image is turned" in note for note in notes.notes)
    train_feature_net(two_classes(seed=8), None, seed=7, epochs=1).save(tmp_path / "own")
    assert evaluator(bare, features=tmp_path / "own", progress=notes).held_out is not None


def test_judges_are_named_with_commas_between(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "a,b"):
        (tmp_path / name).mkdir()
    shipped = SHIPPED / "fashion-mnist-b"
    for text, expected in (
        (None, (None,)),
        ("mine", (Path("mine"),)),
        (tmp_path / "mine", (tmp_path / "mine",)),
        ("a,b", (Path("a,b"),)),
        ("mine, fashion-mnist-b,inception", (Path("mine"), shipped, "inception")),
        ("efficientnet", ("efficientnet",)),
    ):
        assert features_named(text) == expected
    for text in ("nobody", "mine,", "", "mine,,inception"):
        with pytest.raises(ValueError, match=r"there is no feature net .*fashion-mnist-b"):
            features_named(text)
    (tmp_path / "fashion-mnist-b").mkdir()
    assert features_named("fashion-mnist-b") == (Path("fashion-mnist-b"),)


def test_several_judges_have_names_of_their_own(data, tmp_path):
    for name, kind in (("one", Architecture), ("two", Mixed)):
        train_feature_net(two_classes(), None, seed=0, epochs=1, kind=kind, name=name).save(tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    judges = evaluators(data, f"{one},{two}", progress=Notes())
    assert [judge.metric for judge in judges] == ["FD-one", "FD-two"]
    with pytest.raises(ValueError, match="got the metrics FD-one, FD-two, FD-one"):
        evaluators(data, f"{one},{two},{one}", progress=Notes())


@pytest.mark.parametrize("kind", ["folder", "npz", "zip"])
def test_images_of_anybody_are_scored_as_samples_are(data, tmp_path, monkeypatch, capsys, kind):
    """In the same features, with the same floor; by the command too."""
    images = two_classes(24, seed=3).images
    folder, source = tmp_path / "theirs", tmp_path / ("theirs" if kind == "folder" else f"theirs.{kind}")
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i:03}.png").write_bytes(png_bytes(image))
    if kind == "npz":
        np.savez(source, arr_0=images.transpose(0, 2, 3, 1))
    elif kind == "zip":
        source = Path(shutil.make_archive(str(folder), "zip", folder)).rename(tmp_path / "theirs.ZIP")
    untrained(Architecture(1, 12, 2, features=4)).save(tmp_path / "net")
    (score,) = score_source(source, data, features=tmp_path / "net", progress=Notes())
    own = evaluator(data, features=tmp_path / "net", progress=Notes())
    expected = own.score_features(own.net.features(images), seeds=f"images of {source.name}", labels="unknown")
    assert score.value == pytest.approx(expected.value)
    assert (score.low, score.high, score.floor) == pytest.approx((expected.low, expected.high, expected.floor))
    assert score.fingerprint == expected.fingerprint
    options = ("--reference", data.source, "--features", tmp_path / "net", "--json")
    if kind == "npz":
        stats = GaussianStats.of(own.reference_features)
        np.savez(tmp_path / "stats.npz", mu=stats.mean.numpy(), sigma=stats.cov.numpy())
        how = {"reference": tmp_path / "stats.npz", "features": tmp_path / "net", "progress": Notes()}
        (of_statistics,) = score_source(source, **how)
        assert np.isnan(of_statistics.floor)
        assert of_statistics.value == pytest.approx(score.value)
        options = ("--reference", tmp_path / "stats.npz", *options[2:])
    assert call(monkeypatch, "evaluate", "--images", source, *options) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["scores"][0]["metric"] == score.metric
    assert (told["scores"][0]["floor"] is None) == (kind == "npz")


def test_images_need_real_ones_of_their_shape_to_be_compared_with(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs").mkdir()
    for size in (12, 16):
        (tmp_path / "theirs" / f"{size}.png").write_bytes(png_bytes(two_classes(1, size=size).images[0]))
    assert call(monkeypatch, "evaluate", "--images", tmp_path / "theirs") == 2
    assert "name a run that was trained on them, or a reference" in capsys.readouterr().err
    assert call(monkeypatch, "evaluate") == 2
    assert "name the RUN" in capsys.readouterr().err
    untrained(Architecture(1, 12, 2, features=1)).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"16\.png is \(1, 16, 16\) \(C, H, W\), 12\.png is \(1, 12, 12\)"):
        score_source(tmp_path / "theirs", data, features=tmp_path / "net", progress=Notes())
    np.savez(tmp_path / "large.npz", arr_0=two_classes(24, size=16).images.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"large\.npz is of 16 x 16 pixels, .* of 12 x 12: bring"):
        score_source(tmp_path / "large.npz", data, features=tmp_path / "net", progress=Notes())
    (tmp_path / "broken.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"broken\.zip cannot be read as a \.zip"):
        score_source(tmp_path / "broken.zip", data, features=tmp_path / "net", progress=Notes())
    os.mkfifo(tmp_path / "pipe.zip")
    for source, real, reference in ((tmp_path / "pipe.zip", data, None), (tmp_path, None, tmp_path / "pipe.zip")):
        with pytest.raises(ValueError, match=r"pipe\.zip is a named pipe"):
            score_source(source, real, reference=reference, features=tmp_path / "net", progress=Notes())


def test_images_are_looked_for_and_counted_before_a_network_is_trained(data, tmp_path):
    notes = Notes()
    with pytest.raises(FileNotFoundError, match="gone"):
        score_source(tmp_path / "gone", data, progress=notes)
    np.savez(tmp_path / "few.npz", arr_0=two_classes(4).images.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match="needs at least 192 images, got 4"):
        score_source(tmp_path / "few.npz", data, progress=notes)
    assert not any("training" in note for note in notes.notes)


@pytest.mark.parametrize("option", ["--num 200", "--seed 1", "--keep kept", "--bound", "--steps 4", "--guidance 3"])
def test_images_that_exist_are_not_drawn(tmp_path, monkeypatch, capsys, option):
    assert call(monkeypatch, "evaluate", "--images", tmp_path, *option.split()) == 2
    assert f"--images scores images that exist, and draws and bounds none: drop {option.split()[0]}" in " ".join(
        capsys.readouterr().err.split()
    )


def test_messages_are_told_once():
    told: list[str] = []
    report = messages(told.append)
    for done, text in enumerate(["decoding", "decoding", "", "skipped 2"]):
        report(done, 4, text)
    assert told == ["decoding", "skipped 2"]
