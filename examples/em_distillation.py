"""EM distillation (Xie et al. 2024, arXiv 2405.16852) in one file of plain PyTorch: a generator of one step.

    python examples/em_distillation.py                 # half a minute: one call for what a teacher takes many for

x = g(z), z ~ N(0, I), is fitted to the teacher's samples by maximum likelihood at every noise level. The E-step draws
(x_t, z) of which x_t is the teacher's and z what the generator would have made it of. With x_t = alpha g(z) + sigma eps
that is a density of z and eps alone,

    log rho = log q_t(x_t) - log p_t(x_t) - |z|^2 / 2 - |eps|^2 / 2

sampled by L steps of Langevin from z, eps ~ N(0, I). The difference of the scores of q_t, the teacher's, and p_t, the
generator's, is one of two posterior means: gap = g_theta(x_t) - g_phi(x_t), of the teacher and of an auxiliary network
that is trained on samples of the generator. With u = alpha / sigma, and both from the same state:

    eps' = (1 - h) eps + h u gap + sqrt(2 h) n
    z'   = (1 - k) z + k u^2 J_g(z)^T gap + sqrt(2 k) m          n, m ~ N(0, I)

The M-step regresses g(z) at the end on x_t / alpha, less the noise that is known to be in it (noise cancellation):
what eps began as and the n, of which the gaps are what is left,

    c' = (1 - h) c + h gap,  c = 0 at first
    generator   L(eta) = w(t) |g(z) - sg(g(z) + c)|^2 / d
    auxiliary   L(phi) = w(t) |g(z) - g_phi(alpha g(z) + sigma eps)|^2 / d

The data are eight small Gaussians on a circle, of which the best denoiser is known: that is the teacher. The package
has the same as `dualrate.methods.em_distillation`, and its tests compare the two.
"""

import math

import torch
from torch import Tensor, nn

# --- The noising process: x_t = alpha_t x + sigma_t eps, t from 0 (data) to 1 (noise). Times are (n, 1). ---

START, END = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))  # log-SNR from 15 to -15


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of the cosine schedule, log_snr(t) = -2 log tan(angle)."""
    angle = START + (END - START) * t
    return torch.cos(angle), torch.sin(angle)


# --- Data, and the teacher, which is exact ---

MODES = torch.tensor([(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)])
SPREAD = 0.1


def draw_data(n: int) -> Tensor:
    return MODES[torch.randint(8, (n,))] + SPREAD * torch.randn(n, 2)


def teacher(z: Tensor, t: Tensor) -> Tensor:
    """E[x | z_t]: a mean over modes, of each the mean of one Gaussian."""
    (alpha, sigma), modes = scales(t), MODES.to(z)
    variance = alpha**2 * SPREAD**2 + sigma**2
    share = (-(z[:, None] - alpha[..., None] * modes).square().sum(2) / (2 * variance)).softmax(1)
    return share @ modes + alpha * SPREAD**2 / variance * (z - alpha * (share @ modes))


# --- Networks ---


def mlp(inputs: int, width: int = 64) -> nn.Sequential:
    """Three layers, which give 0 at first."""
    layers = nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """g(z) = the teacher's x_hat of z at one high noise level + MLP(z)."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.mlp, self.start = mlp(2), start

    def forward(self, z: Tensor) -> Tensor:
        return teacher(z, torch.full_like(z[:, :1], self.start)) + self.mlp(z)


class Auxiliary(nn.Module):
    """g_phi(x_t, t) = the teacher's x_hat + sigma_t MLP(x_t, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp(4)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return teacher(x_t, t) + scales(t)[1] * self.mlp(torch.cat((x_t, t, (math.pi * t).cos()), 1))


# --- The method ---

LEAST, LARGEST = 0.05, 0.95  # times: u^2 grows without bound towards t = 0
NOISE_STEP, LATENT_STEP = 0.16, 0.01  # h, k


def langevin_step(
    generator, auxiliary, teach, state: tuple[Tensor, Tensor, Tensor], t: Tensor, normals: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(z', eps', c') of (z, eps, c). normals: n and m."""
    (z, eps, c), (alpha, sigma), h, k = state, scales(t), NOISE_STEP, LATENT_STEP
    z = z.detach().requires_grad_()
    x = generator(z)
    with torch.no_grad():
        x_t = alpha * x + sigma * eps
        gap = teach(x_t, t) - auxiliary(x_t, t)
    u = alpha / sigma
    (pull,) = torch.autograd.grad(x, z, u**2 * gap)  # u^2 J_g(z)^T gap
    z_next = (1 - k) * z.detach() + k * pull + math.sqrt(2 * k) * normals[1]
    eps_next = (1 - h) * eps + h * u * gap + math.sqrt(2 * h) * normals[0]
    return z_next, eps_next, (1 - h) * c + h * gap


def weight(t: Tensor) -> Tensor:
    """w(t) = sigmoid(log_snr(t)) = alpha_t^2, of each row."""
    return scales(t)[0][:, 0] ** 2


def generator_loss(
    generator, auxiliary, teach, t: Tensor, z: Tensor, eps: Tensor, normals: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """L(eta) after len(normals) = L steps of Langevin."""
    state = z, eps, torch.zeros_like(z)
    for pair in normals:
        state = langevin_step(generator, auxiliary, teach, state, t, pair)
    z, _, c = state
    x = generator(z)
    return (weight(t) * (x - (x + c).detach()).square().mean(1)).mean()


def auxiliary_loss(generator, auxiliary, t: Tensor, z: Tensor, eps: Tensor) -> Tensor:
    """L(phi): the denoising loss on the generator's samples."""
    alpha, sigma = scales(t)
    x = generator(z).detach()
    return (weight(t) * (x - auxiliary(alpha * x + sigma * eps, t)).square().mean(1)).mean()


def train(steps: int, iterations: int, batch: int = 256) -> nn.Module:
    """The auxiliary in even iterations, the generator, with L = `steps`, in odd ones, at a lower rate."""
    generator, auxiliary = Generator(), Auxiliary()
    optimisers = [torch.optim.Adam(network.parameters()) for network in (auxiliary, generator)]
    for i in range(iterations):
        optimiser = optimisers[i % 2]
        optimiser.param_groups[0]["lr"] = (5e-4 if i % 2 else 2e-3) * (1 - i / iterations)
        t = LEAST + (LARGEST - LEAST) * (torch.arange(batch)[:, None] + torch.rand(batch, 1)) / batch
        z, eps, *chain = torch.randn(2 + 2 * steps, batch, 2)
        if i % 2:
            normals = list(zip(chain[::2], chain[1::2], strict=True))
            loss = generator_loss(generator, auxiliary, teacher, t, z, eps, normals)
        else:
            loss = auxiliary_loss(generator, auxiliary, t, z, eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            with torch.no_grad():
                far = energy_distance(generator(torch.randn(1000, 2)), draw_data(1000))
            print(f"iteration {i:5d}   loss {loss.item():.5f}   energy distance {far:.4f}")
    return generator


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, without bias: 0 in the mean where both are of one distribution."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return (2 * torch.cdist(x, y).mean() - within).item()


def main(steps: int = 4, iterations: int = 4000) -> dict[str, float]:
    """Energy distances to fresh data."""
    torch.manual_seed(0)
    generator, data, noise = train(steps, iterations), draw_data(4000), torch.randn(4000, 2)
    with torch.no_grad():
        figures = {
            "as it began": energy_distance(Generator()(noise), data),
            "generator": energy_distance(generator(noise), data),
            "other data": energy_distance(draw_data(4000), data),
        }
    for name, figure in figures.items():
        print(f"energy distance to the data, {name}: {figure:.4f}")
    return figures


if __name__ == "__main__":
    main()
