"""Classes of diffusers by name. A class is known by that, so nothing here imports diffusers.

How one more is added: `pipelines/README.md`.
"""

from __future__ import annotations

from dualrate.pipelines.classes import flux, ovis_image, pixart, qwen_image, sana, sd3, unet_text
from dualrate.pipelines.classes.kind import Config, NetworkSpec, Rows, by_label
from dualrate.system.files import shown

KINDS: dict[str, NetworkSpec] = {
    "DiTTransformer2DModel": NetworkSpec(  # of classes (Peebles and Xie 2022)
        by_label, lambda config: config.get("num_embeds_ada_norm", 1000), null=True, rows=Rows()
    ),
    "UNet2DModel": NetworkSpec(  # of pixels or latents, with classes or without (Ho et al. 2020, LDM)
        by_label,
        lambda config: config.get("num_class_embeds") or 0,
        settings={"time_embedding_type": ("positional",), "class_embed_type": (None,)},
    ),
    "UNet2DConditionModel": unet_text.KIND,
    "SD3Transformer2DModel": sd3.KIND,
    "PixArtTransformer2DModel": pixart.KIND,
    "SanaTransformer2DModel": sana.KIND,
    "FluxTransformer2DModel": flux.KIND,
    "QwenImageTransformer2DModel": qwen_image.KIND,
    "OvisImageTransformer2DModel": ovis_image.KIND,
}


def kind_of(name: str, config: Config) -> NetworkSpec:
    """The kind of a class. Raises ValueError for one that is not known, and for an unknown set-up."""
    if name not in KINDS:
        by_name = "with convention 'sit' or 'repa' any network that is called (state, time, label)"
        raise ValueError(f"no {shown(name, 60)} is known; known are {', '.join(KINDS)}, and {by_name}")
    for setting, allowed in (KINDS[name].settings or {}).items():
        if (value := config.get(setting, allowed[0])) not in allowed:
            takes = " or ".join(map(repr, allowed))
            raise ValueError(
                f"this {name} has {setting} {shown(repr(value), 60)}, of another process: {takes} is known"
            )
    return KINDS[name]
