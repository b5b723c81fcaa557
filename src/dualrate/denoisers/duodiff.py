"""Two models that exist, and a plan that chooses between them at each step: DuoDiff and T-Stitch.

    NONE         x_hat = light(z_t, t)       the first steps of StepPlan.late(times, heavy, steps - heavy)
    FULL         x_hat = heavy(z_t, t)
    KEEP         as NONE; of a dual-rate model in the place of heavy, its own light network with its context

DuoDiff   Fernandez, Matisan et al. 2024, arXiv 2410.09633: a shallow U-ViT (3 blocks) for the first 300 to 500 of 1,000
          ancestral steps, a deep one (13 to 21) for the rest, trained apart. CIFAR-10 FID 17.89 in 1.88 s an image by
          the deep one; 17.81 in 1.45 s, 17.95 in 1.30 s, 18.67 in 1.16 s for 300, 400, 500. ImageNet 64: 19.19 in
          5.12 s; 21.49 in 3.80 s for 300. So 1.3 times on small images, and worse at once on ImageNet. Cheap first is a
          matter of its prediction of eps, which z_t nearly is at high noise. Ours is of v; a DiT of the convention
          `dit` (`--networks.model.convention dit`) predicts eps as there, x_hat = (z_t - sigma_t eps) / alpha_t.
T-Stitch  Pan et al. 2024, arXiv 2402.14167: DiT-S for the first 40% of the steps, DiT-XL after it, at no loss of FID;
          with DiT-S, B and XL at 5, 22 and 114 GFLOPs.
Differences: the plan decides where to switch, so any sampler and any grid of times serve, and heavy steps may also
stand between light ones. The place is chosen by measuring (`dualrate plan HEAVY --denoiser LIGHT`, `dualrate compare
HEAVY+LIGHT`), or, as published, by a time (`--switch-at 0.6` of `sample`, `compare` and `plan`). A dual-rate model
trained with dropped contexts is such a pair without a second training: its light network runs alone at steps of NONE.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser, abilities
from dualrate.diffusion.context import Cond, Context, Reuse


@dataclass(frozen=True)
class Switched(Denoiser):
    """Two models: `light` where a step has no context, `heavy` at the others.

    light: called without a context, so the light network of a dual-rate model does, too
    heavy: one that runs at every step, whose heavy call has denoised already and leaves nothing behind; or a dual-rate
           one. Raises ValueError for one whose contexts want a smooth path or one plan
    `reuse` is MARKOV, so that a second call within a heavy step is heavy, too; a plan with NONE, not KEEP, goes
    with every sampler.
    """

    light: Denoiser
    heavy: Denoiser
    reuse: Reuse = Reuse.MARKOV
    alone_differs = True

    def __post_init__(self) -> None:
        if self.heavy.reuse not in (Reuse.FREE, Reuse.MARKOV):
            raise ValueError(
                f"the contexts of {type(self.heavy).__name__} need a smooth path or one plan, which another "
                "network's steps are not: name a single network, or a dual-rate one that takes any plan"
            )

    @property
    def varies(self) -> bool:
        return any(abilities(denoiser).varies for denoiser in (self.light, self.heavy))

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        context = self.heavy.encode(z, t, cond)
        return context if context.features else Context(x_hat=self.heavy.denoise(z, t, context, cond))

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        if context.x_hat is not None:
            return context.x_hat
        return (self.heavy if context.features else self.light).denoise(z, t, context, cond)
