"""Multistep consistency models (Heek, Hoogeboom, Salimans 2024, arXiv 2403.06807) in one file of plain PyTorch.

    python examples/multistep_consistency.py           # ten seconds: two steps, thrice as near to where a thousand lead

Time is cut into S segments. In each, f(z_t, t) is the x_hat with which one step of DDIM goes where the ODE of the
teacher goes, to the segment's lower border b: so S steps sample. It is learned from neighbours t and s = t - 1 / T:

    x_t     the teacher's x_hat(z_t), or the data x themselves without a teacher
    z_s     aDDIM from t to s with x_t, which adds the variance eta |x_t - x|^2 / d that x_t lacks
    z_b     DDIM from s to b with f(z_s, s), no gradient
    target  the x_hat of which DDIM from z_t leads to z_b: DDIM solved for x_hat, in double precision
    L       |target - f(z_t, t)|^2 / (d sigma_t^2), the error of v; or sqrt(that + c^2) - c, pseudo-Huber

At s = b there is no f in the target, which keeps it from collapsing. T grows as training goes on.

The data are eight small Gaussians on a circle, whose best denoiser is known: that is the teacher, and where its ODE
leads is found by many steps. The package has the same as `dualrate.methods.consistency`, with the inverse of DDIM
solved on paper; its tests compare the two.
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
    """f(z_t, t) = the teacher's x_hat + sigma_t MLP(z_t, t), which is 0 at first. An error of v is one of the MLP."""

    def __init__(self, segments: int, width: int = 64) -> None:
        super().__init__()
        self.segments = segments
        layers = nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        self.mlp = nn.Sequential(*layers)
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        segment = torch.ceil(t * self.segments)  # f jumps at a border, which belongs to the segment below it
        return teacher(z, t) + scales(t)[1] * self.mlp(torch.cat((z, t * self.segments - segment, segment), 1))


# --- Steps ---


def ddim(z: Tensor, x_hat: Tensor, t: Tensor, s: Tensor, variance: Tensor | float = 0.0) -> Tensor:
    """z_s = alpha_s x_hat + sqrt(sigma_s^2 + d / |eps|^2 zvar) eps: DDIM, and with a variance of x about x_hat aDDIM.

    zvar = (alpha_s - alpha_t sigma_s / sigma_t)^2 variance
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(t), scales(s)
    eps = (z - alpha_t * x_hat) / sigma_t
    lost = (alpha_s - alpha_t * sigma_s / sigma_t) ** 2 * variance / eps.square().mean(1, keepdim=True)
    return alpha_s * x_hat + (sigma_s**2 + lost).sqrt() * eps


def inverse_ddim(z: Tensor, z_b: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """The x_hat with which DDIM goes from z_t to z_b."""
    (alpha_t, sigma_t), (alpha_b, sigma_b) = scales(t), scales(b)
    return (z_b - sigma_b / sigma_t * z) / (alpha_b - alpha_t * sigma_b / sigma_t)


# --- The method ---


def teacher_steps(share: float, segments: int, first: int = 64, last: int = 1280) -> int:
    """T = S round(N / S), N from the first number to the last by equal factors. share: of training that is done."""
    return segments * round(first * (last / first) ** share / segments)


def draw_times(n: int, segments: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """t in {1 / T, ..., 1}, s = t - 1 / T, and the border b = floor(S s) / S."""
    index, of_segment = torch.randint(total, (n, 1)).double(), total // segments
    return (index + 1) / total, index / total, torch.floor(index / of_segment) * of_segment / total


@torch.no_grad()
def make_target(student, x: Tensor, x_t: Tensor, z_t: Tensor, t: Tensor, s: Tensor, b: Tensor, eta: float) -> Tensor:
    """The target of f(z_t, t). x_t: the teacher's x_hat(z_t), or x. A step into t = 0 puts back no variance."""
    variance = eta * (x_t - x).square().mean(1, keepdim=True) * (s > 0)
    z_s = ddim(z_t, x_t, t, s, variance)
    z_b = ddim(z_s, student(z_s, s), s, b)
    return inverse_ddim(z_t, z_b, t, b)


def consistency_loss(
    student, teach, x: Tensor, t: Tensor, s: Tensor, b: Tensor, eps: Tensor, eta: float = 0.75, huber: float = 0.0
) -> Tensor:
    """L of the file. teach: (z_t, t) -> x_hat, or None, to learn from data. huber: c; 0: squares"""
    alpha, sigma = scales(t)
    z_t = alpha * x + sigma * eps
    target = make_target(student, x, x if teach is None else teach(z_t, t), z_t, t, s, b, eta)
    error = ((target - student(z_t, t)) / sigma).square().mean(1)
    return ((error + huber**2).sqrt() - huber if huber else error).mean()


def train(segments: int, iterations: int, batch: int = 256) -> nn.Module:
    """T from 16 to 128, and no aDDIM, eta = 0: of images x_hat and eps are nearly orthogonal, and are not in 2-D."""
    student = FromTeacher(segments).double()
    optimiser = torch.optim.Adam(student.parameters(), lr=2e-3)
    for i in range(iterations):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - i / iterations)
        total = teacher_steps(min(1, 2 * i / iterations), segments, 16, 128)
        x, times = draw_data(batch).double(), draw_times(batch, segments, total)
        loss = consistency_loss(student, teacher, x, *times, torch.randn_like(x), eta=0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            print(f"iteration {i:5d}   T {total:4d}   loss {loss.item():.5f}   off by {off(student, segments):.4f}")
    return student


@torch.no_grad()
def sample(student, z: Tensor, steps: int) -> Tensor:
    """DDIM in so many steps from z_1, of which the last returns x_hat."""
    for i in range(steps):
        t, s = (z.new_full((len(z), 1), 1 - j / steps) for j in (i, i + 1))
        x_hat = student(z, t)
        z = x_hat if i == steps - 1 else ddim(z, x_hat, t, s)
    return z


def off(student, steps: int, n: int = 1000, ode_steps: int = 256) -> float:
    """The median distance from where the teacher's ODE leads from the same noise."""
    noise = torch.randn(n, 2, dtype=torch.float64)
    return (sample(student, noise, steps) - sample(teacher, noise, ode_steps)).norm(dim=1).median().item()


def main(segments: int = 2, iterations: int = 3000) -> dict[str, float]:
    """Median distances from where a thousand steps of the teacher lead."""
    torch.manual_seed(0)
    student = train(segments, iterations)
    figures = {
        f"teacher in {segments} steps": off(teacher, segments, ode_steps=1024),
        f"student in {segments} steps": off(student, segments, ode_steps=1024),
        "teacher in 64 steps": off(teacher, 64, ode_steps=1024),
    }
    for name, figure in figures.items():
        print(f"median distance from the end of the ODE, {name}: {figure:.4f}")
    return figures


if __name__ == "__main__":
    main()
