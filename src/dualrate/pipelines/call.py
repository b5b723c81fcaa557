"""A call of `DualRatePipeline`: what its arguments say, and the images that are drawn."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dualrate.data.images import to_uint8
from dualrate.diffusion.context import Cond, Refresh
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.sampling.trajectory import StepNoise, first_state, trajectory

LISTS = (list, tuple, range, Tensor)  # which have an item for each image
SEEN = ("latents",)  # by callbacks
Changed = Callable[[int, float, Tensor], Tensor]


def texts_of(prompt: Any, negative: object, copies: int) -> Any:
    """The prompt, or so many copies of each text of it. Raises ValueError for anything but texts and a negative one."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not (
        isinstance(texts, list | tuple)
        and all(isinstance(text, str) for text in (*texts, "" if negative is None else negative))
    ):
        raise ValueError(
            "prompt is a text or a list of texts, negative_prompt is one text for all images, got "
            f"{prompt!r} and {negative!r}"
        )
    if copies < 1:
        raise ValueError(f"num_images_per_prompt is 1 or more, got {copies}")
    return prompt if copies == 1 else [text for text in texts for _ in range(copies)]


def has_texts(labels: object) -> bool:
    """Whether it is a text, or a list with one."""
    return isinstance(labels, str) or (isinstance(labels, LISTS) and any(isinstance(label, str) for label in labels))


def sample_count(batch_size: int | None, **arguments: object) -> int:
    """How many images are meant: the batch size, and the length of each argument that is a list.

    Raises ValueError where they disagree.
    """
    counts = {} if batch_size is None else {"batch_size": batch_size}
    counts |= {name: len(value) for name, value in arguments.items() if isinstance(value, LISTS)}
    if len({*counts.values()}) > 1 or min(counts.values(), default=1) < 1:
        got = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"these say how many images are meant, 1 or more, and must agree: got {got}")
    return next(iter(counts.values()), 1)


def each(value: Any, count: int) -> Any:
    """An item for each image: the list that a value is, or the value again and again."""
    return value if isinstance(value, LISTS) else [value] * count


def next_seed(generator: torch.Generator) -> int:
    """A seed for one image, in [-2^63, 2^63); the generator moves on."""
    seed = generator.initial_seed()
    unused = torch.Generator(generator.device).manual_seed(seed).get_state()
    fresh = torch.equal(unused, generator.get_state())
    drawn = int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device))
    seed = seed if fresh else drawn
    return seed - 2**64 if seed >= 2**63 else seed


def changes_by(callback: Any, pipeline: object, tensors: Sequence[str]) -> Changed | None:
    """`sampled`'s `changed` by a callback of diffusers' form, which sees these tensors unless it says others itself.

    Raises ValueError for tensors that there are not, and in a step for what a callback cannot return.
    """
    tensors = getattr(callback, "tensor_inputs", tensors)  # of diffusers' own class of callbacks
    if strange := set(tensors) - set(SEEN):
        raise ValueError(f"a callback can have {', '.join(SEEN)}, got {sorted(strange)}")

    def changed(step: int, t: float, z: Tensor) -> Tensor:
        returned = callback(pipeline, step, t, dict.fromkeys(tensors, z))
        later = z if returned is None else returned.get("latents", z) if isinstance(returned, Mapping) else returned
        if not isinstance(later, Tensor) or later is returned:
            raise ValueError(f'a callback returns {{"latents": a tensor}}, {{}} or None, got {type(later).__name__}')
        return later

    return None if callback is None else changed


def sampled(
    drawer: Drawer,
    draws: Draws,
    cond: Cond,
    start: Tensor | None,
    tick: Callable[[], object],
    changed: Changed | None,
    ended: Callable[[], bool],
) -> Tensor:
    """(B, C, H, W) at the plan's last time, as `dualrate.sample` draws it.

    start:   noise to begin with; None: of the draws
    tick:    called after every step
    changed: (step, its time t, z after it) -> z to go on with. Where that is another one, what was computed of the old
             one is dropped: the next step makes a heavy call instead of a reuse, a multistep solver starts anew
    ended:   asked before every step; where it says so, z is that of an earlier time
    Raises ValueError for a start or a change of another shape, and what `trajectory` raises. Warns of
    such a call where the encoder was not trained.
    """
    shape, plan = drawer.model.shape, drawer.plan
    if start is not None and start.shape[1:] != shape:
        raise ValueError(f"latents are (B, {', '.join(map(str, shape))}), got {tuple(start.shape)}")
    z = first_state(drawer.step.process, draws, shape) if start is None else start.to(draws.row.device, torch.float32)
    noise = StepNoise(drawer.step.process, draws, plan.num_steps, shape)
    states = trajectory(drawer.denoiser, drawer.step, plan, z, cond, noise)
    z, i = next(states).z, 0
    while i < plan.num_steps and not ended():
        z, i = next(states).z, i + 1
        tick()
        if changed is None:
            continue
        before = z.clone()  # a callback may write into what it is given
        z = changed(i - 1, plan.t[i - 1], z).to(before)
        if z.shape != before.shape:
            raise ValueError(f"a callback is given latents of {tuple(before.shape)}, and returned {tuple(z.shape)}")
        if i < plan.num_steps and not torch.equal(z, before):
            refresh = [Refresh.FULL if k == i and now.reuses else now for k, now in enumerate(plan.refresh)]
            untrained, plan = drawer.model.serves.untrained(plan), dataclasses.replace(plan, refresh=tuple(refresh))
            if drawer.model.serves.untrained(plan) > untrained:
                warnings.warn(
                    f"the latents changed before step {i}, which so makes a heavy call at a noise level at which the "
                    f"encoder of {drawer.model.name} was not trained: change them at earlier steps alone",
                    stacklevel=2,
                )
            states = trajectory(drawer.denoiser, drawer.step, plan, z, cond, noise, start=i)
            next(states)
    return z


def _unit(z: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1]."""
    return (z / 2 + 0.5).clamp(0, 1).cpu()


def _pil(z: Tensor) -> list[Image.Image]:
    images = to_uint8(z).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "pil": _pil,
    "np": lambda z: _unit(z).permute(0, 2, 3, 1).numpy(),
    "pt": _unit,
    "latent": lambda z: z,
}
