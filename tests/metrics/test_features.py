"""The feature net: it learns, it is determined by its seed, it comes back from disk bit for bit or not at all."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from trouble import flips, full_disk, unreadable

from dualrate.data.images import ImageSet
from dualrate.drawing.evaluators import SHIPPED
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.features import (
    CARD,
    ITERATIONS,
    WEIGHTS,
    Architecture,
    Card,
    FeatureNet,
    Mixed,
    Stacked,
    train_feature_net,
    turned,
)
from dualrate.metrics.trained_network import read_card
from dualrate.system.progress import Silent
from metrics.squares import two_classes

EPOCHS = 10


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    return train_feature_net(two_classes(), two_classes(seed=1, split="test"), seed=3, epochs=EPOCHS)


def same_weights(a: FeatureNet, b: FeatureNet) -> bool:
    ours, theirs = a.module.state_dict(), b.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_its_classes_and_says_how_well(net):
    assert net.card.accuracy is not None
    assert net.card.accuracy > 0.95
    assert (net.card.name, net.card.data) == ("squares", two_classes().fingerprint)


def test_its_accuracy_is_the_mean_of_its_classes_of_which_chance_is_alike(net):
    """Else a net that always says the frequent class would have its share."""
    images = two_classes(count=100, seed=1)
    rare = np.flatnonzero(images.labels == 1)[:5]
    rows = np.concatenate([np.flatnonzero(images.labels == 0)[:45], rare])
    wrong = images.images[rows].copy()
    wrong[45:] = images.images[np.flatnonzero(images.labels == 0)[:5]]  # all look like the frequent class
    test = ImageSet(wrong, images.labels[rows], images.class_names, "squares/test")
    made = train_feature_net(two_classes(), test, seed=3, epochs=EPOCHS)
    assert made.card.accuracy == pytest.approx(0.5, abs=0.06)
    assert made.card.chance == 0.5


@pytest.mark.parametrize(
    ("classes", "seen", "least"),
    [(2, None, 0.75), (3, None, 2 / 3), (4, None, 0.5), (10, None, 0.2), (10, 2, 0.75), (1000, None, 0.002)],
)
def test_a_net_that_hardly_beats_a_guess_is_refused(net, classes, seen, least):
    """Under twice chance; of two classes, where that would be 1, under the middle of chance and 1."""
    arch = replace(net.card.architecture, num_classes=classes)
    card = replace(net.card, architecture=arch, classes=seen, accuracy=least)
    card.check_accuracy()
    replace(card, accuracy=None).check_accuracy()
    with pytest.raises(
        ValueError, match=r"has accuracy .*a guess has .*at least .*Give more images.*--features effici"
    ):
        replace(card, accuracy=0.99 * least).check_accuracy()


def test_a_net_that_is_wrong_more_often_than_right_is_rough_in_words(net):
    rough = "under 0.5, so distances in its features are rough"
    assert rough in replace(net.card, accuracy=0.35).judgement
    assert rough not in replace(net.card, accuracy=0.5).judgement


def test_shipped_nets_are_not_refused():
    for file in SHIPPED.glob(f"*/{CARD}"):
        card = read_card(file, Card)
        card.check_accuracy()
        assert (
            card.judgement
            == f"the classifier of {card.name} has accuracy {card.accuracy:.3g} on held-out images, " + ("a guess 0.1")
        )


def test_a_few_images_are_seen_often_enough(monkeypatch):
    """As often as makes ITERATIONS, where ten epochs would not."""
    seen, shown = [], Silent()
    monkeypatch.setattr(shown, "update", lambda done, total, logs: seen.append(total))
    few = two_classes(count=20)
    made = train_feature_net(few, None, progress=shown)
    assert (made.card.epochs, len(seen)) == (ITERATIONS, ITERATIONS)


def test_the_seed_determines_it_and_the_global_random_state_does_not(net):
    torch.manual_seed(123)
    again = train_feature_net(two_classes(), None, seed=3, epochs=EPOCHS)
    assert same_weights(net, again)
    assert again.card == replace(net.card, accuracy=None)
    assert train_feature_net(two_classes(), None, seed=4, epochs=1).card.identity != net.card.identity


def test_save_and_load_are_bitwise(net, tmp_path):
    net.save(tmp_path / "new" / "folder")
    loaded = FeatureNet.load(tmp_path / "new" / "folder")
    assert loaded.card == net.card
    assert same_weights(loaded, net)
    images = two_classes(seed=5).images
    assert torch.equal(loaded.features(images), net.features(images))
    assert not loaded.module.training
    assert {path.suffix for path in (tmp_path / "new" / "folder").iterdir()} == {".safetensors", ".json"}


def test_a_changed_weight_file_is_refused(net, tmp_path):
    net.save(tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-9] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        FeatureNet.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_a_broken_card_is_refused(net, tmp_path, text):
    net.save(tmp_path)
    (tmp_path / CARD).write_text(text)
    with pytest.raises(ValueError, match="no card of a trained net"):
        FeatureNet.load(tmp_path)


def test_a_missing_net_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=WEIGHTS):
        FeatureNet.load(tmp_path)


def test_the_card_is_readable_json(net, tmp_path):
    net.save(tmp_path)
    entries = json.loads((tmp_path / CARD).read_text())
    assert (entries["identity"], entries["seed"], entries["epochs"]) == (net.card.identity, 3, EPOCHS)


def test_features_do_not_depend_on_the_batches_they_came_in(net):
    images = two_classes(count=211, seed=6).images
    whole, parts = net.features(images), net.features(torch.from_numpy(images), batch_size=17)
    assert whole.shape == (211, net.card.architecture.features)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    assert abs(frechet_distance(GaussianStats.of(whole), GaussianStats.of(parts))) < 1e-6


def test_features_are_float32_even_under_autocast(net):
    images = two_classes(count=9, seed=6).images
    with torch.autocast("cpu", torch.bfloat16):
        inside = net.features(images)
    assert torch.equal(inside, net.features(images))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 1, 12, 12), dtype=np.float32),
        torch.zeros(3, 1, 12, 12),
        np.zeros((3, 3, 12, 12), dtype=np.uint8),
        np.zeros((3, 1, 16, 16), dtype=np.uint8),
        np.zeros((3, 12, 12), dtype=np.uint8),
        np.zeros((0, 1, 12, 12), dtype=np.uint8),
    ],
    ids=["floats", "float tensor", "colours", "size", "no channel axis", "none"],
)
def test_images_of_another_kind_are_refused(net, images):
    with pytest.raises(ValueError, match=r"takes \(N, 1, 12, 12\) uint8"):
        net.features(images)


@pytest.mark.parametrize("kind", [Architecture, Stacked, Mixed])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_an_architecture_adapts_to_the_images(kind, channels, size):
    arch = kind(channels, size, 10)
    module = arch.build().eval()
    parameters = sum(p.numel() for p in module.parameters())
    x = torch.zeros(2, channels, size, size)
    assert (module.features(x).shape, module(x).shape) == ((2, arch.features), (2, 10))
    assert parameters < 500_000


@pytest.mark.parametrize("kind", [Stacked, Mixed])
def test_every_architecture_learns_and_comes_back_from_disk(kind, tmp_path):
    how = {"seed": 3, "epochs": EPOCHS, "kind": kind, "name": "other"}
    made = train_feature_net(two_classes(), two_classes(seed=1, split="test"), **how)
    made.save(tmp_path)
    loaded = FeatureNet.load(tmp_path)
    assert loaded.card == made.card
    assert same_weights(loaded, made)
    assert (made.metric, type(loaded.card.architecture)) == ("FD-other", kind)
    assert made.card.accuracy is not None
    assert made.card.accuracy > 0.9


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (12, 2), (13, 1), (8, 1)])
def test_patches_tile_the_image(size, patch):
    assert Mixed(1, size, 2).patch == patch


def test_the_shipped_nets_differ_in_kind_and_seed_and_take_the_same_images():
    cards = [read_card(file, Card) for file in sorted(SHIPPED.glob(f"fashion-mnist*/{CARD}"))]
    assert len(cards) == 3
    for differing in ("name", "identity", "seed"):
        assert len({getattr(card, differing) for card in cards}) == 3
    assert len({type(card.architecture) for card in cards}) == 3
    assert len({card.data for card in cards}) == 1
    for card in cards:
        assert FeatureNet.load(SHIPPED / card.name).card == card


def oriented(count: int, side: int = 12, seed: int = 0) -> ImageSet:
    """Images that are bright at the top, with noise, of no labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, 1, side, side), dtype=np.uint8)
    images[:, :, : side // 3] += 150
    return ImageSet(images, None, (), "lamps/train")


def test_without_classes_a_net_tells_how_an_image_is_turned():
    net = train_feature_net(oriented(300), oriented(80, seed=1), seed=0)
    assert (net.metric, net.card.task, net.card.chance) == ("FD-lamps-turns", "turns", 0.25)
    net.card.check_accuracy()
    assert net.card.accuracy is not None
    assert net.card.accuracy > 0.9
    assert "of how they are turned" in net.card.judgement
    real = net.features(oriented(200, seed=2).images)
    faint = oriented(200, seed=3).images // 2
    near, far = (
        frechet_distance(GaussianStats.of(net.features(images)), GaussianStats.of(real))
        for images in (oriented(200, seed=3).images, faint)
    )
    assert far > 10 * near
    squares = two_classes()
    of_one_class = replace(squares, labels=np.zeros_like(squares.labels))
    assert train_feature_net(of_one_class, None, epochs=1).card.task == "turns"


def test_of_fewer_images_than_turns_a_net_learns_all_turns():
    images = oriented(3)
    net = train_feature_net(images, None, seed=0)
    pictures = np.concatenate([np.rot90(images.images, k, (2, 3)) for k in range(4)])
    guessed = net.module.classify(net.features(pictures)).argmax(1)
    assert guessed.tolist() == [k for k in range(4) for _ in range(3)]


def test_images_that_look_alike_from_all_sides_give_no_metric():
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 256, (count, 1, 12, 12), dtype=np.uint8) for count in (200, 80))
    train, test = (ImageSet(images, None, (), "noise/train") for images in noise)
    net = train_feature_net(train, test, epochs=2)
    with pytest.raises(ValueError, match=r"a guess has 0\.25"):
        net.card.check_accuracy()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_quarter_turns_are_numbered(count):
    x = torch.arange(9.0).reshape(1, 1, 3, 3).expand(count, 1, 3, 3)
    pictures, quarters = turned(x)
    assert quarters.tolist() == [i % 4 for i in range(count)]
    for picture, quarter in zip(pictures, quarters, strict=True):
        assert torch.equal(torch.rot90(picture, -int(quarter), (1, 2)), x[0])


def test_data_that_cannot_train_a_classifier_is_refused():
    squares = two_classes()
    unlabelled = ImageSet(squares.images, None, (), "squares")
    with pytest.raises(ValueError, match="square"):
        train_feature_net(replace(squares, images=squares.images[..., :9]), None, seed=0)
    with pytest.raises(ValueError, match="no labels"):
        train_feature_net(squares, unlabelled, seed=0, epochs=1)


# Reading it back


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
def test_a_net_that_cannot_be_read_is_no_damaged_one(net, tmp_path, name):
    net.save(tmp_path)
    with unreadable(tmp_path / name, tmp_path), pytest.raises(PermissionError, match=name):
        FeatureNet.load(tmp_path)


@pytest.mark.parametrize("name", ["features.json", "features.safetensors"])
def test_a_flipped_bit_is_refused_or_changes_a_figure_that_nothing_is_computed_from(net, tmp_path, name):
    net.save(tmp_path)
    images = two_classes(count=9, seed=6).images
    expected, loaded = net.features(images), 0
    for flipped in flips((tmp_path / name).read_bytes(), 300):
        (tmp_path / name).write_bytes(flipped)
        found = None
        with suppress(ValueError):
            found = FeatureNet.load(tmp_path)
        loaded += found is not None
        if found is None:
            continue
        if found.card.architecture == net.card.architecture:
            assert torch.equal(found.features(images), expected)
        else:  # images of another size are refused by whoever uses it
            with pytest.raises(ValueError, match="takes"):
                found.features(images)
    assert loaded == 0 or name == "features.json"


def test_a_full_disk_names_the_file(net, tmp_path):
    with full_disk(), pytest.raises(OSError, match=r"features\.safetensors'"):
        net.save(tmp_path / "net")
    assert list((tmp_path / "net").iterdir()) == []
