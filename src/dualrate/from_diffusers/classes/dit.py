"""DiT (Peebles and Xie 2022): a transformer of classes."""

from dualrate.from_diffusers.classes.kind import BLOCKS, Kind, by_label

KIND = Kind(by_label, lambda config: config.get("num_embeds_ada_norm", 1000), null=True, row=BLOCKS)
