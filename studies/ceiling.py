"""What a second rate can save at most: its cost beside a single network's, if its light network were as right as that.

    OMP_NUM_THREADS=1 .venv/bin/python studies/ceiling.py

At equal steps, sampler and error of x_hat, an image of N steps with H heavy calls costs, over N calls of the heavy
network,

    share = (H + l (N - H)) / N        l: a light call over a heavy one; with a light call at heavy steps too, l N

and a single network of c times the heavy one's cost saves c, so the second rate saves a factor of c / share at most.
Costs are counted on the networks of the recipes, without weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import command, markdown

from dualrate.recipes import fashion_mnist, imagenet
from dualrate.sampling.cost import CallCost, call_cost

RIVALS = (1.0, 0.45, 0.25)  # costs of single networks, over the heavy one's
PLANS = {fashion_mnist.dual: ((16, 4), (14, 3), (16, 2), (32, 4)), imagenet.dual: ((256, 16), (128, 16), (8, 4))}


def share(cost: CallCost, steps: int, heavy: int) -> float:
    """Of an image under a plan, over calling the heavy network at every step."""
    return cost.of(steps, heavy) / (steps * cost.heavy)


def rows() -> Iterator[list[str]]:
    for recipe, plans in PLANS.items():
        experiment = recipe()
        cost = call_cost(experiment.build()[1], experiment.networks.shape, 0)
        for steps, heavy in plans:
            own = share(cost, steps, heavy)
            yield [experiment.name, f"{steps}/{heavy}", f"{own:.3f}", *(f"{rival / own:.2f}" for rival in RIVALS)]


def main() -> None:
    command(__doc__).parse_args()
    print(markdown(["networks", "plan", "share", *(f"saved, c = {c:g}" for c in RIVALS)], rows(), texts=2))


if __name__ == "__main__":
    main()
