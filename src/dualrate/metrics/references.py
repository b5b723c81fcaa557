"""Reference statistics from a file, an npz with mu (D,) and sigma (D, D), as published by EDM and ADM.

EDM: Karras et al., arXiv 2206.00364; ADM: Dhariwal and Nichol, arXiv 2105.05233. What else ADM's files hold is not
read: mu_s and sigma_s belong to sFID, and arr_0 are only some of the training images. The number of dimensions is all
that can be checked of the features. Statistics in float32 are rounded: eigenvalues that this moves below zero are set
to zero. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dualrate.data.source import printable, read_arrays
from dualrate.metrics.distances import ROUNDING, GaussianStats, clamped_eigenvalues
from dualrate.metrics.features import FeatureExtractor
from dualrate.system.files import check_regular, naming

ASYMMETRY = 1e-6  # of sigma's largest entry, at least; published ones were summed in another order


@dataclass(frozen=True)
class Reference:
    """Statistics that scores are measured against.

    name:        of the file
    fingerprint: sha256 (hex) of the file
    """

    stats: GaussianStats
    name: str
    fingerprint: str


def load_reference(path: Path | str, extractor: FeatureExtractor) -> Reference:
    """Read a .npz file of statistics, for distances in the features of `extractor`.

    Raises OSError for a file that is missing or cannot be read; ValueError, naming the extractor, for a pickle or
    anything else that is no such file, for numbers that are not finite, shapes other than (D,) and (D, D), and a
    sigma that is no covariance.
    """
    path = Path(path)
    of = f"{extractor.metric} in the features {extractor.identity}"
    check_regular(path)
    with naming(path), path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no .npz file of {of}, and a pickle (EDM2's .pkl) is never opened: it can run any code. Only if "
            "you trust its origin, convert it yourself: ref = numpy.load('FILE.pkl', allow_pickle=True)['fid']; "
            "numpy.savez('FILE.npz', mu=ref['mu'], sigma=ref['sigma'])"
        )
    arrays = read_arrays(path, _wanted, f"reference of {of}")
    try:
        return Reference(_stats(arrays, extractor.dim), printable(path.name), fingerprint)
    except ValueError as error:
        raise ValueError(f"{path} is no reference of {of}: {error}") from error


def holds_statistics(path: Path) -> bool:
    """Whether it is a .npz file with mu; one of images alone is a data set, too."""
    return path.is_file() and zipfile.is_zipfile(path) and "mu.npy" in zipfile.ZipFile(path).namelist()


def _wanted(names: list[str]) -> list[str]:
    if not {"mu", "sigma"} <= set(names):
        raise ValueError(
            f"it holds {', '.join(names) or 'nothing'}; expected mu and sigma. Images are compared with images by "
            "evaluate --images FOLDER --reference FILE, without a run"
        )
    return ["mu", "sigma"]


def _stats(arrays: dict[str, np.ndarray], dim: int) -> GaussianStats:
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64) or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype}; expected float32 or float64 without NaN or infinity")
    mu, sigma = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    rounding = dim * torch.finfo(torch.float32).eps if arrays["sigma"].dtype == np.float32 else 0.0
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise ValueError(f"it has mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)}; expected dimensions of {dim}")
    if (sigma - sigma.T).abs().max() > max(ASYMMETRY, rounding) * sigma.abs().max():
        raise ValueError("sigma is not symmetric, so it is no covariance: fetch the file again")
    cov = (sigma + sigma.T) / 2
    values, vectors = torch.linalg.eigh(cov)
    eigenvalues = clamped_eigenvalues(values, max(ROUNDING, rounding))
    if values.min() < -ROUNDING * values.abs().max():  # of float32: the nearest covariance
        cov = (vectors * eigenvalues) @ vectors.T
    return GaussianStats(mu, cov, count=None)
