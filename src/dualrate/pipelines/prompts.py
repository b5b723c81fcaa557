"""Pipelines of diffusers as objects: the network and the scheduler of one, and what its encoders make of texts.

A pipeline's own loop is not run: samplers of ours take its place. So what a denoiser cannot follow is refused: a
pipeline with code of its own, or with networks besides, and weights that do not lie in the network as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, modules_of
from dualrate.diffusion.context import Cond
from dualrate.networks.blocks import copied
from dualrate.pipelines.classes.kind import DECLARE, NetworkSpec, PromptLayout, TextInputs, no_texts
from dualrate.pipelines.network import ForeignNetwork

COMPONENTS = ("transformer", "unet")  # that denoise
BESIDE = ("vae", "vqvae", "text_encoder", "safety_checker", "image_encoder")  # as their names begin
BY_PARTS = "pass its network and scheduler, dualrate.from_diffusers(pipe.{role}, pipe.scheduler)"


def is_pipeline(source: object) -> bool:
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(source).__mro__)


def parts_of(pipeline: Any, scheduler: Any = None) -> tuple[nn.Module, Any]:
    """Its network, and its scheduler unless one is given.

    Raises ValueError for a pipeline with code of its own, and one of several networks.
    """
    name, parts = type(pipeline).__name__, pipeline.components
    role = next((role for role in COMPONENTS if isinstance(parts.get(role), nn.Module)), None)
    if role is None:
        raise ValueError(f"this {name} has no {' or '.join(COMPONENTS)}, it has {', '.join(parts)}")
    way = BY_PARTS.format(role=role)
    if type(pipeline).__module__.partition(".")[0] != "diffusers":
        raise ValueError(f"{name} is no pipeline of diffusers' own, so its code may do anything: {way}")
    beside = [
        part for part, value in parts.items()
        if isinstance(value, nn.Module) and part != role and not part.startswith(BESIDE)
    ]  # fmt: skip
    if beside:
        raise ValueError(f"this {name} calls its {', '.join(beside)} too, which no denoiser here does: {way}")
    return parts[role], parts["scheduler"] if scheduler is None else scheduler


def check_whole(net: nn.Module) -> None:
    """Raises ValueError for a network whose weights are elsewhere, or are quantised."""
    name = type(net).__name__
    for part in net.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        if "_hf_hook" in vars(part) or "group_offloading" in hooks:
            raise ValueError(
                f"this {name} is offloaded, so its weights come and go: load the pipeline without device_map and "
                "offloading (or pipe.remove_all_hooks()), and move it by pipe.to(device)"
            )
    if any(weight.is_meta for weight in net.parameters()):
        raise ValueError(f"this {name} has weights without numbers (meta): load them, and move it by .to(device)")
    quantised = dict(getattr(net, "config", {})).get("quantization_config") is not None
    if quantised or any(not (weight.is_floating_point() or weight.is_complex()) for weight in net.parameters()):
        raise ValueError(
            f"this {name} is quantised, and states take its weights' precision: load it without quantization_config, "
            "with torch_dtype=torch.bfloat16 where memory is short"
        )


def has_encoders(pipeline: Any) -> bool:
    return any(name.startswith("text_encoder") and part is not None for name, part in pipeline.components.items())


def check_encoders(pipeline: Any) -> None:
    """Raises ValueError for text encoders without weights. In a pipeline that is offloaded a call brings them."""
    for name, part in pipeline.components.items():
        of_texts = name.startswith("text_encoder") and isinstance(part, nn.Module)
        if of_texts and any(weight.is_meta for weight in part.parameters()):
            hooked = any("_hf_hook" in vars(module) for module in part.modules())
            if not hooked or pipeline._execution_device.type == "meta":
                raise ValueError(
                    f"the {name} of this pipeline has weights without numbers (meta): load the pipeline anew, or "
                    "offload all of it and not a part (pipe.enable_sequential_cpu_offload())"
                )


@torch.no_grad()
def encoded(
    kind: NetworkSpec,
    prompt: PromptLayout,
    texts: str | Sequence[str] | TextInputs | None,
    pipeline: Any,
    *,
    alone: bool = False,
) -> TextInputs:
    """A network's inputs for texts, by the names of its arguments; embeddings are returned as they are.

    alone: of the negative text instead, None: of what the pipeline takes for none
    Raises ValueError for texts without a pipeline that encodes them, and for encoders without weights.
    """
    if not isinstance(texts, str | Sequence | None):
        return texts
    if pipeline is None or not has_encoders(pipeline):
        raise ValueError(
            "texts are encoded by the pipeline that the network is from, with its text encoders: pass it, or what they "
            f"made of the texts, {', '.join(part.name for part in prompt.parts)}"
        )
    check_encoders(pipeline)
    tokens = prompt.parts[0].shape[0]
    if alone and kind.negative is not None:
        return kind.negative(pipeline, cast("str | None", texts), tokens)
    if kind.encode is no_texts:
        raise ValueError(f"nothing says how {type(pipeline).__name__} encodes texts: {DECLARE.format('encode')}")
    return kind.encode(pipeline, [texts or ""] if isinstance(texts, str | None) else list(texts), tokens)


def negative_prompt(
    kind: NetworkSpec, prompt: PromptLayout, negative: str | TextInputs | None, pipeline: Any
) -> Tensor | None:
    """(1, 1, 1, D) of the negative text, or of what the pipeline takes for none; None where nothing says it.

    Raises ValueError for a text without a pipeline, several of them, and for a class that takes no texts.
    """
    if not prompt.parts and negative is not None:
        raise ValueError("this network takes no prompts, so there is no negative one: drop it")
    if not prompt.parts or (negative is None and not (pipeline is not None and has_encoders(pipeline))):
        return None
    unseen = {part.name: torch.zeros(1, *part.shape) for part in prompt.parts if part.stays}
    packed = prompt.packed({**unseen, **encoded(kind, prompt, negative, pipeline, alone=True)})
    if len(packed) != 1:
        raise ValueError(f"the negative prompt is one, got {len(packed)}")
    return packed


def negated(denoiser: Denoiser, empty: Tensor) -> Denoiser:
    """A copy that shares the weights, for which the null class is this prompt, (1, 1, 1, D)."""
    changed = copied(denoiser, nn.ModuleList(modules_of(denoiser)), bfloat16=False)
    for part in modules_of(changed):
        if isinstance(part, ForeignNetwork):
            part.empty = empty.to(part.empty)
    return changed


def prompts(denoiser: Denoiser, texts: str | Sequence[str] | TextInputs, pipeline: Any = None, **more: Tensor) -> Cond:
    """The condition of B prompts, for a denoiser of a text-to-image model: given (B, 1, 1, D), label 0 each.

    denoiser: of `from_diffusers`, or around one
    texts:    which the pipeline encodes; or what its encoders made of them, by the names of the network's arguments,
              (B, ...) each
    more:     what the network takes besides, such as `mask` and `masked_image_latents` of inpainting, or `time_ids` of
              SDXL; one row stands for all
    Raises ValueError for a denoiser that takes no prompts, for texts without a pipeline, and for a part that lacks, or
    is of another shape.
    """
    network = next((part for part in modules_of(denoiser) if isinstance(part, ForeignNetwork)), None)
    if network is None or not network.prompt.parts:
        raise ValueError("this denoiser takes no prompts: make one of a text-to-image model by dualrate.from_diffusers")
    inputs = {**encoded(network.kind, network.prompt, texts, pipeline), **more}
    rows = network.prompt.packed(inputs).to(network.empty.device)
    return Cond(torch.zeros(len(rows), dtype=torch.int64, device=rows.device), rows)
