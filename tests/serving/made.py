"""Models of tiny networks with random weights, and a page's server of one; how a test asks it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import torch
from runs.made import NET, ONE, TWO
from torch import Tensor, nn

from dualrate.data.condition_rows import Given
from dualrate.data.conditions import SuperResolution
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond, Context, Reuse
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import TwoConditional
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.methods.times import GivenTimes
from dualrate.networks.uvit import Level
from dualrate.serving.offer import Limits, Offer
from dualrate.training.config import FitConfig


def model(experiment: Experiment = TWO) -> Model:
    networks, denoiser = experiment.build()
    for parameter in networks.parameters():
        nn.init.normal_(parameter, std=0.1)
    networks.eval().requires_grad_(False)
    return Model(experiment.name, experiment, networks, denoiser, 7, "0123456789abcdef")


def conditional() -> Model:
    """Makes five images larger."""
    large = replace(NET, num_classes=0)
    networks = TwoConditional(large, replace(large, levels=(Level("conv", 8, 1),) * 2), (1, 4, 4))
    method = DenoisingConfig(GivenTimes(), label_dropout=0.0)
    larger = Experiment("larger", networks, method, FitConfig(1), condition=SuperResolution(2))
    return model(larger).with_given(Given(torch.rand(5, 1, 4, 4) * 2 - 1))


def student(serves: OnePlan | AtLeast) -> Model:
    two = isinstance(serves, OnePlan)
    method = MomentMatchingConfig("teacher", serves, rollout="full") if two else MomentMatchingConfig("teacher", serves)
    return model(replace(TWO if two else ONE, name="student", method=method))


@dataclass(frozen=True)
class Held:
    """A denoiser that waits for a gate before every heavy call, and then does what a test wants."""

    inner: Denoiser
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    then: list[Callable[[], object]] = field(default_factory=list)

    @property
    def reuse(self) -> Reuse:
        return self.inner.reuse

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        self.begun.set()
        assert self.gate.wait(30)
        for act in self.then:
            act()
        return self.inner.encode(z, t, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self.inner.denoise(z, t, context, cond)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> dict[str, Any]:
        assert self.headers.get_content_type() == "application/json"
        return json.loads(self.content)


@contextmanager
def held_offer(made: Model, limits: Limits) -> Iterator[tuple[Offer, Held]]:
    """An offer of a model whose heavy calls wait for a gate; it is open in the end."""
    gate = Held(made.denoiser)
    gate.gate.set()
    waiting = Offer(replace(made, denoiser=gate), limits=limits)
    gate.gate.clear()
    gate.begun.clear()
    try:
        yield waiting, gate
    finally:
        gate.gate.set()


def ask(url: str, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """body: bytes as they are, anything else as JSON."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, content, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def finished(url: str, name: str) -> dict[str, Any]:
    """The last report of a sampling."""
    end = time.monotonic() + 30
    while (report := ask(url, "GET", f"/api/samples/{name}").json)["status"] in ("waiting", "running"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return report
