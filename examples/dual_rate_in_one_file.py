"""Dual-Rate Diffusion (Bartosh et al. 2026, arXiv 2605.18190) in one file of plain PyTorch.

    python examples/dual_rate_in_one_file.py FOLDER_OF_PICTURES --minutes 10

A diffusion model turns noise z_1 into an image x in N steps. Usually one large network runs at every step. Here two
networks share the work:

    encoder  (heavy, H times an image)   features at (z_tau, tau)
    light    (small, N times an image)   x_hat(z_t, t, features, tau),  tau = time of the latest heavy call, tau >= t

Both are trained together by the ordinary denoising loss. The one new rule: z_t and z_tau lie on ONE noising path of x,
as they do while sampling. The package `dualrate` does the same with more of everything, and its tests compare the two.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# --- The noising process: z_t = alpha_t x + sigma_t eps, alpha_t^2 + sigma_t^2 = 1, t from 0 (data) to 1 (noise) ---

LOG_SNR_MIN, LOG_SNR_MAX = -15.0, 15.0
START, END = math.atan(math.exp(-LOG_SNR_MAX / 2)), math.atan(math.exp(-LOG_SNR_MIN / 2))


def log_snr(t: Tensor) -> Tensor:
    """The cosine schedule: log(alpha_t^2 / sigma_t^2) = -2 log tan(a + (b - a) t)."""
    return -2 * torch.log(torch.tan(START + (END - START) * t))


def log_snr_derivative(t: Tensor) -> Tensor:
    return -4 * (END - START) / torch.sin(2 * (START + (END - START) * t))


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, (B, 1, 1, 1). t: (B,)."""
    level = log_snr(t).view(-1, 1, 1, 1)
    return torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()


def add_noise(x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """z_t given x."""
    alpha, sigma = scales(t)
    return alpha * x + sigma * eps


def x_from_v(z: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x, of v = alpha eps - sigma x."""
    alpha, sigma = scales(t)
    return alpha * z - sigma * v


def less_noise(z_t: Tensor, x: Tensor, t: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    """z_s given z_t and x, for s <= t: q(z_s | z_t, x) = N((r / a) z_t + c alpha_s x, c sigma_s^2).

    r = SNR_t / SNR_s, a = alpha_t / alpha_s, c = 1 - r. Training draws pairs by it with the true x, sampling steps by
    it with the estimate x_hat.
    """
    (alpha_t, _), (alpha_s, sigma_s) = scales(t), scales(s)
    gap = (log_snr(t) - log_snr(s)).view(-1, 1, 1, 1)
    r, c = gap.exp(), -gap.expm1()
    return r * alpha_s / alpha_t * z_t + c * alpha_s * x + c.sqrt() * sigma_s * eps


# --- Two networks ---


class NoiseLevel(nn.Sequential):
    """log-SNR (B,) -> embedding (B, 128), by sines and cosines of several frequencies."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))

    def forward(self, level: Tensor) -> Tensor:
        angles = level[:, None] * torch.logspace(-1.3, 0.7, 32, device=level.device, dtype=level.dtype)
        return super().forward(torch.cat((angles.sin(), angles.cos()), dim=1))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions. The embedding scales and shifts between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(128, 2 * channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(emb))[..., None, None].chunk(2, dim=1)
        u = self.norm2(self.conv1(F.silu(self.norm1(h)))) * (1 + scale) + shift
        return h + self.conv2(F.silu(u))


class Trunk(nn.Module):
    """Residual blocks at half of the image's resolution."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.noise = NoiseLevel()
        self.stem = nn.Conv2d(3, channels, 2, stride=2)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))

    def forward(self, z: Tensor, emb: Tensor, features: Tensor | float = 0.0) -> Tensor:
        """(B, channels, H / 2, W / 2). z: (B, 3, H, W). features: the encoder's, added after the first layer."""
        h = self.stem(z) + features
        for block in self.blocks:
            h = block(h, emb)
        return F.silu(h)


class Encoder(nn.Module):
    """The heavy network: (z_tau, log_snr_tau) -> features, projected to the light network's width. It has no head."""

    def __init__(self, channels: int, blocks: int, light_channels: int) -> None:
        super().__init__()
        self.trunk = Trunk(channels, blocks)
        self.projection = nn.Conv2d(channels, light_channels, 1, bias=False)  # without bias: no context adds nothing

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return self.projection(self.trunk(z, self.trunk.noise(level)))


class Light(nn.Module):
    """The light network: (z_t, log_snr_t, features, log_snr_tau, present) -> v = alpha eps - sigma x."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.trunk = Trunk(channels, blocks)
        self.tau = NoiseLevel()
        self.head = nn.ConvTranspose2d(channels, 3, 2, stride=2)
        nn.init.zeros_(self.head.weight)

    def forward(self, z: Tensor, level: Tensor, features: Tensor, level_tau: Tensor, present: Tensor) -> Tensor:
        """present: (B,) 1 or 0. Where it is 0 the light network denoises alone: its features are zero."""
        emb = self.trunk.noise(level) + self.tau(level_tau) * present[:, None]
        return self.head(self.trunk(z, emb, features))


# --- Training ---


def draw_times(batch: int, least: int = 2, most: int = 16) -> tuple[Tensor, Tensor]:
    """(t, tau): t uniform; tau the latest of H evenly spaced heavy calls, H log-uniform, so that any H works later."""
    t = (torch.arange(batch) + torch.rand(batch)) / batch
    heavy = torch.floor(least * ((most + 1) / least) ** torch.rand(batch))
    return t, (t + torch.rand(batch) / heavy).clamp(max=1)


def dual_rate_loss(
    encoder: nn.Module, light: nn.Module, x: Tensor, t: Tensor, tau: Tensor, kept: Tensor, eps: tuple[Tensor, Tensor]
) -> Tensor:
    """The mean of -1/2 dlog_snr/dt sigmoid(log_snr) |x - x_hat|^2 over the batch. x: (B, C, H, W) in [-1, 1].

    kept: rows whose context is not dropped. Only these are encoded, so dropout makes training cheaper.
    eps:  standard normal noise of z_tau and of z_t
    """
    z_tau = add_noise(x, tau, eps[0])
    z_t = less_noise(z_tau, x, tau, t, eps[1])  # on the same path, not a second noising of x
    encoded = encoder(z_tau[kept], log_snr(tau[kept]))
    features = encoded.new_zeros(len(x), *encoded.shape[1:]).index_put((kept,), encoded)
    present = torch.zeros(len(x), device=x.device).index_fill(0, kept, 1.0)
    x_hat = x_from_v(z_t, light(z_t, log_snr(t), features, log_snr(tau), present), t)
    weight = -0.5 * log_snr_derivative(t) * torch.sigmoid(log_snr(t))
    return (weight * (x - x_hat).square().flatten(1).mean(1)).mean()


def train(encoder: nn.Module, light: nn.Module, images: Tensor, minutes: float, batch: int = 64) -> None:
    """Adam with a learning rate that falls to zero. The weights become their running average at the end."""
    both = nn.ModuleList((encoder, light))
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.Adam(both.parameters(), lr=1e-3)
    start, done, iteration = time.monotonic(), 0.0, 0
    while done < 1:
        done = (time.monotonic() - start) / (60 * minutes)
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1, (iteration + 1) / 100) * math.cos(min(done, 1) * math.pi / 2)
        x = images[torch.randint(len(images), (batch,))]
        t, tau = (each.to(x.device) for each in draw_times(batch))
        kept = torch.randperm(batch, device=x.device)[: batch // 2]  # a context dropout of 0.5
        loss = dual_rate_loss(encoder, light, x, t, tau, kept, (torch.randn_like(x), torch.randn_like(x)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(both)
        if iteration % 100 == 0:
            print(f"iteration {iteration}   loss {loss.item():.4f}   {minutes * max(0, 1 - done):.1f} minutes to go")
        iteration += 1
    both.load_state_dict(average.module.state_dict())


# --- Sampling ---


@torch.no_grad()
def sample(encoder: nn.Module, light: nn.Module, noise: list[Tensor], heavy: int) -> Tensor:
    """Images (B, C, H, W) in about [-1, 1], in N = len(noise) steps with `heavy` calls of the encoder.

    noise: z_1 and the noise of every step but the last, all standard normal. Ancestral sampling: each step draws z_s
    given z_t and x_hat, so (z_t, z_tau) keep the joint law that the networks were trained under. DDIM would change it.
    """
    z, steps = noise[0], len(noise)
    refresh = {j * steps // heavy for j in range(heavy)}
    for i in range(steps):
        t, s = (z.new_full((len(z),), 1 - j / steps) for j in (i, i + 1))
        if i in refresh:
            features, tau = encoder(z, log_snr(t)), t  # heavy, H times
        x_hat = x_from_v(z, light(z, log_snr(t), features, log_snr(tau), torch.ones_like(t)), t)  # light, N times
        z = x_hat if i == steps - 1 else less_noise(z, x_hat, t, s, noise[i + 1])
    return z


# --- Images ---


def read_images(folder: Path, side: int = 32) -> Tensor:
    """The pictures of a folder, (n, 3, side, side) in [-1, 1]."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{folder} holds no pictures (.png, .jpg): name a folder that does")
    pictures = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BOX) for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a dual-rate model on your pictures and draw samples of it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, light = Encoder(64, 8, 32).to(device), Light(32, 3).to(device)
    train(encoder, light, read_images(args.folder).to(device), args.minutes)
    noise = [torch.randn(8, 3, 32, 32, device=device) for _ in range(16)]
    rows = [torch.cat(list(sample(encoder, light, noise, heavy)), dim=2) for heavy in (2, 4, 8)]  # three prices
    grid = torch.cat(rows, dim=1).clamp(-1, 1).cpu()
    pixels = Image.fromarray(((grid + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    pixels.resize((4 * pixels.width, 4 * pixels.height), Image.Resampling.NEAREST).save(args.out)
    print(f"{args.out}: samples in 16 steps with 2, 4 and 8 heavy calls, a row each")


if __name__ == "__main__":
    main()
