"""The covariance-aware step (Schioppa, Salimans 2026, arXiv 2605.13910) in one file of plain PyTorch.

    python examples/covariance_aware_step.py           # seconds: the spectrum of fields in one, two, four, eight steps

DDIM puts x_hat = E[x | z_t] in the place of a draw of p(x | z_t), and so few steps lose spread. With the covariance C
of x given z_t, a step draws

    z_s = (sigma_s / sigma_t) z_t + B x_hat + B C^(1/2) n,     B = alpha_s - alpha_t sigma_s / sigma_t
    C   = (sigma_t^2 / alpha_t) d x_hat / d z_t                Tweedie's formula of second order
    C   = U^T diag(l) U                                        U a transform to frequencies, one l for each band of them
    l   = (sigma_t^2 / alpha_t) r (U J U^T r), a mean over the band; r random signs, J = d x_hat / d z_t

J U^T r is one Jacobian-vector product: a step costs two calls. Into t = 0 it is x_hat + C^(1/2) n. l is held above 0,
and its mean over an image below `most`, the variance of the data. Known of the paper are its abstract and summaries:
the probe, the bands and the bounds are a reconstruction.

The data are Gaussian fields with a known spectrum, of which the best denoiser is known too. The package has the same as
`dualrate.sampling.fourier`, and its tests compare the two.
"""

import itertools
import math

import torch
from torch import Tensor

# --- The noising process: z_t = alpha_t x + sigma_t eps, t from 0 (data) to 1 (noise). ---

START, END = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))  # log-SNR from 15 to -15


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of the cosine schedule, log_snr(t) = -2 log tan(angle)."""
    angle = START + (END - START) * t
    return torch.cos(angle), torch.sin(angle)


# --- Bands of frequencies ---


def dct(size: int, like: Tensor) -> Tensor:
    """(size, size), orthonormal: rows are the waves of a DCT-II, for images whose edges are mirrors."""
    k = torch.arange(size).to(like)
    waves = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    waves[0] *= math.sqrt(0.5)
    return waves


def transform(x: Tensor) -> Tensor:
    """U x, (n, C, H, W), over channels, rows and columns. Of three colours that is grey and two opponent colours."""
    channels, rows, columns = (dct(size, x) for size in x.shape[1:])
    return torch.einsum("dc,bchw->bdhw", channels, rows @ x @ columns.mT)


def inverse(coefficients: Tensor) -> Tensor:
    """U^T c."""
    channels, rows, columns = (dct(size, coefficients) for size in coefficients.shape[1:])
    return torch.einsum("dc,bdhw->bchw", channels, rows.mT @ coefficients @ columns)


def bands(shape: torch.Size, rings: int = 12) -> Tensor:
    """(C, H, W) int64: rings of frequencies in each channel, of equal width in the root of the radius."""
    channels, height, width = shape
    down, right = torch.arange(height) / height, torch.arange(width) / width
    root = (down[:, None] ** 2 + right**2) ** 0.25
    ring = (root / root.max().clamp_min(1e-9) * rings).long().clamp_max(rings - 1)
    return ring + rings * torch.arange(channels)[:, None, None]


def band_means(values: Tensor, band: Tensor) -> Tensor:
    """Each number's mean over its band, of the shape of values: (n, C, H, W)."""
    flat, index = values.flatten(1), band.flatten()
    sums = flat.new_zeros(len(flat), int(index.max()) + 1).index_add(1, index, flat)
    return (sums / index.bincount().clamp_min(1))[:, index].view_as(values)


# --- The step ---


def variances(denoise, z: Tensor, t: Tensor, signs: Tensor, most: float = 1.0) -> tuple[Tensor, Tensor]:
    """x_hat(z_t), and l of every frequency, by one probe. signs: r, of z's shape"""
    alpha, sigma = scales(t)
    x_hat, along = torch.func.jvp(lambda state: denoise(state, t), (z,), (inverse(signs),))
    estimate = sigma**2 / alpha * band_means(signs * transform(along), bands(z.shape[1:]))
    estimate = estimate.clamp_min(0)
    return x_hat, estimate * (most / estimate.mean((1, 2, 3), keepdim=True).clamp_min(most))


def covariance_step(
    denoise, z: Tensor, t: Tensor, s: Tensor, signs: Tensor, noise: Tensor, most: float = 1.0
) -> Tensor:
    """z_s of z_t, (n, C, H, W). t, s: (); noise: n"""
    x_hat, variance = variances(denoise, z, t, signs, most)
    drawn = x_hat + inverse(variance.sqrt() * transform(noise))  # of p(x | z_t), as far as its covariance goes
    if s == 0:
        return drawn
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
    return sigma_s / sigma_t * z + (alpha_s - alpha_t * sigma_s / sigma_t) * drawn


def ddim_step(denoise, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """For comparison: the same with x_hat alone."""
    x_hat = denoise(z, t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
    return x_hat if s == 0 else sigma_s / sigma_t * z + (alpha_s - alpha_t * sigma_s / sigma_t) * x_hat


# --- A toy, of which all is known ---

SIDE = 16


def spectrum() -> Tensor:
    """(1, SIDE, SIDE): variance of each frequency, whose mean is 1: large waves have most of it."""
    k = torch.arange(SIDE)
    power = 1 / (1 + k[:, None] ** 2 + k**2) ** 1.5
    return (power / power.mean())[None]


def exact(z: Tensor, t: Tensor) -> Tensor:
    """E[x | z_t] of the fields: frequency by frequency."""
    (alpha, sigma), power = scales(t), spectrum().to(z)
    return inverse(alpha * power / (alpha**2 * power + sigma**2) * transform(z))


def spectrum_error(x: Tensor) -> float:
    """Mean over rings of |log(variance of what was sampled / that of the data)|."""
    band = bands(x.shape[1:])
    measured, true = (band_means(part[None], band) for part in (transform(x).square().mean(0), spectrum()))
    ratio = (measured / true).log().abs()[0]
    return torch.stack([ratio[band == ring].mean() for ring in band.unique()]).mean().item()


@torch.no_grad()
def sample(steps: int, aware: bool, n: int = 512) -> Tensor:
    """(n, 1, SIDE, SIDE) from noise, with equal steps in time."""
    z, times = torch.randn(n, 1, SIDE, SIDE), torch.linspace(1, 0, steps + 1)
    for t, s in itertools.pairwise(times):
        if aware:
            signs = torch.where(torch.randn_like(z) < 0, -1.0, 1.0)
            z = covariance_step(exact, z, t, s, signs, torch.randn_like(z), most=2.0)
        else:
            z = ddim_step(exact, z, t, s)
    return z


def main(n: int = 512) -> dict[str, float]:
    """Errors of the spectrum, by step and number of steps."""
    torch.manual_seed(0)
    rows = {(name, steps): sample(steps, name == "aware", n) for steps in (1, 2, 4, 8) for name in ("aware", "DDIM")}
    figures = {f"{name}, steps {steps}": spectrum_error(x) for (name, steps), x in rows.items()}
    for name, figure in figures.items():
        print(f"error of the spectrum, {name}: {figure:.3f}")
    return figures


if __name__ == "__main__":
    main()
