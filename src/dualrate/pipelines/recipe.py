"""A recipe that makes a diffusers model dual-rate: that model is the encoder, beside a new light network.

Light    a flat transformer of `BLOCKS` blocks. Its patches are the model's own, or the smallest that leave at most
         `FINEST` positions a side, larger ones if not even `NARROWEST` heads are as cheap; its width is the largest
         whose light call costs no more than `share` of a heavy one.
Taps     at a third and two thirds of the model's blocks, and at the last.
Start    the light network adds nothing at first, and its gate takes x_hat(tau) whole: plain reuse.
Own      in place of all this, the model's own first and last blocks, which share the others' work at first.
Noise    the schedule that the model was trained under, so that its own times are asked.
Labels   dropped in training where the model has a null class.
Latents  of a model that has a VAE: trained on those that `dualrate data encode` made by it, which is the run's codec.
Prompts  of a text-to-image model: those beside the latents, dropped as labels are. The light network knows of a prompt
         what the taps tell, and whether it was dropped. So it is never trained without a context, and the usual plans
         begin with one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from dualrate.codecs.codec import CodecConfig, CodecFolder, NoCodec
from dualrate.config.ranges import Classes, Range, Ranged, as_path, many
from dualrate.data import fashion_mnist
from dualrate.data.finding import existing
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import GaussianProcess
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.blocks import transformer_macs
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.foreign import Adopted, adopted
from dualrate.pipelines.retrofitted import COLOURS, OwnBlocks, Retrofitted, condition_of_folder, shorter, taps_of
from dualrate.pipelines.text_encoders import TextFolder
from dualrate.recipes.auto import name_of
from dualrate.recipes.fashion_mnist import FIT as FASHION_MNIST
from dualrate.sampling.cost import macs_of
from dualrate.system.progress import PlainReporter, Reporter

BLOCKS, HEAD = 4, 32
NARROWEST, WIDEST = 2, 64  # in heads
FINEST, COARSEST = 16, 4  # positions a side
FIT = replace(FASHION_MNIST, iterations=4000)


@dataclass(frozen=True)
class RetrofitRecipe(Ranged):
    """A light network beside a diffusers model, whose folder is read first. Give --data.source with --help to see the
    other options, with the values that were chosen for this model."""

    data: DataConfig = DataConfig(source="")
    share: Annotated[float, Range(0.01, 1)] = 0.2
    """Largest cost of a light call, as a share of a heavy call's."""
    own_blocks: Annotated[int, Range(2, 10_000)] | None = None
    """Start the light network from so many blocks of a DiT, its first and last, instead of a new one of --share."""
    num_classes: Classes | None = None
    """Number of classes, if the model has more labels than classes: a UNet2DModel whose last label is the
    null class."""

    def __call__(self, folder: str | Path, progress: Reporter | None = None) -> Experiment:
        """The experiment. progress: called with what was chosen.

        Raises ValueError for a folder that is not known, or lacks weights, for images of another size or other channels
        than its own, images where it takes latents, latents by another codec than its own, and a share that no
        light network fits.
        """
        if not self.data.source:
            raise ValueError("retrofit trains on images, so it needs them: --data.source FOLDER (or a file)")
        foreign = adopted(as_path(folder), self.num_classes)
        network = foreign.network
        data, codec = self._data(foreign, str(folder))
        condition = condition_of_folder(foreign, as_path(folder))
        if isinstance(condition, Prompts):
            self._check_prompts(foreign, condition)
        built = network.around(foreign.weights())
        heavy = macs_of(lambda: taps_of(built, network.shape, ()))
        account = f"{network.kind}: {heavy / 1e6:.4g} million multiply-adds; "
        if self.own_blocks is not None:
            short = shorter(network, self.own_blocks).build()
            cost = macs_of(lambda: taps_of(short, network.shape, ()))
            networks: NetworksConfig = OwnBlocks(network, self.own_blocks)
        else:
            taps, side = taps_of(built, network.shape), network.shape[1]
            fitting = (patch for patch in range(1, side + 1) if side % patch == 0 and side // patch <= FINEST)
            patch = foreign.folder.config.get("patch_size") or next(fitting)
            light = light_of(network.shape, network.num_classes, patch, heavy, self.share)
            cost, networks = macs_of_light(light), Retrofitted(network, light, tuple(taps))
            account += f"taps at blocks {', '.join(str(tap.block) for tap in taps)}; "
        (progress or PlainReporter()).note(f"{account}a light call costs {cost / heavy:.2f} of it")
        times = TimeSampler(heavy=(4, 32))
        method = DenoisingConfig(
            times=replace(times, dropout=0.0) if network.prompt.parts else times,
            label_dropout=0.1 if network.null else 0.0,
            encoder_from=str(folder),
            freeze_encoder=True,
            light_from=None if self.own_blocks is None else str(folder),
        )
        process = GaussianProcess(foreign.schedule)
        return Experiment(f"{name_of(str(folder))}-retrofit", networks, method, FIT, data, process, codec, condition)

    def _check_prompts(self, foreign: Adopted, condition: Prompts) -> None:
        """Raises ValueError unless the data have prompts by these encoders; their empty prompt becomes the model's."""
        network = foreign.network
        if network.guided_already:
            raise ValueError(
                f"guidance was distilled into this {network.kind}, so its output is no posterior mean: retrofit a "
                "model without guidance_embeds"
            )
        prompts = condition.partners(self.data.source, "train", label=None, on_bad="fail")
        TextFolder(condition.folder, condition.encoder, network).keep(prompts.empty())

    def _data(self, foreign: Adopted, folder: str) -> tuple[DataConfig, CodecConfig]:
        """The images or latents that it is trained on, and their codec."""
        (channels, side, _), vae = foreign.network.shape, foreign.folder.codec
        if self.data.source != fashion_mnist.NAME:
            existing(self.data.source)
        if not is_encoded(self.data.source):
            if vae is None and channels in COLOURS:
                if self.data.size not in (None, side) or self.data.channels not in (None, channels):
                    raise ValueError(
                        f"the model in {folder} takes {many(channels, 'channel')} of side {side}: drop --data.size and "
                        "--data.channels"
                    )
                if foreign.network.prompt.parts:
                    raise ValueError(f"{folder} is a text-to-image model of pixels; a retrofit needs one of latents")
                return replace(self.data, size=side, channels=channels), NoCodec()
            how = f"--prompts CAPTIONS {folder}" if foreign.network.prompt.parts else f"--codec {vae or 'VAE'}"
            raise ValueError(
                f"{folder} is a model of latents ({'it has a VAE' if vae else f'its channels: {channels}'}), and "
                f"{self.data.source} are images: encode them first (dualrate data encode {self.data.source} LATENTS "
                f"{how}), then name --data.source LATENTS"
            )
        codec = read_latents(self.data.source, "train").codec
        if vae is not None and CodecFolder.at(vae).fingerprint != codec.fingerprint:
            raise ValueError(
                f"{self.data.source} are latents by another codec ({codec.folder}) than the model's, {vae}: encode the "
                "images by that"
            )
        return self.data, codec


def light_of(shape: Shape, num_classes: int, patch: int, heavy: float, share: float = 1) -> UViTConfig:
    """A flat transformer of at most this share of `heavy` multiply-adds: patches of this side or the next that leaves
    room, and then the widest. Raises ValueError, which names the least share that works, where none is as cheap."""
    (channels, side, _), budget = shape, share * heavy
    patches = [patch, *(larger for larger in range(patch + 1, side // COARSEST + 1) if side % larger == 0)]
    least = math.inf
    for larger in patches:
        for heads in range(WIDEST, NARROWEST - 1, -1):
            level = Level("transformer", heads * HEAD, BLOCKS)
            light = UViTConfig(side, channels, (level,), num_classes, patch=larger, embedding=128, head_dim=HEAD)
            if macs_of_light(light) <= budget:
                return light
            least = min(least, macs_of_light(light))
    enough = math.ceil(100 * least / heavy) / 100
    raise ValueError(
        f"the cheapest light network makes {least / 1e6:.3g} million multiply-adds, --share {share:g} of the model "
        f"allows {budget / 1e6:.3g} million: "
        + (f"pass --share {enough:g} or more" if enough <= 1 else "no share does, as the model is cheaper than that")
    )


def macs_of_light(light: UViTConfig) -> int:
    """Multiply-adds of a call with a context, of a flat `LightBody` without what joins the context."""
    (level,), n, emb = light.levels, math.prod(light.sides(0)), light.embedding
    width, numbers = level.channels, light.image_channels * light.patch**2
    block = transformer_macs(width, n) + 4 * emb * width
    stem = numbers * width * n if light.patch > 1 else 9 * numbers * width * n
    return level.blocks * block + stem + 9 * width * numbers * n + 2 * (64 * emb + emb**2) + emb
