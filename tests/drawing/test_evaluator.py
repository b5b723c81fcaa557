"""Which feature net judges: the one given, the one shipped for these very images, or a cached one."""

from pathlib import Path

import numpy as np
import pytest
from metrics.squares import two_classes

from dualrate.data.images import ImageSet, load_images
from dualrate.drawing import evaluator as module
from dualrate.drawing.evaluator import SHIPPED, evaluator, evaluators, features_named, messages, require_count
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.architectures import Architecture, Mixed
from dualrate.metrics.features import CARD, FeatureNet
from dualrate.metrics.train_features import train_feature_net


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


def test_images_without_labels_are_refused_with_the_ways_out_before_anything_is_announced(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "bare.npz", images=two_classes(80).images)
    notes, bare = Notes(), DataConfig(str(tmp_path / "bare.npz"))
    with pytest.raises(ValueError, match=r"a folder per class, or .*--features DIRECTORY.*dinov2"):
        evaluator(bare, features=None, progress=notes)
    assert not [note for note in notes.notes if "training" in note]
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
        ("mine, fashion-mnist-b,inception,dinov2", (Path("mine"), shipped, "inception", "dinov2")),
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
    with pytest.raises(ValueError, match="two judges are called FD-one"):
        evaluators(data, f"{one},{two},{one}", progress=Notes())


def test_as_many_images_as_the_judge_of_most_features_needs():
    require_count(192, features_named("fashion-mnist,fashion-mnist-b"))
    with pytest.raises(ValueError, match="192"):
        require_count(191, features_named("fashion-mnist-b,fashion-mnist"))
    with pytest.raises(ValueError, match="640"):
        require_count(639, features_named("fashion-mnist,efficientnet"))


def test_messages_are_told_once():
    told: list[str] = []
    report = messages(told.append)
    for done, text in enumerate(["decoding", "decoding", "", "skipped 2"]):
        report(done, 4, text)
    assert told == ["decoding", "skipped 2"]
