"""What a second rate can save at most: its cost beside a single network's, if its light network were as right as that.

    OMP_NUM_THREADS=1 .venv/bin/python studies/ceiling.py

At equal steps, sampler and error of x_hat, an image of N steps with H heavy calls costs, over N calls of the heavy
network,

    share = (e H + l (N - H)) / N      e, l: a call of the encoder and of the light network, over a heavy one
            (e H + l N) / N            where the light network runs at heavy steps too, as in the paper

and a single network of c times the heavy one's cost saves c, so the second rate saves a factor of c / share at most.
Costs are counted on the networks of the recipes, without weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from common import command, markdown

from dualrate.experiment.experiment import Experiment
from dualrate.experiment.networks import TwoNetworks
from dualrate.recipes import fashion_mnist, imagenet, natural16
from dualrate.sampling.cost import CallCost, call_cost

RIVALS = (1.0, 0.45, 0.25, 0.17, 0.1)  # costs of single networks, over the heavy one's
PLANS = ((8, 2), (10, 3), (12, 4))  # 12/3 and 16/4 are as 8/2


@dataclass(frozen=True)
class Pair:
    """A dual-rate experiment, one of the heavy network of its kind, and plans (N, H)."""

    name: str
    experiment: Experiment
    heavy: Experiment
    plans: Sequence[tuple[int, int]]


def fashion(encoder: fashion_mnist.Single, light: fashion_mnist.Single = "light") -> Pair:
    networks = TwoNetworks(fashion_mnist.NETWORKS[encoder], fashion_mnist.NETWORKS[light])
    experiment = replace(fashion_mnist.dual(), networks=networks)
    return Pair(f"fashion-mnist, {encoder} and {light}", experiment, fashion_mnist.single("heavy"), PLANS)


def natural(encoder: natural16.Single, light: natural16.Single) -> Pair:
    networks = TwoNetworks(natural16.NETWORKS[encoder], natural16.NETWORKS[light])
    experiment = replace(natural16.dual(), networks=networks)
    return Pair(f"natural16, {encoder} and {light}", experiment, natural16.single("heavy"), PLANS)


PAIRS = (
    fashion("heavy"),
    fashion("medium-45"),
    fashion("medium-25", "light-10"),
    fashion("light", "light-05"),
    natural("heavy", "light"),
    natural("medium-25", "light-10"),
    Pair("imagenet64, heavy and light", imagenet.dual(), imagenet.heavy(), ((256, 16), (128, 16), (8, 4))),
)


def share(cost: CallCost, heavy: CallCost, steps: int, calls: int) -> float:
    """Of an image under a plan, over as many calls of the heavy network."""
    return cost.of(steps, calls) / heavy.of(steps, steps)


def cost_of(experiment: Experiment) -> CallCost:
    return call_cost(experiment.build()[1], experiment.networks.shape, 0)


def rows() -> Iterator[list[str]]:
    for pair in PAIRS:
        heavy = cost_of(pair.heavy)
        cost = cost_of(pair.experiment)
        for steps, calls in pair.plans:
            own = share(cost, heavy, steps, calls)
            yield [pair.name, f"{steps}/{calls}", f"{own:.3f}", *(f"{rival / own:.2f}" for rival in RIVALS)]


def main() -> None:
    command(__doc__).parse_args()
    print(markdown(["networks", "plan", "share", *(f"ratio, c = {c:g}" for c in RIVALS)], rows(), texts=2))


if __name__ == "__main__":
    main()
