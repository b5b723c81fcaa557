"""`sample`: an image depends on its seed, its label and the plan, and on nothing else."""

import pytest
import torch

from dualrate.diffusion.plan import StepPlan
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.sampling.trajectory import sample_batches
from theory.common import PROCESS, gaussian
from theory.exact import OracleDenoiser
from theory.held_context import NeededContext

IMAGES = NeededContext(PROCESS, 0.3)  # pictures of any even width


@pytest.mark.parametrize("step", [Ancestral(PROCESS, 0.3), DDIM(PROCESS)], ids=["ancestral", "ddim"])
def test_an_image_depends_on_its_seed_and_not_on_its_batch(step):
    plan, seeds = StepPlan.uniform(6), [7, 0, 2**40, *range(20, 33)]
    by_size = {
        size: torch.cat(list(sample_batches(IMAGES, step, plan, (3, 2, 2), seeds, batch_size=size)))
        for size in (1, 4, 16, 5)
    }
    assert by_size[16].shape == (16, 3, 2, 2)
    assert by_size[16].dtype == torch.float32
    for images in by_size.values():
        torch.testing.assert_close(images, by_size[16], rtol=0, atol=1e-5)
    assert (torch.cdist(by_size[16].flatten(1), by_size[16].flatten(1)) + 9 * torch.eye(16) > 0.1).all()


def test_noise_is_new_at_every_step():
    seen = []

    class Noisy(Ancestral):
        def __call__(self, denoise, z, t, s, draw, carry):
            seen.extend((draw(), draw()))
            return z, carry

    (z,) = sample_batches(IMAGES, Noisy(PROCESS), StepPlan.uniform(5), (3, 10, 10), [3, 4])
    rows = torch.stack((z, *seen)).view(-1, 300)
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.5


def test_samples_report_progress_and_take_labels():
    labels, done = [], []

    class Labelled(OracleDenoiser):
        def denoise(self, z, t, context, cond):
            labels.append(cond.label.tolist())
            return super().denoise(z, t, context, cond)

    batches = sample_batches(
        Labelled(gaussian(0.3, 4), PROCESS),
        Ancestral(PROCESS),
        StepPlan.uniform(1),
        (1, 2, 2),
        range(5),
        [4, 3, 2, 1, 0],
        batch_size=2,
        progress=lambda count, of: done.append((count, of)),
    )
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert labels == [[4, 3], [2, 1], [0]]
    assert done == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("seeds", "labels"),
    [
        ([], None),
        ([1, 2], [0]),
        ([1, 2**63, 3], None),
        ([0, -(2**63) - 1, 1], None),
        ([0, 1.5, 2], None),
        ([0, "1"], None),
    ],
)
def test_impossible_samples_are_refused(seeds, labels):
    with pytest.raises(ValueError):
        next(iter(sample_batches(IMAGES, Ancestral(PROCESS), StepPlan.uniform(2), (3, 2, 2), seeds, labels)))


def test_samples_carry_no_gradient():
    weight = torch.ones(1, requires_grad=True)

    class Learned(OracleDenoiser):
        def denoise(self, z, t, context, cond):
            return weight * z

    (images,) = sample_batches(Learned(gaussian(0.3), PROCESS), Ancestral(PROCESS), StepPlan.uniform(2), (1, 2, 2), [1])
    assert not images.requires_grad


def test_every_state_of_every_batch_is_watched_and_watching_can_end_it():
    seen, plan = [], StepPlan.uniform(3)
    images = list(sample_batches(IMAGES, DDIM(PROCESS), plan, (3, 2, 2), range(3), batch_size=2, watch=seen.append))
    assert [(state.i, float(state.t), len(state.z)) for state in seen] == [
        (i, plan.t[i], rows) for rows in (2, 1) for i in range(4)
    ]
    torch.testing.assert_close(seen[3].z.float(), images[0], rtol=0, atol=0)

    def stop(state):
        if state.i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(sample_batches(IMAGES, DDIM(PROCESS), plan, (3, 2, 2), [0], watch=stop))
