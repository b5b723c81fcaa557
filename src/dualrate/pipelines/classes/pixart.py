"""PixArt-alpha and PixArt-Sigma: a DiT whose blocks attend to a text.

PixArt-alpha of 1024 pixels wants their number, and the ratio of the sides: its VAE halves a side three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from dualrate.pipelines.classes.kind import MASK, TEXT, NetworkSpec, Rows, TextInputs, masked_prompt

MOST = {"PixArtAlphaPipeline": 120}  # tokens; of others as many as there may be


def call(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, inputs: TextInputs) -> Tensor:
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if cast(Any, net).use_additional_conditions:
        height, width = state.shape[2:]
        added["resolution"] = state.new_tensor([[8 * height, 8 * width]]).expand(state.shape[0], 2)
        added["aspect_ratio"] = state.new_tensor([[height / width]]).expand(state.shape[0], 1)
    return net(state, timestep=time, added_cond_kwargs=added, return_dict=False, **inputs)[0]


def encode(pipeline: Any, texts: Sequence[str], tokens: int) -> TextInputs:
    how = {"clean_caption": True, "max_sequence_length": min(tokens, MOST.get(type(pipeline).__name__, tokens))}
    embeddings = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, **how)
    return {TEXT: embeddings[0], MASK: embeddings[1]}


KIND = NetworkSpec(
    call,
    prompt=masked_prompt(lambda config: config.get("caption_channels") or config["cross_attention_dim"]),
    tokens=300,
    encode=encode,
    rows=Rows(),
)
