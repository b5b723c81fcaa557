"""The language model of characters: its law by enumeration, its training, and how it is kept."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualrate.drawing.evaluators import evaluator
from dualrate.experiment.data_config import DataConfig
from dualrate.system.progress import Silent
from dualrate.texts import language_model as language_model
from dualrate.texts.language_model import NAME, LanguageModel, Recurrent, nll, train_language_model
from dualrate.texts.pieces import read_text

SENTENCE = "abcdefgh " * 60


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "own.txt"
    file.write_text(SENTENCE, "utf-8")
    return file


@pytest.fixture(scope="module")
def model(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "HIDDEN", 32)
        return train_language_model(read_text(text, "train", 12), read_text(text, "test", 12))


def test_the_chances_of_all_pieces_add_up_to_one():
    torch.manual_seed(0)
    module = Recurrent(3, 4, 8).build().double()
    pieces = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert torch.exp(-4 * nll(module(pieces), pieces)).sum().item() == pytest.approx(1, rel=1e-12)


def test_a_character_is_told_by_those_before_it_alone():
    torch.manual_seed(0)
    module = Recurrent(3, 4, 8).build().double()
    pieces = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 2]])
    one, other = module(pieces)
    assert torch.equal(one[:3], other[:3])
    assert (one[3] - other[3]).abs().max() > 1e-3


def test_it_learns_a_sentence_by_heart_but_for_where_a_piece_begins(model, text):
    test = read_text(text, "test", 12)
    assert math.log2(9) / 12 - 0.05 < model.card.bits < math.log2(9) / 12 + 0.3
    assert model.bits(test.images).mean().item() == pytest.approx(model.card.bits)
    noise = np.random.default_rng(0).integers(0, 9, (5, 1, 1, 12)).astype(np.uint8)
    assert model.bits(noise).min() > 2 * model.card.bits
    features = model.features(test.images)
    assert features.shape == (len(test), 32)


def test_where_nothing_is_told_a_character_costs_the_logarithm_of_how_many_there_are(model, text):
    """In bits."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.zero_()
    told = replace(model, module=module).bits(read_text(text, "test", 12).images)
    torch.testing.assert_close(told, torch.full_like(told, math.log2(9)))


def test_the_seed_determines_it_and_the_global_random_state_does_not(text, monkeypatch):
    monkeypatch.setattr(language_model, "PASSES", 1)
    monkeypatch.setattr(language_model, "HIDDEN", 8)
    train, test, identities = read_text(text, "train", 12), read_text(text, "test", 12), []
    for global_seed, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(global_seed)
        identities.append(train_language_model(train, test, seed=seed).card.identity)
    assert identities[0] == identities[1] != identities[2]


def test_it_is_kept_whole(model, text, tmp_path):
    model.save(tmp_path)
    test = read_text(text, "test", 12)
    again = LanguageModel.load(tmp_path)
    assert again.card == model.card
    assert torch.equal(again.bits(test.images), model.bits(test.images))
    weights = tmp_path / f"{NAME}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged or belongs to another net"):
        LanguageModel.load(tmp_path)


def test_other_pieces_and_pictures_are_refused(model):
    with pytest.raises(ValueError, match="takes \\(N, 1, 1, 12\\) uint8"):
        model.bits(np.zeros((2, 1, 1, 11), np.uint8))
    with pytest.raises(ValueError, match="character number 9"):
        model.features(np.full((2, 1, 1, 12), 9, np.uint8))


def test_it_judges_a_text_where_distances_are_measured(text, tmp_path, monkeypatch):
    """A model that draws the training split is at the floor; one that draws noise is far away."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(language_model, "HIDDEN", 4)
    found = evaluator(DataConfig(source=str(text), size=12), progress=Silent())
    assert (found.metric, len(found.reference_images)) == ("FD-own", 40)
    pieces, noise = found.reference_images.images, np.random.default_rng(0).integers(0, 9, (40, 1, 1, 12))
    scores = [
        found.score_features(found.net.features(of), seeds="", labels="none").value
        for of in (pieces, noise.astype(np.uint8))
    ]
    assert scores[0] < 0.1 * scores[1]
    with pytest.raises(ValueError, match="is a text, scored by a language model"):
        evaluator(DataConfig(source=str(text), size=12), features="inception", progress=Silent())
