"""Networks of your own, trained and drawn by the commands: here two convolutional ones, heavy and light.

    export PYTHONPATH=.     # so that Python finds examples/
    dualrate train examples.own_networks:recipe --networks.width 64 --out runs/own
    dualrate --import examples.own_networks sample runs/own --steps 16 --heavy 4 --out out/own
    dualrate --import examples.own_networks compare runs/own:16/4 runs/own:8/8 --out out/own.html

A run's file names this one, and files run no code: `--import` says that you trust it.
"""

from dataclasses import dataclass

from torch import nn

import dualrate as dr
from dualrate.denoisers.denoiser import DualRate
from dualrate.experiment.network_configs import NetworksConfig


class ConvNet(nn.Module):
    """(z, log_snr, label) -> activations (B, width, H, W). Of a context `added` joins these, `more` their embedding."""

    def __init__(self, channels, width, blocks, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.noise = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)  # the last one is the null class, of guidance
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))

    def forward(self, z, log_snr, label, added=0, more=0):
        emb = (self.noise(log_snr[:, None] / 10) + self.label(label) + more)[..., None, None]
        h = self.stem(z) + added
        for block in self.blocks:
            h = h + block(nn.functional.silu(h + emb))
        return h


class Encoder(nn.Module):
    """(z_tau, log_snr_tau, label) -> (features of the context, v or None where it does not denoise by itself)."""

    def __init__(self, channels, width, light, classes):
        super().__init__()
        self.net, self.out = ConvNet(channels, width, 6, classes), nn.Conv2d(width, light, 1, bias=False)

    def forward(self, z, log_snr, label):
        return (self.out(self.net(z, log_snr, label)),), None


class Light(nn.Module):
    """(z_t, log_snr_t, label, features, log_snr_tau, present) -> v. present: False in rows without a context."""

    def __init__(self, channels, width, classes):
        super().__init__()
        self.net, self.out = ConvNet(channels, width, 2, classes), nn.Conv2d(width, channels, 3, padding=1)
        self.tau = nn.Linear(1, width)

    def forward(self, z, log_snr, label, features=(), log_snr_tau=None, present=None):
        if log_snr_tau is None:
            return self.out(self.net(z, log_snr, label))
        tau = self.tau(log_snr_tau[:, None] / 10) * (1 if present is None else present[:, None])
        return self.out(self.net(z, log_snr, label, features[0], tau))


@dataclass(frozen=True)
class ConvNetworks(NetworksConfig):
    channels: int = 1
    side: int = 28
    classes: int = 10
    width: int = 64
    shape = property(lambda self: (self.channels, self.side, self.side))  # of an image
    num_classes = property(lambda self: self.classes)

    def build(self, process):
        encoder = Encoder(self.channels, self.width, self.width // 4, self.classes)
        light = Light(self.channels, self.width // 4, self.classes)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)


def recipe() -> dr.Experiment:
    return dr.Experiment("own", ConvNetworks(), dr.DenoisingConfig(dr.TimeSampler((4, 16))), dr.FitConfig(2000, 64))
