"""DiT (Peebles and Xie 2022): a transformer of classes."""

from dualrate.from_diffusers.classes.kind import Kind, Rows, by_label

KIND = Kind(by_label, lambda config: config.get("num_embeds_ada_norm", 1000), null=True, rows=Rows())
