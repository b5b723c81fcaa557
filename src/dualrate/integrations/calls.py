"""Calls of a pipeline, as `dualrate.sample` draws: images by seeds, networks by a denoiser. And sealed folders.

torch's generators are states, ours are functions of a seed. A generator that nothing was drawn from stands for the seed
that it was made with. Each time it is asked it is drawn from, so the next time it stands for the number it gives.

A folder that another library writes and reads has a MANIFEST.json of the files beside it, and so has each folder below.
A damaged file is named.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dualrate.data.images import to_uint8
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond, Refresh
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import Model
from dualrate.sampling.trajectory import StepNoise, first_state, trajectory
from dualrate.system.files import check_files
from dualrate.system.folders import MANIFEST, Damaged, Manifest

Value = TypeVar("Value")
WORD = 2**64


def next_seed(generator: torch.Generator) -> int:
    """A seed for one image, in [-2^63, 2^63); the generator moves on."""
    seed = generator.initial_seed()
    unused = torch.Generator(generator.device).manual_seed(seed).get_state()
    fresh = torch.equal(unused, generator.get_state())
    drawn = int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device))
    seed = seed if fresh else drawn
    return seed - WORD if seed >= WORD // 2 else seed


def count_of(**given: int | Sized | None) -> int:
    """How many images are meant: 1 if nothing says it. Raises ValueError for numbers below 1, or that disagree."""
    counts = {
        name: value if isinstance(value, int) else len(value) for name, value in given.items() if value is not None
    }
    if len({*counts.values()}) > 1 or min(counts.values(), default=1) < 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"these say how many images are meant, 1 or more, and must agree: got {listed}")
    return next(iter(counts.values()), 1)


def calling(value: Value, networks: nn.ModuleDict, held: Mapping[str, nn.Module], inside: str) -> Value:
    """A copy of what calls `networks`, or parts of them, that calls those in `held` in their place.

    held: by the same names, each around a network; inside: the name of that in it
    """
    memo: dict[int, object] = {}
    for role, network in networks.items():
        for name, part in network.named_modules():
            memo[id(part)] = held[role].get_submodule(f"{inside}.{name}") if name else held[role]
    return copy.deepcopy(value, memo)


def class_numbers(model: Model, labels: object) -> int | list[int]:
    """Classes by their numbers: a list of them for a list, tuple, array or tensor, else one.

    labels: numbers, as Python, numpy or torch have them, or names
    Raises ValueError for what is neither, and for classes that the model does not know.
    """
    plain: Any = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else labels
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return [model.class_number(label) for label in plain]
    return model.class_number(plain)


def sampled(
    drawer: Drawer,
    draws: Draws,
    cond: Cond,
    start: Tensor | None = None,
    tick: Callable[[], object] = lambda: None,
    changed: Callable[[int, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, C, H, W) at the plan's last time, as `dualrate.sample` draws it.

    start:   noise to begin with; None: of the draws
    tick:    called after every step
    changed: (step, its time t, z after it) -> z to go on with. Where that is another one, what was computed of the old
             one is dropped: the next step makes a heavy call instead of a reuse, a multistep solver starts anew
    Raises ValueError for a start of another shape, and what `trajectory` raises.
    """
    shape, plan = drawer.model.shape, drawer.plan
    if start is not None and start.shape[1:] != shape:
        raise ValueError(f"latents are (B, {', '.join(map(str, shape))}), got {tuple(start.shape)}")
    z = first_state(drawer.step.process, draws, shape) if start is None else start.to(draws.row.device, torch.float32)
    noise = StepNoise(drawer.step.process, draws, plan.num_steps, shape)
    states = trajectory(drawer.denoiser, drawer.step, plan, z, cond, noise)
    z, i = next(states).z, 0
    while i < plan.num_steps:
        z, i = next(states).z, i + 1
        tick()
        if changed is None:
            continue
        before = z.clone()  # a callback may write into what it is given
        z = changed(i - 1, plan.t[i - 1], z)
        if i < plan.num_steps and not torch.equal(z, before):
            plan = refreshed(plan, i)
            states = trajectory(drawer.denoiser, drawer.step, plan, z, cond, noise, start=i)
            next(states)
    return z


def refreshed(plan: StepPlan, step: int) -> StepPlan:
    """The plan with a heavy call at a step that would reuse a context."""
    refresh = [Refresh.FULL if i == step and now.reuses else now for i, now in enumerate(plan.refresh)]
    return dataclasses.replace(plan, refresh=tuple(refresh))


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


def seal(folder: Path, names: list[str] | None = None) -> None:
    """Write the manifest of a folder's files. names: of those that there are; None: all of them."""
    files = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
    Manifest.write(folder, sorted(files if names is None else files & set(names)))


def check_sealed(folder: Path, required: str) -> None:
    """Raises OSError, naming the file, unless all that the manifest lists is what it says; warns where there is none.

    required: a file that it lists in any case
    Raises ValueError for a pipe, a socket or a device among the folder's files.
    """
    check_files(folder)
    try:
        manifest = Manifest.read(folder, [required])
        if manifest is not None:
            for name in manifest.entries:
                manifest.check(name)
    except Damaged as error:
        raise OSError(
            f"{folder} is damaged ({error}): fetch it again, or export it again from its run. If it was changed on "
            f"purpose, remove its {MANIFEST}"
        ) from error
    if manifest is None:
        warnings.warn(
            f"{folder} has no {MANIFEST}, so nothing tells whether it is what was saved: save or export it again",
            stacklevel=2,
        )


def seal_weights(folder: Path, config: str) -> None:
    """The manifest of a network's folder, whose weights its library writes for their owner alone."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / config, file)
    seal(folder)


class Checked:
    """Before another library reads a folder of ours, what it holds is compared with its manifest."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Raises OSError for a damaged folder, naming the file."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_sealed(folder, cls.config_name)  # pyright: ignore[reportAttributeAccessIssue]
        return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
