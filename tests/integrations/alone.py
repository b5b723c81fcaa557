"""Ancestral sampling with exported programs, in torch alone. Arguments of the script: programs, a folder of noise."""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def programs(folder):
    index = json.loads((Path(folder) / "programs.json").read_text())
    return index, *(torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encoder", "light"))


def draw(index, encoder, light, noise, label):
    """Images. noise: (N, B, C, H, W), that of the start and of every step but the last; label: (B,)."""
    log_snrs, steps, rows = np.array(index["log_snr"]), len(index["plan"]["refresh"]), len(label)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * log_snrs))) for sign in (-1, 1))
    z, tau, present = noise[0], torch.zeros(rows), torch.zeros(rows, dtype=torch.bool)
    features = tuple(torch.zeros_like(part) for part in encoder(z, tau, label)[0])
    for i, refresh in enumerate(index["plan"]["refresh"]):
        log_snr, v, s = torch.full((rows,), log_snrs[i], dtype=torch.float32), None, i + 1
        if refresh == "full":
            (features, v), tau, present = encoder(z, log_snr, label), log_snr, torch.ones(rows, dtype=torch.bool)
        v = light(z, log_snr, label, features, tau, present) if v is None else v
        x = alpha[i] * z - sigma[i] * v
        if s == steps:
            return x
        eps, kept = (z - alpha[i] * x) / sigma[i], np.exp(log_snrs[i] - log_snrs[s])
        z = alpha[s] * x + sigma[s] * (np.sqrt(kept) * eps + np.sqrt(1 - kept) * noise[s])
    raise ValueError("a plan has a step at least")


if __name__ == "__main__":
    sys.modules["dualrate"] = None  # pyright: ignore[reportArgumentType]  # which makes importing it an error
    loaded = programs(sys.argv[1])
    for file in Path(sys.argv[2]).glob("noise-*.npz"):
        given = np.load(file)
        images = draw(*loaded, torch.from_numpy(given["noise"]), torch.from_numpy(given["label"]))
        np.save(file.with_name(file.name.replace("noise", "images").replace("npz", "npy")), images.float().numpy())
