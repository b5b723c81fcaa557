"""Moment matching distillation (Salimans et al. 2024, arXiv 2406.04103) in one file of plain PyTorch.

    python examples/moment_matching.py                 # ten seconds: two steps for what a teacher takes many for

A student x~ = g(z_t) of few steps is to have the teacher's conditional mean at every noise level that it reaches:

    E[x~ | z_s] = g_theta(z_s),    z_s ~ q(z_s | z_t, x~)

An auxiliary network g_phi learns the left side, up to half: it is at (E[x~ | z_s] + g_theta) / 2 when it has learned
all. In turn (Algorithm 2 of the paper), with z_s held fixed and d numbers in x:

    auxiliary   L(phi) = w(s) (|x~ - g_phi(z_s)|^2 + |g_theta(z_s) - g_phi(z_s)|^2) / d
    student     L(eta) = w(s) <x~, g_phi(z_s) - g_theta(z_s)> / d         the value means nothing, its gradient all

The data are eight small Gaussians on a circle, of which the best denoiser is known: that is the teacher. Student and
auxiliary start from it. The package has the same as `dualrate.methods.moment_matching`, and its tests compare the two.
"""

import math

import torch
from torch import Tensor, nn

# --- The noising process: z_t = alpha_t x + sigma_t eps, t from 0 (data) to 1 (noise). Times are (n, 1). ---

START, END = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))  # log-SNR from 15 to -15


def scales(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of the cosine schedule, log_snr(t) = -2 log tan(angle)."""
    angle = START + (END - START) * t
    return torch.cos(angle), torch.sin(angle)


def less_noise(z_t: Tensor, x: Tensor, t: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    """A draw of q(z_s | z_t, x) = N((r / a) z_t + c alpha_s x, c sigma_s^2), s <= t.

    a = alpha_t / alpha_s, r = SNR_t / SNR_s, c = 1 - r.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
    a, r = alpha_t / alpha_s, (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    return r / a * z_t + (1 - r) * alpha_s * x + (1 - r).sqrt() * sigma_s * eps


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


class FromTeacher(nn.Module):
    """x_hat(z_t, t) = the teacher's + sigma_t MLP(z_t, t), which is 0 at first."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        self.mlp = nn.Sequential(*layers)
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        times = torch.cat((t, *((k * math.pi * t).cos() for k in (1, 2, 4))), 1)
        return teacher(z, t) + scales(t)[1] * self.mlp(torch.cat((z, times), 1))


# --- The method ---


def draw_times(n: int, steps: int) -> tuple[Tensor, Tensor]:
    """(t, s): s uniform, t at most one of the student's steps above it."""
    s = (torch.arange(n)[:, None] + torch.rand(n, 1)) / n
    return (s + torch.rand(n, 1) / steps).clamp(max=1), s


def student_states(
    student: nn.Module, x: Tensor, t: Tensor, s: Tensor, eps: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """x~ = g(z_t) of noised data x, with gradient, and z_s ~ q(z_s | z_t, x~), without."""
    alpha, sigma = scales(t)
    z_t = alpha * x + sigma * eps[0]
    x_student = student(z_t, t)
    return x_student, less_noise(z_t, x_student.detach(), t, s, eps[1])


def weight(s: Tensor) -> Tensor:
    """w(s) = sigmoid(log_snr(s)) = alpha_s^2, of each row."""
    return scales(s)[0][:, 0] ** 2


def auxiliary_loss(x_student: Tensor, g_phi: Tensor, g_theta: Tensor, s: Tensor) -> Tensor:
    """L(phi): towards the student's outputs, held near the teacher. g_phi, g_theta: at z_s."""
    error = (x_student.detach() - g_phi).square() + (g_theta - g_phi).square()
    return (weight(s) * error.mean(1)).mean()


def student_loss(x_student: Tensor, g_phi: Tensor, g_theta: Tensor, s: Tensor) -> Tensor:
    """L(eta): gradient through x~ alone."""
    return (weight(s) * (x_student * (g_phi - g_theta).detach()).mean(1)).mean()


def train(steps: int, iterations: int, batch: int = 256) -> nn.Module:
    """The auxiliary in even iterations, the student in odd ones, at a lower rate."""
    student, auxiliary = FromTeacher(), FromTeacher()
    optimisers = [torch.optim.Adam(network.parameters(), betas=(0.0, 0.99)) for network in (auxiliary, student)]
    for i in range(iterations):
        optimiser = optimisers[i % 2]
        optimiser.param_groups[0]["lr"] = (5e-4 if i % 2 else 2e-3) * (1 - i / iterations)
        x, (t, s) = draw_data(batch), draw_times(batch, steps)
        x_student, z_s = student_states(student, x, t, s, (torch.randn_like(x), torch.randn_like(x)))
        g_phi, g_theta = auxiliary(z_s, s), teacher(z_s, s)
        loss = (student_loss if i % 2 else auxiliary_loss)(x_student, g_phi, g_theta, s)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            gap = (g_phi - g_theta).square().mean()
            far = energy_distance(sample(student, torch.randn(steps, 1000, 2)), draw_data(1000))
            print(f"iteration {i:5d}   moment gap {gap.item():.5f}   energy distance {far:.4f}")
    return student


@torch.no_grad()
def sample(student, noise: Tensor) -> Tensor:
    """Ancestral sampling in len(noise) steps. noise: (steps, n, 2), z_1 and that of every step but the last."""
    z, steps = noise[0], len(noise)
    for i in range(steps):
        t, s = (z.new_full((len(z), 1), 1 - j / steps) for j in (i, i + 1))
        x_hat = student(z, t)
        z = x_hat if i == steps - 1 else less_noise(z, x_hat, t, s, noise[i + 1])
    return z


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, without bias: 0 in the mean where both are of one distribution."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return (2 * torch.cdist(x, y).mean() - within).item()


def main(steps: int = 2, iterations: int = 4000) -> dict[str, float]:
    """Energy distances to fresh data, by what was sampled."""
    torch.manual_seed(0)
    student, data, noise = train(steps, iterations), draw_data(4000), torch.randn(64, 4000, 2)
    figures = {
        f"teacher in {steps} steps": energy_distance(sample(teacher, noise[:steps]), data),
        f"student in {steps} steps": energy_distance(sample(student, noise[:steps]), data),
        "teacher in 64 steps": energy_distance(sample(teacher, noise), data),
        "other data": energy_distance(draw_data(4000), data),
    }
    for name, figure in figures.items():
        print(f"energy distance to the data, {name}: {figure:.4f}")
    return figures


if __name__ == "__main__":
    main()
