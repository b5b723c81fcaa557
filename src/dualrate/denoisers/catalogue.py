"""Denoisers by name. Each wraps the denoiser of a trained model, and costs less per step without training.

A name of the form `package.module:name` is one of another package, which is imported already: a class or a function
that takes a denoiser and its process, and returns a denoiser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from dualrate.config.imports import look_up
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.feature_cache import ORDER, SHARES, FeatureCache, TokenCache
from dualrate.diffusion.context import Refresh

Around = Callable[[Denoiser, Any], Denoiser]  # of a denoiser and its process

DENOISERS: dict[str, Around] = {
    "shared-encoder": FeatureCache.shared_encoder,
    "fora": FeatureCache.around,
    "deep-cache": partial(FeatureCache.around, outer=1),
    "taylor": partial(FeatureCache.around, order=ORDER, form="taylor"),
    "polynomial": partial(FeatureCache.around, order=ORDER),
    "toca": partial(TokenCache.around, share=SHARES["toca"], by="attention", between=(Refresh.PARTIAL,)),
    "duca": partial(TokenCache.around, share=SHARES["duca"], by="random", between=(Refresh.PARTIAL, Refresh.KEEP)),
}


def denoiser_named(name: str) -> Around:
    """Makes the denoiser of a name in DENOISERS, or of another package that is imported already.

    Raises ValueError for any other name.
    """
    if name in DENOISERS:
        return DENOISERS[name]
    if ":" not in name:
        raise ValueError(
            f"there is no denoiser {name!r}; there are {', '.join(DENOISERS)}, and package.module:name of your own"
        )
    factory = look_up(name)
    try:
        inspect.signature(cast(Around, factory)).bind(None, None)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no denoiser: expected what takes a denoiser and its process, got {factory!r}: {error}"
        ) from error
    return cast(Around, factory)
