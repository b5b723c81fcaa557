"""Unified Latents (Heek, Hoogeboom, Mensink, Salimans 2026, arXiv 2602.17270) in one file of plain PyTorch.

    python examples/unified_latents.py                 # half a minute: as many bits as pay, against a closed form

Encoder, prior and decoder are trained in one phase, and what a latent may hold is priced in nats:

    z = E(x)                                                       without noise
    z_t = alpha_t z + sigma_t eps                                  the prior's process, of log_snr(0) = 5
    L_z = -1/2 log_snr' e^log_snr |z - z_hat(z_t)|^2 + KL(q(z_1 | x) | N(0, I))          a bound of the nats in z_0
    z_0 = alpha_0 z + sigma_0 eps                                  anew
    x_t = alpha_t x + sigma_t eps                                  the decoder's process, another t
    L_x = -1/2 log_snr' e^log_snr w |x - x_hat(x_t, z_0)|^2,       w = c sigmoid(b - log_snr)                    eq. 4
    L   = (L_z + L_x) / d, d numbers in x                          both train the encoder

The prior's loss has no weight, else the encoder would hide what it holds at noise levels that cost less. A nat of z_0
pays where it spares the decoder more than one, w > 1. The paper prints log_snr' of L_x without its minus sign, and
sigmoid(log_snr - b); its figures have what is here.

The data are a Gaussian in 2-D, longer than wide, the latent is one number. Then all is known: the best latent lies
along the data's long axis, and holds 1/2 log2(1 + v rho) bits with the rho at which L is least. The package has the
same as `dualrate.methods.unified_latents`, and its tests compare the two.
"""

import math

import torch
from torch import Tensor, nn

# --- Noising: z_t = alpha_t x + sigma_t eps, t from 0 (data) to 1 (noise), by a cosine schedule. Times are (n, 1). ---


class Process:
    """The cosine schedule between two log-SNRs: log_snr(t) = -2 log tan(angle), alpha = cos, sigma = sin."""

    def __init__(self, first: float, last: float = -15.0) -> None:
        self.start, end = (math.atan(math.exp(-log_snr / 2)) for log_snr in (first, last))
        self.rate = end - self.start

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t."""
        angle = self.start + self.rate * t
        return torch.cos(angle), torch.sin(angle)

    def add_noise(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        alpha, sigma = self.scales(t)
        return alpha * x + sigma * eps

    def half_slope(self, t: Tensor) -> Tensor:
        """-1/2 dlog_snr/dt, positive."""
        alpha, sigma = self.scales(t)
        return self.rate / (alpha * sigma)


LATENTS, IMAGES = Process(first=5.0), Process(first=15.0)

# --- Networks ---


class Denoiser(nn.Module):
    """x_hat(z_t, t, given) = alpha z - sigma v, v = MLP(z_t, t, given)."""

    def __init__(self, process: Process, size: int, given: int = 0, width: int = 64) -> None:
        super().__init__()
        self.process = process
        layers = nn.Linear(size + given + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.mlp = nn.Sequential(*layers, nn.Linear(width, size))

    def forward(self, z: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        alpha, sigma = self.process.scales(t)
        return alpha * z - sigma * self.mlp(torch.cat((z, alpha, sigma, *given), 1))


# --- The method ---

FACTOR, BIAS = 3.0, 2.0  # c and b: w > 1 up to a log-SNR of b + log(c - 1)


def prior_loss(prior, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """L_z in nats, (n,). At t = 1 the KL is 1/2 (alpha^2 z^2 + sigma^2 - 1 - log sigma^2)."""
    alpha, sigma = LATENTS.scales(t)
    error = (z - prior(LATENTS.add_noise(z, t, eps), t)).square()
    alpha_1, sigma_1 = LATENTS.scales(torch.ones_like(t))
    end = 0.5 * ((alpha_1 * z) ** 2 + sigma_1**2 - 1 - torch.log(sigma_1**2))
    return (LATENTS.half_slope(t) * (alpha / sigma) ** 2 * error + end).sum(1)


def decoder_loss(decoder, x: Tensor, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """L_x, (n,). e^log_snr sigmoid(b - log_snr) = e^b sigmoid(log_snr - b)."""
    alpha, sigma = IMAGES.scales(t)
    weight = FACTOR * math.exp(BIAS) * torch.sigmoid(2 * torch.log(alpha / sigma) - BIAS)
    error = (x - decoder(IMAGES.add_noise(x, t, eps), t, z_0)).square()
    return (IMAGES.half_slope(t) * weight * error).sum(1)


def unified_loss(
    encoder, prior, decoder, x: Tensor, times: tuple[Tensor, Tensor], eps: tuple[Tensor, Tensor, Tensor], priced=True
) -> Tensor:
    """L. times: of z and of x; eps: of z_t, z_0 and x_t; priced: whether L_z trains the encoder too, or not yet (ours).

    While nothing can read z yet, all of it is waste to L_z.
    """
    z = encoder(x)
    nats = prior_loss(prior, z if priced else z.detach(), times[0], eps[0])
    z_0 = LATENTS.add_noise(z, torch.zeros_like(times[0]), eps[1])
    return (nats + decoder_loss(decoder, x, z_0, times[1], eps[2])).mean() / x[0].numel()


# --- A toy, of which all is known ---

LONG, WIDE = 1.0, 0.2  # standard deviations along the axes
AXES = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])


def draw_data(n: int) -> Tensor:
    return (torch.randn(n, 2) * torch.tensor([LONG, WIDE])) @ AXES


def draw_times(n: int) -> Tensor:
    return (torch.randperm(n)[:, None] + torch.rand(n, 1)) / n


def best_bits() -> float:
    """1/2 log2(1 + v rho) where 1/2 log(1 + v rho) + 1/2 integral of c e^l sigmoid(b - l) / (1/v + e^l + rho) is least.

    rho = e^5 gain^2: z_0 = gain x_1 + noise is worth as much as x_1 at that SNR. v: variance of x_1, the long axis.
    """
    rho, log_snr = torch.logspace(-3, 4, 2000)[:, None], torch.linspace(-15, 15, 2000)
    weight = FACTOR * math.exp(BIAS) * torch.sigmoid(log_snr - BIAS)
    nats = torch.log1p(LONG**2 * rho[:, 0]) / 2
    decoding = 0.5 * torch.trapezoid(weight / (1 / LONG**2 + log_snr.exp() + rho), log_snr, dim=1)
    return nats[(nats + decoding).argmin()].item() / math.log(2)


def train(iterations: int, batch: int = 512) -> tuple[nn.Module, nn.Module]:
    encoder, prior, decoder = nn.Linear(2, 1, bias=False), Denoiser(LATENTS, 1), Denoiser(IMAGES, 2, given=1)
    parameters = [weight for network in (encoder, prior, decoder) for weight in network.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=4e-3)
    for i in range(iterations):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - i / iterations)
        x, times = draw_data(batch), (draw_times(batch), draw_times(batch))
        eps = torch.randn(batch, 1), torch.randn(batch, 1), torch.randn(batch, 2)
        loss = unified_loss(encoder, prior, decoder, x, times, eps, priced=i >= iterations // 10)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            print(f"iteration {i:5d}   loss {loss.item():.4f}   latent {encoder.weight.tolist()[0]}")
    return encoder, prior


def main(iterations: int = 3000) -> dict[str, float]:
    """Bits of a latent, as measured and as they ought to be, and the cosine of its axis and the data's long one."""
    torch.manual_seed(0)
    encoder, prior = train(iterations)
    with torch.no_grad():
        z, direction = encoder(draw_data(50_000)), encoder.weight[0]
        nats = prior_loss(prior, z, draw_times(len(z)), torch.randn_like(z)).mean().item()
    figures = {
        "bits of a latent by the prior's bound": nats / math.log(2),
        "bits of a Gaussian channel of its spread": 0.5 * math.log2(1 + z.var().item() * math.exp(5)),
        "bits that pay, in closed form": best_bits(),
        "cosine of the latent's axis and the long one": (direction @ AXES[0] / direction.norm()).abs().item(),
    }
    for name, figure in figures.items():
        print(f"{name}: {figure:.3f}")
    return figures


if __name__ == "__main__":
    main()
