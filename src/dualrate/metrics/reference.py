"""Reference statistics from a file, in the two layouts that are published: npz with `mu` and `sigma`, or with images.

ADM (Dhariwal and Nichol, arXiv 2105.05233): mu (D,), sigma (D, D), beside mu_s and sigma_s, which belong to sFID, and
arr_0 (N, H, W, C) uint8. Its mu and sigma are those of all training images, arr_0 only some of them, so arr_0 counts
only where mu and sigma are missing; then it may come from `dualrate sample --npz` too.
EDM (Karras et al., arXiv 2206.00364): mu and sigma alone.

A file may also hold `extractor`, the `identity` of the features it was made in; of other files only the number of
dimensions can be checked. Statistics in float32 are rounded: eigenvalues that this moves below zero are set to zero.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dualrate.data.readers import read_arrays
from dualrate.data.source import printable
from dualrate.metrics.features import FeatureExtractor
from dualrate.metrics.frechet import ROUNDING, GaussianStats, clamped_eigenvalues
from dualrate.metrics.store import real_features
from dualrate.system.files import check_regular, naming
from dualrate.system.progress import ImageProgress

ASYMMETRY = 1e-6  # of sigma's largest entry, at least; published ones were summed in another order


@dataclass(frozen=True)
class Reference:
    """Statistics that scores are measured against.

    stats:       stats.count is None unless the file held images
    name:        of the file
    fingerprint: sha256 (hex) of the file
    """

    stats: GaussianStats
    name: str
    fingerprint: str


def load_reference(
    path: Path | str, extractor: FeatureExtractor, *, progress: ImageProgress | None = None
) -> Reference:
    """Read a .npz file of one of the layouts above, for distances in the features of `extractor`.

    progress: of the file's images, if it holds those
    Raises OSError for a file that is missing or cannot be read; ValueError, naming the extractor, for a pickle or
    anything else that is no such file, for numbers that are not finite, shapes other than (D,) and (D, D), a sigma
    that is no covariance, and statistics that say they were made in other features.
    """
    path = Path(path)
    of = f"{extractor.metric} in the features {extractor.identity}"
    check_regular(path)
    with naming(path), path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no .npz file of {of}, and a pickle (EDM2's .pkl) is never opened: it can run any code. Only if "
            "you trust its origin, convert it yourself: ref = numpy.load('FILE.pkl', allow_pickle=True)['fid'] (or "
            "['fd_dinov2']); numpy.savez('FILE.npz', mu=ref['mu'], sigma=ref['sigma'])"
        )
    arrays = read_arrays(path, _wanted, f"reference of {of}")
    try:
        return Reference(_stats(arrays, extractor, progress), printable(path.name), fingerprint)
    except ValueError as error:
        raise ValueError(f"{path} is no reference of {of}: {error}") from error


def holds_statistics(path: Path) -> bool:
    """Whether it is a .npz file with mu; one of images alone is a data set, too."""
    return zipfile.is_zipfile(path) and "mu.npy" in zipfile.ZipFile(path).namelist()


def _wanted(found: list[str]) -> list[str]:
    names = next((names for names in (["mu", "sigma"], ["arr_0"]) if set(names) <= set(found)), None)
    if names is None:
        raise ValueError(f"it holds {', '.join(found) or 'nothing'}; expected mu and sigma, or arr_0 (images)")
    return [*names, *({"extractor"} & set(found))]


def _stats(arrays: dict[str, np.ndarray], extractor: FeatureExtractor, progress: ImageProgress | None) -> GaussianStats:
    made_in = str(arrays.pop("extractor", extractor.identity))
    if made_in != extractor.identity:
        raise ValueError(f"it says its statistics are of {made_in}")
    if "arr_0" in arrays:
        images = arrays["arr_0"]
        usable = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3) and len(images) > 1
        if not usable or 0 in images.shape:
            raise ValueError(f"arr_0 is {images.dtype} {images.shape}; expected (N, H, W, C) uint8, N > 1, C = 1 or 3")
        return GaussianStats.of(real_features(extractor, images.transpose(0, 3, 1, 2), progress=progress))
    mu, sigma = (_numbers(arrays[name], name) for name in ("mu", "sigma"))
    dim = extractor.dim
    rounding = dim * torch.finfo(torch.float32).eps if arrays["sigma"].dtype == np.float32 else 0.0
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise ValueError(f"it has mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)}; expected dimensions of {dim}")
    if (sigma - sigma.T).abs().max() > max(ASYMMETRY, rounding) * sigma.abs().max():
        raise ValueError("sigma is not symmetric, so it is no covariance: fetch the file again")
    cov = (sigma + sigma.T) / 2
    values, vectors = torch.linalg.eigh(cov)
    kept = clamped_eigenvalues(values, max(ROUNDING, rounding))
    if values.min() < -ROUNDING * values.abs().max():  # of float32: the nearest covariance
        cov = (vectors * kept) @ vectors.T
    return GaussianStats(mu, cov, count=None)


def _numbers(array: np.ndarray, name: str) -> torch.Tensor:
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} is {array.dtype}; expected float32 or float64")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return torch.from_numpy(array).double()
