"""A training loop of your own: torch's DataLoader, optimiser and EMA; of the package only the loss and the sampler.

python examples/own_loop.py FOLDER_OF_IMAGES --iterations 2000 --out images.png
"""

from __future__ import annotations

import argparse

import torch
from own_networks import Encoder, Light
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import dualrate as dr


def dataset(source: str, side: int) -> tuple[TensorDataset, int]:
    """(image in [-1, 1], label) of a folder with a subfolder a class, or any other source; and how many classes."""
    found = dr.load_images(source, split="train", size=side, channels=3)
    images = torch.tensor(found.images[:]).float() / 127.5 - 1
    labels = torch.zeros(len(images)) if found.labels is None else torch.tensor(found.labels[:])
    return TensorDataset(images, labels.long()), max(1, len(found.class_names))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", default="images.png")
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    data, classes = dataset(asked.source, asked.side)
    batches = DataLoader(data, asked.batch_size, shuffle=True, drop_last=True)
    networks = nn.ModuleDict({"encoder": Encoder(3, 64, 16, classes), "light": Light(3, 16, classes)}).to(device)
    average = AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    loss_of = dr.DualRateLoss(networks["encoder"], networks["light"], num_classes=classes)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-3)

    iteration = 0
    while iteration < asked.iterations:
        for x, label in batches:
            optimizer.zero_grad()
            loss = loss_of(x.to(device), label.to(device))
            loss.backward()
            optimizer.step()
            average.update_parameters(networks)
            iteration += 1
            if iteration % 100 == 0 or iteration == asked.iterations:
                print(f"iteration {iteration}, loss {loss.item():.4f}", flush=True)
            if iteration == asked.iterations:
                break

    encoder, light = average.module.children()
    model = dr.DualRateLoss(encoder, light, num_classes=classes)
    labels = [seed % classes for seed in range(16)]
    dr.save_grid(model.sample(16, (3, asked.side, asked.side), steps=16, heavy=4, label=labels), asked.out)


if __name__ == "__main__":
    main()
