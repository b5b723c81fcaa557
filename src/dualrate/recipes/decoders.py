"""A decoder of a codec's latents, at one rate or at two: what recipes of them share.

Single-rate, one network is given the latent at every step. dual is the heavy network on the latent, once an image, and
the light one at every step; retrofit is the same, begun as the trained light decoder and with the trained heavy one,
whose x_hat it learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualrate.codecs.config import CodecFolder
from dualrate.diffusion.weighting import Weighting
from dualrate.experiments.decoding import OneDecoder, TwoDecoders
from dualrate.experiments.denoising import DenoisingConfig
from dualrate.experiments.experiment import Experiment
from dualrate.experiments.networks import NetworksConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import UViTConfig


def decoder(
    name: str,
    kind: str,
    sizes: Mapping[str, UViTConfig],
    codec: Path,
    *,
    heavy: Path,
    light: Path,
    encoder: str = "heavy",
    weighting: Weighting,
    **how: Any,
) -> Experiment:
    """Its training.

    kind:    one of `sizes`, which have heavy and light; dual; or retrofit
    codec:   a run that trained one, or its folder
    heavy, light: runs of single-rate decoders, of a retrofit; encoder: whose size sees the latent alone
    how:     fields of the experiment
    Raises what reading the codec raises.
    """
    latents = CodecFolder.at(codec)
    shape = latents.read("cpu").latent_shape(sizes["heavy"].shape)
    method = DenoisingConfig(weighting=weighting, latents=latents)
    networks: NetworksConfig
    if kind in sizes:
        networks = OneDecoder(sizes[kind], shape)
    else:
        networks = TwoDecoders(sizes[encoder], sizes["light"], shape)
        method = replace(method, times=GivenTimes(4))
    if kind == "retrofit":  # a target is a call of the heavy one at every time
        of = {"encoder_from": str(heavy), "light_from": str(light), "targets_from": str(heavy)}
        method = replace(method, times=GivenTimes(2), **of)
    return Experiment(f"{name}-{kind}", networks, method, **how)
