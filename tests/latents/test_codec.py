"""Moments, their normalisation, and decoding in parts: against closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from latents.folding import Folding

from dualrate.codecs import codec as codec_module
from dualrate.codecs.codec import (
    CodecFolder,
    Moments,
    NoCodec,
    Pixels,
    decode_macs,
    decoded,
    read_codec,
    round_trip,
)
from dualrate.diffusion.random import Draws
from dualrate.pipelines.autoencoder import Normalisation

DRAWS = Draws(0, torch.arange(3))


def test_normalised_moments_are_those_of_normalised_latents() -> None:
    """x = (z_raw - mean) / std is Gaussian with (m - mean) / std and v / std^2."""
    torch.manual_seed(0)
    mean, log_var, eps = (torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(3))
    scale = Normalisation((0.3, -1.0), (2.0, 0.25))
    found = scale.forward(Moments(mean, log_var))
    raw = mean + (log_var / 2).exp() * eps
    x = (raw - torch.tensor([0.3, -1.0])[:, None, None]) / torch.tensor([2.0, 0.25])[:, None, None]
    assert found.log_var is not None
    assert torch.allclose(found.mean + (found.log_var / 2).exp() * eps, x, rtol=0, atol=1e-6)
    assert torch.allclose(scale.inverse(x), raw, rtol=0, atol=1e-6)


def test_moments_are_stacked_and_taken_apart() -> None:
    mean, log_var = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for moments in (Moments(mean), Moments(mean, log_var)):
        again = Moments.of(moments.stacked())
        assert torch.equal(again.mean, mean)
        assert (again.log_var is None) == (moments.log_var is None)
    eps = torch.randn(2, 3, 4, 4)
    assert torch.equal(Moments(mean).sample(eps), mean)
    assert torch.allclose(Moments(mean, 2 * torch.ones(()).log().expand(2, 3, 4, 4)).sample(eps), mean + eps)
    assert torch.allclose(Moments(mean, torch.full_like(mean, 4.0).log()).sample(eps), mean + 2 * eps)


@pytest.mark.parametrize(
    ("mean", "std"), [((), (1.0,)), ((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((0.0,), (float("nan"),))]
)
def test_a_normalisation_that_is_none_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Normalisation(mean, std)


def test_a_normalisation_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 channels, .* 2 and 1 means"):
        Normalisation((0.0, 1.0), (1.0,)).inverse(torch.zeros(1, 3, 2, 2))


def test_pixels_are_their_own_latents_and_cost_nothing() -> None:
    codec, x = NoCodec().build(torch.nn.ModuleDict(), "cpu"), torch.randn(3, 1, 4, 4)
    assert isinstance(codec, Pixels)
    assert torch.equal(round_trip(codec, x, DRAWS), x)
    assert codec.image_shape(codec.latent_shape((1, 4, 4))) == (1, 4, 4)
    assert decode_macs(codec, (1, 4, 4)) == 0


def test_decoding_in_parts_is_decoding_with_every_rows_own_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing(Folding):
        def __init__(self) -> None:
            super().__init__("drawing")
            self.rows: list[int] = []

        def decode(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
            self.rows.append(len(x))
            return super().decode(x, draws) + draws.normal("decoder", 3, 4, 4)

    x, codec = torch.randn(3, 12, 2, 2), Drawing()
    whole = codec.decode(x, DRAWS)
    monkeypatch.setattr(codec_module, "AT_ONCE", 2 * 4 * 4 + 1)
    assert torch.allclose(decoded(codec, x, DRAWS), whole, atol=1e-6)
    assert codec.rows == [3, 2, 1]


def test_decoding_is_counted() -> None:
    """A product of 12 x 12 at each of 2 x 2 positions."""
    assert decode_macs(Folding("a"), (12, 2, 2)) == 12 * 12 * 4


def test_a_folder_without_a_codec_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no codec"):
        read_codec(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"give its .*vae"):
        read_codec(tmp_path)
    with pytest.raises(ValueError, match="names no class"):
        CodecFolder(str(tmp_path / "vae"), "x").build(torch.nn.ModuleDict(), "cpu")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": ["AutoencoderKL"]}))
    with pytest.raises(ValueError, match="names no class"):
        read_codec(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match=r"holds a VQModel.*AutoencoderKL, AutoencoderTiny"):
        read_codec(tmp_path / "vae")
