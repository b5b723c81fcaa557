"""Discrete moment matching (D-MMD, Hoogeboom et al. 2026, arXiv 2603.20155) in one file of plain PyTorch.

    python examples/discrete_moment_matching.py        # ten seconds: two tokens at once, that agree with each other

Masked diffusion: a token is replaced by a mask with probability t, and x_hat(z_t) is the probabilities of each token,
as if each were by itself. So a step that reveals many tokens at once loses what they have to do with one another, and a
teacher needs many steps. A student of few steps has x_hat with noise as an input, so that it makes a mixture of such
products. With x ~ x_hat(z_t) and z_s ~ q(z_s | z_t, x) it is to have the teacher's probabilities at every z_s.

    min over eta, max over phi:  E[CE(x, theta(z_s)) - CE(x, phi(z_s)) - CE(theta(z_s), phi(z_s))]             eq. 7

theta is the teacher, phi an auxiliary network that learns the student's probabilities at z_s, up to half. In turn
(Algorithm 1), with z_s held fixed, and sums over the tokens that are masked in it:

    auxiliary   L(phi) = w(s) (CE(x_hat, phi(z_s)) + CE(theta(z_s), phi(z_s)))
    student     L(eta) = -w(s) sum x_hat (log theta(z_s) - log phi(z_s))        gradient through x_hat alone

The data are two tokens whose law is a table; the teacher is exact. The package has the same as
`dualrate.methods.moment_matching` with the process `dualrate.diffusion.categorical.Masked`, for which the tests of
the package compare the two.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

# --- Data: two tokens of V kinds, alike in four of five cases; and the teacher, which is exact ---

V, LENGTH, PLANES = 4, 2, 2
MASK = V
STATES = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))  # (K, L): all that there are
ALIKE = STATES[:, 0] == STATES[:, 1]
LAW = torch.where(ALIKE, 0.8 / V, 0.2 / (V * V - V))  # (K,)


def draw_data(n: int) -> Tensor:
    return STATES[torch.multinomial(LAW, n, replacement=True)]


def teacher(z: Tensor) -> Tensor:
    """(n, L, V): p(x_i | z), whatever t is, and never quite 0, so that it has a logarithm. z: (n, L) tokens"""
    agrees = ((z[:, None] == MASK) | (z[:, None] == STATES)).all(2)
    weights = agrees * LAW
    mean = torch.einsum("nk,klv->nlv", weights / weights.sum(1, keepdim=True), one_hot(STATES, V).to(LAW))
    return mean.clamp(min=1e-30)


# --- The noising process: a share t of the tokens is masked. uniform: (n, L) random numbers in (0, 1); t, s: (n, 1) ---


def add_noise(x: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
    """z_t ~ q(z_t | x)."""
    return torch.where(uniform <= 1 - t, x, MASK)


def less_noise(z_t: Tensor, x: Tensor, t: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
    """z_s ~ q(z_s | z_t, x): a masked token is revealed with probability (t - s) / t, the others stay."""
    return torch.where((z_t == MASK) & (uniform <= (t - s) / t), x, z_t)


def draw_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n, L), by inversion of the distribution."""
    return (probabilities.cumsum(2) < uniform[..., None]).sum(2).clamp(max=V - 1)


# --- Networks ---


class FromTeacher(nn.Module):
    """Probabilities: softmax of the teacher's logits + MLP(z_t, noise, t), which is 0 at first.

    A token that is revealed stays so. planes: of the noise, normal numbers for each token; 0 for an auxiliary
    """

    def __init__(self, planes: int, width: int = 64) -> None:
        super().__init__()
        layers = nn.Linear(LENGTH * (V + 1 + planes) + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.mlp = nn.Sequential(*layers, nn.Linear(width, LENGTH * V))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, z: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """(n, L, V). noise: (n, L, planes)"""
        inputs = [t, one_hot(z, V + 1).to(t).flatten(1)] + ([] if noise is None else [noise.flatten(1)])
        start = teacher(z).to(t)
        x_hat = (start.log() + self.mlp(torch.cat(inputs, 1)).view_as(start)).softmax(2)
        return torch.where((z == MASK)[..., None], x_hat, start)


# --- The method ---


def draw_times(n: int, steps: int) -> tuple[Tensor, Tensor]:
    """(t, s): s uniform, t at most one of the student's steps above it."""
    s = (torch.arange(n)[:, None] + torch.rand(n, 1)) / n
    return (s + torch.rand(n, 1) / steps).clamp(max=1), s


def student_states(
    student: nn.Module, x: Tensor, t: Tensor, s: Tensor, noise: Tensor, uniforms: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """x_hat(z_t, noise) of noised data, with gradient, and z_s by way of tokens x that are drawn of it, without."""
    z_t = add_noise(x, t, uniforms[0])
    x_hat = student(z_t, t, noise)
    drawn = draw_tokens(x_hat.detach(), uniforms[1])
    return x_hat, less_noise(z_t, drawn, t, s, uniforms[2])


def over_tokens(per_token: Tensor, z_s: Tensor, s: Tensor) -> Tensor:
    """w(s) = 1 - s times the mean over tokens, of which those that z_s reveals have no loss."""
    return ((1 - s) * per_token * (z_s == MASK)).mean()


def auxiliary_loss(x_hat: Tensor, phi: Tensor, theta: Tensor, z_s: Tensor, s: Tensor) -> Tensor:
    """L(phi): towards the student, held near the teacher. A masked token's x_hat is its mean given z_s too."""
    return over_tokens(-((x_hat.detach() + theta) * phi.log()).sum(2), z_s, s)


def student_loss(x_hat: Tensor, phi: Tensor, theta: Tensor, z_s: Tensor, s: Tensor) -> Tensor:
    """L(eta)."""
    return over_tokens(-(x_hat * (theta.log() - phi.log()).detach()).sum(2), z_s, s)


def train(steps: int, iterations: int, batch: int = 256) -> nn.Module:
    """The auxiliary in even iterations, the student in odd ones."""
    student, auxiliary = FromTeacher(PLANES), FromTeacher(0)
    optimisers = [
        torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.99)) for network in (auxiliary, student)
    ]
    for i in range(iterations):
        optimiser = optimisers[i % 2]
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - i / iterations)
        x, (t, s), uniform = draw_data(batch), draw_times(batch, steps), torch.rand(3, batch, LENGTH)
        x_hat, z_s = student_states(student, x, t, s, torch.randn(batch, LENGTH, PLANES), tuple(uniform))
        loss = (student_loss if i % 2 else auxiliary_loss)(x_hat, auxiliary(z_s, s), teacher(z_s), z_s, s)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % (iterations // 8) == 0 or i == iterations - 1:
            print(f"iteration {i:5d}   total variation {total_variation(sample(student, 4000, steps)):.3f}")
    return student


@torch.no_grad()
def sample(student, n: int, steps: int) -> Tensor:
    """(n, L) tokens in so many steps from masks."""
    z = torch.full((n, LENGTH), MASK)
    for i in range(steps):
        t, s = (torch.full((n, 1), 1 - j / steps) for j in (i, i + 1))
        x = draw_tokens(student(z, t, torch.randn(n, LENGTH, PLANES)), torch.rand(n, LENGTH))
        z = less_noise(z, x, t, s, torch.rand(n, LENGTH))
    return z


def total_variation(x: Tensor) -> float:
    """Half of the sum of |frequency - probability| over all states: 0 at best, 1 at worst."""
    frequency = (x[:, None] == STATES).all(2).float().mean(0)
    return (frequency - LAW).abs().sum().item() / 2


def main(steps: int = 1, iterations: int = 3000) -> dict[str, float]:
    """Total variation distances from the table."""
    torch.manual_seed(0)
    student = train(steps, iterations)

    def exact(z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return teacher(z)

    figures = {
        f"teacher in {steps} step": total_variation(sample(exact, 50_000, steps)),
        f"student in {steps} step": total_variation(sample(student, 50_000, steps)),
        "teacher in 16 steps": total_variation(sample(exact, 50_000, 16)),
        "as many data": total_variation(draw_data(50_000)),
    }
    for name, figure in figures.items():
        print(f"total variation distance from the table, {name}: {figure:.3f}")
    return figures


if __name__ == "__main__":
    main()
