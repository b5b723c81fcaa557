"""CLIP score: the closed formula on a CLIPModel of transformers, tiny, with random weights; and what is refused."""

import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from pipelines import encoders

from dualrate.data.images import ImageSet
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.pretrained import resized
from dualrate.pipelines.clip import ClipScore, clip_scores, is_clip, load_clip

SIDE, TEXTS = 32, ["a red circle", "a blue square", "circle " * 90, ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers, folder = encoders.transformers(), tmp_path_factory.mktemp("clip")
    seen = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config=encoders.clip_sizes(8, 6),
        vision_config=seen | {"image_size": SIDE, "patch_size": 8},
        projection_dim=6,
    )
    encoders.seeded(lambda: transformers.CLIPModel(config)).save_pretrained(folder)
    encoders.clip_tokenizer().save_pretrained(folder)
    return folder


def pixels(count=4, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def theirs(folder, images, texts):
    """(N,) 100 max(cos, 0) of what the whole model makes, of one pair at a time."""
    transformers = encoders.transformers()
    net = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    found = []
    for image, text in zip(torch.as_tensor(images), texts, strict=True):
        words = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
        seen = (resized(image[None], SIDE) / 255 - mean) / std
        with torch.no_grad():
            out = net(pixel_values=seen, **{name: words[name] for name in ("input_ids", "attention_mask")})
        a, b = out.image_embeds[0].double(), out.text_embeds[0].double()
        found.append(100 * max(float(a @ b / (a.norm() * b.norm())), 0))
    return found


def test_a_score_is_the_mean_of_100_cosines_that_are_not_below_0():
    a = torch.tensor([[1.0, 0], [1, 1], [-2, 0], [3, 4]])
    b = torch.tensor([[2.0, 0], [1, 0], [1, 0], [4, 3]])
    torch.testing.assert_close(clip_scores(a, b), torch.tensor([100, 100 / 2**0.5, 0, 96], dtype=torch.float64))


def test_it_is_that_of_the_model_of_transformers(folder):
    assert is_clip(folder)
    net, images = load_clip(folder), pixels()
    judge = ClipScore(net, None, None).of_texts(TEXTS)
    expected = np.array(theirs(folder, images, TEXTS))
    features = net.features(images)
    np.testing.assert_allclose(judge.each(features).numpy(), expected, atol=1e-3)
    assert 0 < expected.max() != expected.min()
    score = judge.score_features(features, seeds="0-3", labels="none")
    assert (score.metric, score.better, score.floor_count) == ("CLIP score", "higher", 0)
    assert score.value == pytest.approx(expected.mean(), abs=1e-3)
    assert score.low <= score.value <= score.high
    assert score.fingerprint.features.startswith("clip:")
    assert torch.equal(pickle.loads(pickle.dumps(net)).features(images), features)  # as it goes to other processes
    other = ClipScore(net, None, None).of_texts(TEXTS[::-1]).score_features(features, seeds="0-3", labels="none")
    assert other.fingerprint.reference != score.fingerprint.reference


def test_its_floor_is_what_held_out_images_and_their_captions_reach(folder):
    net, held_out = load_clip(folder), ImageSet(pixels(3), None, (), "held out")
    judge = ClipScore(net, None, held_out, captions=TEXTS).of_texts(TEXTS)
    expected = np.mean(theirs(folder, held_out.images[:2], TEXTS[:2]))
    assert judge.floor(2) == (pytest.approx(expected, abs=1e-3), 2)
    assert judge.floor(50)[1] == 3


class NoNet:
    metric = "CLIP score"


def test_what_it_cannot_score_is_refused(tmp_path, monkeypatch):
    judge = ClipScore(NoNet(), None, None)
    with pytest.raises(ValueError, match="which are not known here"):
        judge.of_texts(None)
    with pytest.raises(ValueError, match=r"compares with no images: name a distance first"):
        _ = judge.reference_images
    with pytest.raises(ValueError, match="an interval needs 2"):
        judge.check_count(1)
    distance = Evaluator(NoNet(), None, None)
    assert distance.of_texts(["a"]) is distance
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"CLIP score needs transformers, .*: pip install 'dualrate\[clip\]'"):
        load_clip(tmp_path)


def test_a_folder_that_lacks_a_part_is_refused(folder, tmp_path):
    for name, what in (("tokenizer.json", "no tokenizer.json or vocab.json"), ("model.safetensors", "no file named")):
        lacking = shutil.copytree(folder, tmp_path / name)
        (lacking / name).unlink()
        with pytest.raises(ValueError, match=rf"holds no whole CLIPModel \(.*{what}.*hf download"):
            load_clip(lacking)
