"""What a configuration of another library says of images and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dualrate.diffusion.values import Shape
from dualrate.foreign.kinds import Kind, by_place


def labels_of(kind: Kind, config: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    """num_classes and null of `ForeignNetwork`. Raises ValueError for more classes than labels."""
    labels = kind.classes(config) if kind.call is not by_place else num_classes or 0
    own = replace(kind, null=True) if kind.call is by_place else kind
    if num_classes is None or num_classes == labels:
        return {"num_classes": labels, "null": own.null and labels > 0}
    if own.null:
        raise ValueError(
            f"this network has {labels} classes and its null class after them, got num_classes {num_classes}: drop it"
        )
    if num_classes != labels - 1 or not num_classes:
        raise ValueError(
            f"this network has {labels} labels, so {labels} classes, or {labels - 1} if the last label is the null "
            f"class, got {num_classes}"
        )
    return {"num_classes": num_classes, "null": True}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """(C, H, W) of a configuration. Raises ValueError where it does not say."""
    channels, side = config.get("in_channels"), config.get("sample_size")
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    if not (channels and height and width):
        raise ValueError(
            f"in_channels {channels} and sample_size {side} say no shape: write them into its config.json, or pass "
            "shape=(C, H, W)"
        )
    return int(channels), int(height), int(width)
