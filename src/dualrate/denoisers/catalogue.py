"""Denoisers by name. Each is made around the denoiser of a trained model, and costs less per step without training.

A name of the form `package.module:name` is one of another package, which is imported already: a class or a function
that takes a denoiser and its process, and returns a denoiser. `shared-encoder-3` shares the first three middle blocks,
where `shared-encoder` shares five in six.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from dualrate.config.imports import known
from dualrate.denoisers.denoiser import Denoiser
from dualrate.denoisers.feature_cache import ORDER, SHARES, FeatureCache, TokenCache
from dualrate.diffusion.values import Refresh

Around = Callable[[Denoiser, Any], Denoiser]  # of a denoiser and its process

DENOISERS: dict[str, Around] = {
    "shared-encoder": FeatureCache.shared_encoder,
    "fora": FeatureCache.around,
    "deep-cache": partial(FeatureCache.around, outer=1),
    "taylor": partial(FeatureCache.around, order=ORDER),
    "taylor-published": partial(FeatureCache.around, order=ORDER, form="published"),
    "toca": partial(TokenCache.around, share=SHARES["toca"], by="attention", between=(Refresh.PARTIAL,)),
    "duca": partial(TokenCache.around, share=SHARES["duca"], by="random", between=(Refresh.PARTIAL, Refresh.KEEP)),
}
SHARED = "shared-encoder-"  # with a number of blocks after it


def denoiser_named(name: str) -> Around:
    """Makes the denoiser of a name in DENOISERS, or of another package that is imported already.

    Raises ValueError for any other name.
    """
    if name in DENOISERS:
        return DENOISERS[name]
    if name.startswith(SHARED):
        number = name.removeprefix(SHARED)
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name}: {SHARED}3 has a number of middle blocks from 1 on, got {number!r}")
        return partial(FeatureCache.shared_encoder, blocks=int(number))
    if ":" not in name:
        raise ValueError(
            f"there is no denoiser {name!r}; known is {', '.join(DENOISERS)}, {SHARED}3, and "
            "package.module:name of your own"
        )
    found = known(name)
    try:
        inspect.signature(cast(Around, found)).bind(None, None)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no denoiser: expected what takes a denoiser and its process, got {found!r}: {error}"
        ) from error
    return cast(Around, found)


def is_denoiser(name: str) -> bool:
    """Whether it is one of this catalogue's names, right or wrong in what stands after it."""
    return name in DENOISERS or name.startswith(SHARED)
