"""Rolling Diffusion (Ruhe, Heek, Salimans, Hoogeboom 2024, arXiv 2402.09470) in one file of plain PyTorch.

    python examples/rolling_diffusion.py               # half a minute: a sequence without end, a frame for a few calls

A window of F frames slides along a sequence, and each frame has a time of its own: noise grows from the first frame to
the last. With a clock c, frame k = 0 .. F - 1 is at

    u_k(c) = clip((k + c) / F, 0, 1)
    start   c from F to 0: all is noise, then noise rises evenly, and frame 0 is clean
    roll    c from 1 to 0: u_(k+1)(0) = u_k(1), so that a window at c = 0, moved on by a frame, with noise for its last
            one, is a window at c = 1

The paper's two phases of t from 1 to 0, u_k = clip(k / F + t) and clip((k + t) / F), are c = F t and c = t. Training
and steps are those of a diffusion model, frame by frame:

    L   = mean over k of weight(u_k) |x^k - x_hat^k|^2,      z^k = alpha(u_k) x^k + sigma(u_k) eps^k
    z'  ~ q(z at u_k(c') | z at u_k(c), x_hat)               of each frame at its own two times

The data are x^(k+1) = rho x^k + sqrt(1 - rho^2) n, of which the best denoiser is known. y is the frame before the
window. The package has the same as `dualrate.forecasts.rolling`, and its tests compare the two.
"""

import math

import torch
from torch import Tensor, nn

FRAMES, RHO = 4, 0.8

# --- The process. Windows are (n, F), clocks (n, 1) from F (noise) down to 1 - F (data). ---

START, END = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))  # log-SNR from 15 to -15


def frame_times(c: Tensor) -> Tensor:
    """u_k, (n, F)."""
    return ((torch.arange(FRAMES).to(c) + c) / FRAMES).clamp(0, 1)


def scales(u: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the cosine schedule, log_snr(u) = -2 log tan(angle); at u = 0 they are 1 and 0."""
    angle = torch.where(u > 0, START + (END - START) * u, 0)
    return torch.cos(angle), torch.sin(angle)


def weight(u: Tensor) -> Tensor:
    """-1/2 dlog_snr/du sigmoid(log_snr); none of a frame that is clean, or noise alone."""
    return torch.where((u > 0) & (u < 1), (END - START) / torch.tan(START + (END - START) * u), 0)


def less_noise(z: Tensor, x: Tensor, u: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    """A draw of q(z_s | z_u, x) = N((r / a) z + c alpha_s x, c sigma_s^2), s <= u; a frame whose time stays has r = 1.

    a = alpha_u / alpha_s, r = SNR_u / SNR_s, c = 1 - r.
    """
    (alpha_u, sigma_u), (alpha_s, sigma_s) = scales(u), scales(s)
    a, r = alpha_u / alpha_s, torch.where(u == s, 1, (alpha_u * sigma_s / (alpha_s * sigma_u)) ** 2)
    return r / a * z + (1 - r) * alpha_s * x + (1 - r).sqrt() * sigma_s * eps


# --- Data, and their best denoiser ---


def draw_data(n: int, length: int) -> Tensor:
    """(n, length) sequences, of variance 1."""
    frames = [torch.randn(n)]
    for _ in range(length - 1):
        frames.append(RHO * frames[-1] + math.sqrt(1 - RHO**2) * torch.randn(n))
    return torch.stack(frames, 1)


def exact(z: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """E[x | z, y] = m y + S A (A S A + D)^-1 (z - A m y): frames after y are Gaussian, of mean m y and covariance S."""
    (alpha, sigma), k = scales(frame_times(c)), torch.arange(1, FRAMES + 1).to(z)
    mean, covariance = RHO**k * y, RHO ** (k[:, None] - k).abs() - RHO ** (k[:, None] + k)
    across = covariance * alpha[:, None]  # S A
    gain = across @ torch.linalg.inv(alpha[:, :, None] * across + torch.diag_embed(sigma**2))
    return mean + (gain @ (z - alpha * mean)[..., None])[..., 0]


# --- The method ---


class Denoiser(nn.Module):
    """x_hat(z, c, y) = alpha z - sigma v of every frame, v = MLP(z, c, y)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = nn.Linear(FRAMES + 6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.mlp = nn.Sequential(*layers, nn.Linear(width, FRAMES))

    def forward(self, z: Tensor, c: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = scales(frame_times(c))
        waves = [f(math.pi * c / period) for f in (torch.sin, torch.cos) for period in (1, FRAMES)]
        return alpha * z - sigma * self.mlp(torch.cat((z, y, c / FRAMES, *waves), 1))


def draw_clocks(n: int, whole: float = 0.2) -> Tensor:
    """(n, 1): of a roll, c ~ U(0, 1), or with probability `whole` of any window, c ~ U(1 - F, F)."""
    uniform = (torch.randperm(n)[:, None] + torch.rand(n, 1)) / n
    return torch.where(torch.rand(n, 1) < whole, 1 - FRAMES + (2 * FRAMES - 1) * uniform, uniform)


def rolling_loss(denoiser, x: Tensor, y: Tensor, c: Tensor, eps: Tensor) -> Tensor:
    """L of the file. x, eps: (n, F); y: (n, 1)"""
    u = frame_times(c)
    alpha, sigma = scales(u)
    return (weight(u) * (x - denoiser(alpha * x + sigma * eps, c, y)).square()).mean()


def train(iterations: int, batch: int = 512) -> nn.Module:
    denoiser = Denoiser()
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    for i in range(iterations):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - i / iterations)
        y, x = draw_data(batch, 1 + FRAMES).split((1, FRAMES), 1)
        c, eps = draw_clocks(batch), torch.randn(batch, FRAMES)
        loss = rolling_loss(denoiser, x, y, c, eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            least = rolling_loss(exact, x, y, c, eps)
            print(f"iteration {i:5d}   loss {loss.item():.4f}   of the best denoiser {least.item():.4f}")
    return denoiser


def step(denoiser, z: Tensor, c: float, c_next: float, y: Tensor, eps: Tensor) -> Tensor:
    """The window at a later clock, c_next < c."""
    now, later = (torch.full_like(y, clock) for clock in (c, c_next))
    return less_noise(z, denoiser(z, now, y), frame_times(now), frame_times(later), eps)


@torch.no_grad()
def roll(denoiser, y: Tensor, frames: int, steps: int) -> Tensor:
    """(n, frames) that follow y, (n, 1): F x steps calls for the first frame, then as many as `steps` for each."""
    z, clean, clock = torch.randn(len(y), FRAMES), [], float(FRAMES)
    for _ in range(frames):
        for i in range(round(clock) * steps):
            z = step(denoiser, z, clock - i / steps, clock - (i + 1) / steps, y, torch.randn_like(z))
        y, clock = z[:, :1], 1.0  # frame 0 is clean, and leaves
        clean.append(y)
        z = torch.cat((z[:, 1:], torch.randn_like(y)), 1)  # noise comes last; the others keep theirs
    return torch.cat(clean, 1)


def main(iterations: int = 3000, rows: int = 4000, steps: int = 8) -> dict[str, float]:
    """Variance and correlation of sequences of 12 frames, by what made them."""
    torch.manual_seed(0)
    denoiser, figures = train(iterations), {}
    for name, made in {
        "Rolling Diffusion": roll(denoiser, draw_data(rows, 1), 12, steps),
        "Rolling Diffusion, best denoiser": roll(exact, draw_data(rows, 1), 12, steps),
        "data": draw_data(rows, 12),
    }.items():
        pair = torch.corrcoef(made[:, -2:].T)[0, 1].item()
        figures |= {f"{name}, variance": made[:, -1].var().item(), f"{name}, correlation": pair}
    for name, figure in figures.items():
        print(f"{name}: {figure:.3f}")
    return figures


if __name__ == "__main__":
    main()
