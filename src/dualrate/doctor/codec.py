"""Is a codec what networks can be trained on: latents of unit size, images that come back, pixels in their range.

size       root of the mean square of normalised latents, drawn as in training, over all channels: about 1, since
           the noise schedule reckons with it. A scaling factor that is missing, doubled or inverted shows here
channels   each one's mean and standard deviation; many good codecs are uneven, so this is a warning
PSNR       of decode(encode(image)) against the image, in dB of 8-bit pixels
drift      of encode(decode(z)) from z, over the size of z
range      of decoded pixels, nominally [-1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dualrate.codecs.codec import Codec, decoded, with_noise
from dualrate.data.images import ImageSet, to_float, to_uint8
from dualrate.diffusion.draws import Draws
from dualrate.doctor.finding import Finding, ok, problem, warning

LOW, HIGH = 0.8, 1.25  # of the size of latents
CENTRE = 0.25  # of a channel's mean, either way
POOR = 20.0  # dB
FAR = 0.25  # of drift
OUTSIDE = 0.01  # share of decoded values outside [-1.1, 1.1]
COUNT, AT_A_TIME = 256, 16
RULE = "compare its config (scaling_factor, shift_factor, latents_mean, latents_std) with that of whoever made it"


def check_codec(codec: Codec, images: ImageSet, count: int = COUNT) -> Iterator[Finding]:
    """What `count` images, evenly spread over a set, say of a codec. Raises as `Codec.latent_shape`."""
    shape, count = codec.latent_shape(images.shape), min(count, len(images))
    rows = torch.linspace(0, len(images) - 1, count).long()
    sides = f"{_sides(images.shape)} -> {_sides(shape)}"
    yield ok(f"{count} images of {images.name}, {sides}; codec {codec.fingerprint[:12]} (sha256)")
    x, latents, back, again = (torch.cat(parts) for parts in zip(*_trips(codec, images, rows), strict=True))
    if not (latents.isfinite().all() and back.isfinite().all()):
        yield problem("its latents or images are not finite", "use float32 weights, and look at its config")
        return
    yield from _size(latents)
    yield from _channels(latents)
    yield from _quality(x, back)
    drift = float((again - latents).square().mean().sqrt() / latents.square().mean().sqrt())
    said = f"drift of encode(decode(z)): {drift:.3f} of z"
    yield ok(said) if drift <= FAR else warning(said, "encoder and decoder may not belong together, or normalise apart")


def _trips(codec: Codec, images: ImageSet, rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Images, latents drawn as in training, images of these, and the mean latents of those."""
    for part in rows.split(AT_A_TIME):
        x = to_float(images.images[part.numpy()]).to(codec.device)
        draws, moments = Draws(0, part.to(codec.device)), codec.encode(x)
        latents = moments.sample(draws.normal("latent", *moments.mean.shape[1:]))
        back = decoded(codec, with_noise(codec, latents, draws), draws)
        yield x.cpu(), latents.cpu(), back.cpu(), codec.encode(back.clamp(-1, 1)).mean.cpu()


def _size(latents: Tensor) -> Iterator[Finding]:
    size = float(latents.square().mean().sqrt())
    said = f"size of latents (root of the mean square): {size:.3f}, expected {LOW} to {HIGH}"
    yield ok(said) if LOW <= size <= HIGH else problem(said, f"x = (z - mean) / std with a wrong std or mean: {RULE}")


def _channels(latents: Tensor) -> Iterator[Finding]:
    std, mean = torch.std_mean(latents, (0, 2, 3))
    said = f"channels: means {float(mean.min()):.3f} to {float(mean.max()):.3f}, "
    said += f"standard deviations {float(std.min()):.3f} to {float(std.max()):.3f}"
    out = ((std < LOW) | (std > HIGH) | (mean.abs() > CENTRE)).nonzero().flatten().tolist()
    if not out:
        yield ok(said)
        return
    listed = ", ".join(map(str, out[:8])) + (", ..." if len(out) > 8 else "")
    yield warning(
        f"{said}; outside {LOW} to {HIGH}, or {CENTRE} around 0: {len(out)} of {len(std)} channels ({listed})",
        "a codec may be uneven; latents_mean and latents_std of its channels would even it out",
    )


def _quality(x: Tensor, back: Tensor) -> Iterator[Finding]:
    error = (to_uint8(x).float() - to_uint8(back).float()).square().mean()
    psnr = 10 * math.log10(255**2 / max(float(error), 1e-9))
    said = f"round trip: PSNR {psnr:.2f} dB"
    yield ok(said) if psnr >= POOR else warning(said, f"images lose much on their way: {RULE}")
    outside = float((back.abs() > 1.1).float().mean())
    said = f"decoded pixels: {float(back.min()):.3f} to {float(back.max()):.3f}, {outside:.2%} beyond 1.1 either way"
    yield ok(said) if outside <= OUTSIDE else warning(said, "they are clamped to [-1, 1], where images are expected")


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
