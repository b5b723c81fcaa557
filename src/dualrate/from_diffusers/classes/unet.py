"""A U-Net of pixels or latents, with classes or without (Ho et al. 2020, LDM)."""

from dualrate.from_diffusers.classes.kind import Kind, by_label, down_and_up, without_skips

KIND = Kind(
    by_label,
    lambda config: config.get("num_class_embeds") or 0,
    known={"time_embedding_type": ("positional",), "class_embed_type": (None,)},
    blocks=down_and_up,
    tapped=without_skips,
)
