"""Blocks of features: a killed run goes on with the same bits, nothing is drawn twice, and nothing else gets in."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from trouble import flips, full_disk, unreadable

from dualrate.diffusion.random import Draws
from dualrate.metrics.distances import GaussianStats, frechet_distance
from dualrate.metrics.features import Architecture, Card, FeatureNet
from dualrate.metrics.store import FeatureStore, Origin, fill_stores

ARCH = Architecture(1, 8, 2, features=6)
SOURCE = Origin("w1", "e1", "ancestral", "8 steps", "none", "noise:0123456789ab", "float32")
IDS = range(100)


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    module = ARCH.build()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return FeatureNet(Card("noise", "0123456789abcdef", ARCH, "", None, 0, 1), module.eval().requires_grad_(False))


class Killed(Exception):
    pass


class Artist:
    """Draws the image of an id, counts how often, and dies at the wish of a test."""

    def __init__(self, calls: int = 10**9) -> None:
        self.drawn: list[int] = []
        self.calls = calls

    def __call__(self, ids):
        if not self.calls:
            raise Killed
        self.calls -= 1
        self.drawn += ids
        numbers = Draws(0, torch.tensor(list(ids))).uniform("pixels", 1, 8, 8)
        return (256 * numbers).to(torch.uint8).numpy()


def features_of(directory, net, *, ids=IDS, size=25, artist=None) -> torch.Tensor:
    store = FeatureStore.open(directory, SOURCE)
    fill_stores([(store, net)], ids, artist or Artist(), size=size)
    return store.read(ids).features


def test_features_are_those_of_the_images(tmp_path, net):
    torch.testing.assert_close(features_of(tmp_path, net), net.features(Artist()(IDS)))


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_killed_run_goes_on_with_the_same_bits(calls, tmp_path, net):
    whole = features_of(tmp_path / "whole", net)
    first, second = Artist(calls), Artist()
    with pytest.raises(Killed):
        features_of(tmp_path / "killed", net, artist=first)
    resumed = features_of(tmp_path / "killed", net, artist=second)
    assert torch.equal(resumed, whole)
    assert first.drawn + second.drawn == list(IDS)
    reference = GaussianStats.of(net.features(Artist()(range(1000, 1100))))
    assert frechet_distance(GaussianStats.of(resumed), reference) == frechet_distance(
        GaussianStats.of(whole), reference
    )


def test_a_write_that_was_cut_short_is_drawn_again(tmp_path, net, monkeypatch):
    def killed(source, target):
        raise Killed

    monkeypatch.setattr("os.unlink", lambda path: None)  # a process that is killed tidies nothing up
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(Killed):
            FeatureStore.open(tmp_path, SOURCE)
    store = FeatureStore.open(tmp_path, SOURCE)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(Killed):
            fill_stores([(store, net)], IDS, Artist(), size=25)
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1
    assert not list(tmp_path.glob("*.safetensors"))
    artist = Artist()
    features_of(tmp_path, net, artist=artist)
    assert artist.drawn == list(IDS)


def test_neither_block_size_nor_order_nor_who_drew_it_changes_an_image(tmp_path, net):
    whole = features_of(tmp_path / "whole", net)
    torch.testing.assert_close(features_of(tmp_path / "other", net, size=7), whole)
    store = FeatureStore.open(tmp_path / "shared", SOURCE)
    for ids in (range(50, 100), range(50)):  # as two processes
        fill_stores([(store, net)], ids, Artist(), size=25)
    assert torch.equal(store.read(IDS).features, whole)
    backwards = store.read(IDS[::-1]).features
    assert torch.equal(backwards, whole.flip(0))


def test_the_batch_of_an_id_does_not_depend_on_where_the_ids_begin(tmp_path, net):
    features_of(tmp_path, net, ids=range(10, 60))
    names = sorted(file.stem for file in tmp_path.glob("*.safetensors"))
    assert names == ["00000010-00000024", "00000025-00000049", "00000050-00000059"]


def test_more_ids_draw_only_those_that_are_new(tmp_path, net):
    features_of(tmp_path, net, ids=range(10, 60))
    artist = Artist()
    more = features_of(tmp_path, net, ids=IDS, artist=artist)
    assert sorted(artist.drawn) == [*range(10), *range(60, 100)]
    torch.testing.assert_close(more, net.features(Artist()(IDS)))
    fewer = features_of(tmp_path, net, ids=range(55, 65), artist=Artist(0))
    assert torch.equal(fewer, more[55:65])


def test_progress_and_seconds_count_what_was_drawn_before(tmp_path, net):
    store, told = FeatureStore.open(tmp_path, SOURCE), []
    fill_stores([(store, net)], range(50), Artist(), size=25)
    before = store.read(range(50)).seconds
    fill_stores([(store, net)], IDS, Artist(), size=25, progress=lambda done, total: told.append((done, total)))
    assert told == [(50, 100), (75, 100), (100, 100)]
    assert 0 < before < store.read(IDS).seconds
    assert store.read(range(50)).seconds == pytest.approx(before)


@pytest.mark.parametrize("field", ["weights", "experiment", "sampler", "plan", "labels", "precision", "seeds", "bits"])
def test_another_origin_is_refused_and_what_differs_is_named(field, tmp_path):
    FeatureStore.open(tmp_path, SOURCE)
    FeatureStore.open(tmp_path, SOURCE)
    with pytest.raises(ValueError, match=f"differ in {field} \\(.* / other\\): give another directory"):
        FeatureStore.open(tmp_path, replace(SOURCE, **{field: "other"}))


def test_another_net_is_refused(tmp_path, net):
    store = FeatureStore.open(tmp_path, replace(SOURCE, features="other:0"))
    with pytest.raises(ValueError, match="features of noise:0123456789ab"):
        fill_stores([(store, net)], IDS, Artist())


def test_a_block_of_another_origin_is_refused(tmp_path, net):
    features_of(tmp_path / "a", net)
    other = FeatureStore.open(tmp_path / "b", replace(SOURCE, plan="other"))
    file = next((tmp_path / "a").glob("*.safetensors"))
    (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="another origin"):
        other.read(range(25))


def test_missing_and_repeated_ids_are_errors(tmp_path, net):
    features_of(tmp_path, net)
    store = FeatureStore.open(tmp_path, SOURCE)
    with pytest.raises(ValueError, match="lacks 10 of 110 ids, the first is 100"):
        store.read(range(110))
    for ids in ([1, 2, 1], []):
        with pytest.raises(ValueError, match="none twice"):
            store.read(ids)
        with pytest.raises(ValueError, match="none twice"):
            fill_stores([(store, net)], ids, Artist())
    file = next(tmp_path.glob("*.safetensors"))
    file.with_stem("copy").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="is both in"):
        store.read(IDS)


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_shards_are_refused(damage, tmp_path, net):
    features_of(tmp_path, net)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match=r"damaged.*delete it"):
        FeatureStore.open(tmp_path, SOURCE).read(IDS)
    file.unlink()
    features_of(tmp_path, net)


def test_other_files_and_damaged_origins_are_not_taken_over(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.png").touch()
    with pytest.raises(ValueError, match="not empty"):
        FeatureStore.open(tmp_path / "a", SOURCE)
    FeatureStore.open(tmp_path / "b", SOURCE)
    for text in ("{", '{"weights": "w1"}'):
        (tmp_path / "b" / "origin.json").write_text(text)
        with pytest.raises(ValueError, match=r"origin\.json"):
            FeatureStore.open(tmp_path / "b", SOURCE)


def test_features_that_are_not_finite_are_not_kept(tmp_path, net):
    module = ARCH.build().eval()
    torch.nn.init.constant_(module.project.bias, np.nan)
    with pytest.raises(ValueError, match=r"images 0 to 24 .* not finite"):
        features_of(tmp_path, FeatureNet(net.card, module))
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_file_is_no_place_for_features(tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(ValueError, match="is a file"):
        FeatureStore.open(tmp_path / "file", SOURCE)
    assert (tmp_path / "file").read_text() == "something"


# Reading shards back


@pytest.mark.parametrize("name", ["00000000-00000024.safetensors", "origin.json"])
def test_what_cannot_be_read_is_not_damaged(tmp_path, net, name):
    features_of(tmp_path, net)
    with unreadable(tmp_path / name, tmp_path), pytest.raises(PermissionError, match=name):
        FeatureStore.open(tmp_path, SOURCE).read(IDS)
    assert len(FeatureStore.open(tmp_path, SOURCE).read(IDS).features) == 100


def test_a_flipped_bit_of_a_block_is_an_error_or_changes_no_feature(tmp_path, net):
    """Or it has changed the seconds, which no feature depends on."""
    ids = range(10)
    whole = features_of(tmp_path, net, ids=ids)
    (file,) = tmp_path.glob("*.safetensors")
    for flipped in flips(file.read_bytes(), 300):
        file.write_bytes(flipped)
        with suppress(OSError, ValueError):
            assert torch.equal(FeatureStore.open(tmp_path, SOURCE).read(ids).features, whole)


def test_a_full_disk_names_the_block(tmp_path, net):
    store = FeatureStore.open(tmp_path, SOURCE)
    with full_disk(500), pytest.raises(OSError, match=r"00000000-00000024\.safetensors'"):
        fill_stores([(store, net)], IDS, Artist(), size=25)
    assert [file.name for file in tmp_path.iterdir()] == ["origin.json"]
