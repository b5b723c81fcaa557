"""Classes of diffusers by name. A class is known by that, so nothing here imports diffusers."""

from __future__ import annotations

from dualrate.from_diffusers.classes import dit, flux, pixart, qwen_image, sana, sd3, unet, unet_text
from dualrate.from_diffusers.classes.kind import Config, Kind

KINDS: dict[str, Kind] = {
    "DiTTransformer2DModel": dit.KIND,
    "UNet2DModel": unet.KIND,
    "UNet2DConditionModel": unet_text.KIND,
    "SD3Transformer2DModel": sd3.KIND,
    "PixArtTransformer2DModel": pixart.KIND,
    "SanaTransformer2DModel": sana.KIND,
    "FluxTransformer2DModel": flux.KIND,
    "QwenImageTransformer2DModel": qwen_image.KIND,
}


def kind_of(name: str, config: Config) -> Kind:
    """The kind of a class. Raises ValueError for one that is not known, and for an unknown set-up."""
    if name not in KINDS:
        by_name = "with convention 'sit' or 'repa' any network that is called (state, time, label)"
        raise ValueError(f"no {name} is known; known are {', '.join(KINDS)}, and {by_name}")
    for setting, known in (KINDS[name].known or {}).items():
        if (found := config.get(setting, known[0])) not in known:
            takes = " or ".join(map(repr, known))
            raise ValueError(f"this {name} has {setting} {found!r}, of another process: {takes} is known")
    return KINDS[name]
