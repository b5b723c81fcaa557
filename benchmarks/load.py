"""Requests a second of `dualrate serve` on loopback, and how long one takes: `python -m benchmarks.load`.

Clients that each ask for the next images as soon as they have the last, with plans of their own. Three servers, in turn
for some seconds each and again, so that whatever else runs on the machine falls on all of them alike:

    alone     one request at a time
    requests  those with the same settings that wait are one batch, as servers do that batch whole requests
    engine    serving/engine.py: calls of all requests in batches
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import torch

import dualrate as dr
from benchmarks import child
from dualrate.data.condition_rows import Given
from dualrate.data.conditions import SuperResolution
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import TwoConditional, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import GivenTimes
from dualrate.serving import jobs as queue
from dualrate.serving.app import serve
from dualrate.serving.jobs import Job
from dualrate.serving.offer import Limits, Offer

SERVERS = "alone", "requests", "engine"
PLANS = [(8, 2), (12, 3), (16, 4), (24, 6), (32, 8), (16, 8), (24, 4), (10, 5)]
SAMPLERS = "ancestral", "sde-dpm++2m"
GUIDANCE = 1.0, 1.5, 2.0


def conditional(of: dr.Model, conditions: int) -> dr.Model:
    """A model of random weights that makes images larger, of so many conditions by turns. Its light network is that of
    another, its heavy one three times as wide and as deep, and called once.
    """
    networks = of.experiment.networks
    assert isinstance(networks, TwoNetworks)
    light: Any = networks.light  # a dataclass, as every configuration is
    light = replace(light, num_classes=0)
    wide = [replace(level, channels=3 * level.channels, blocks=3 * level.blocks) for level in light.levels]
    networks = TwoConditional(replace(light, levels=tuple(wide)), light, (1, 7, 7))
    method = DenoisingConfig(GivenTimes(), label_dropout=0.0)
    larger = Experiment("larger", networks, method, of.experiment.fit, condition=SuperResolution(4))
    torch.manual_seed(0)
    built, denoiser = larger.build()
    for weight in built.eval().requires_grad_(False).parameters():
        torch.nn.init.normal_(weight, std=0.02)
    model = dr.Model("larger", larger, built, denoiser, 0, "random")
    return model.with_given(Given(torch.rand(conditions, 1, 7, 7) * 2 - 1))


def requests(plans: int, conditions: int = 0) -> list[dict[str, object]]:
    """Settings of clients in turn. plans: how many of PLANS they take."""
    if conditions:
        settings = itertools.product(SAMPLERS, PLANS[:plans])
        return [{"steps": n, "sampler": name, "images": 1, "beside": "nothing"} for name, (n, _) in settings]
    mixed = itertools.product(GUIDANCE, SAMPLERS, PLANS[:plans]) if plans > 1 else [(1.0, "ancestral", PLANS[2])]
    fields = [{"steps": n, "heavy": h, "sampler": name, "guidance": w} for w, name, (n, h) in mixed]
    order = np.random.default_rng(0).permutation(len(fields))
    return [{**fields[i], "images": 1, "beside": "nothing"} for i in order]


class Merged(Job):
    """A request that is drawn with all those of the same settings that wait: a thread draws one batch at a time."""

    lock = threading.Lock()
    waiting: ClassVar[list[Merged]] = []

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        with self.lock:
            self.waiting.append(self)

    def draw(self) -> None:
        (side,) = self.sides
        if side.answer is not None:  # it was drawn with another
            return
        with self.lock:
            batch = [job for job in self.waiting if job.settings == self.settings]
            self.waiting[:] = [job for job in self.waiting if job.settings != self.settings]
        seeds = [seed for job in batch for seed in job.sides[0].work.seeds]
        images = np.concatenate(list(replace(side.drawer, batch_size=len(seeds)).batches(seeds)))
        for job in batch:
            count = len(job.sides[0].work.seeds)
            job.sides[0].finish(images[:count])
            images = images[count:]

    @property
    def settings(self) -> str:
        (side,) = self.sides
        return repr((side.drawer.plan, side.drawer.sampler, side.drawer.label))


def serve_as(kind: str, run: Path, clients: int, conditions: int) -> None:
    """A server in this process, until it is told to end."""
    torch.set_num_threads(1)
    at_once = {"engine": clients}.get(kind, 1)
    if kind == "requests":
        queue.Job = Merged  # pyright: ignore[reportPrivateImportUsage]
    model = dr.load(run)
    model = conditional(model, conditions) if conditions else model
    offer = Offer(model, limits=Limits(at_once=at_once, waiting=2 * clients))
    serve(offer, "127.0.0.1", 0, lambda text: print(text, flush=True))


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @staticmethod
    def start(kind: str, options: argparse.Namespace) -> Server:
        fields = {name: getattr(options, name) for name in ("run", "clients", "conditions")} | {"serve": kind}
        words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.load", *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise OSError(f"the server {kind} does not begin")
        return Server(process, match[0])

    @property
    def megabytes(self) -> int:
        """Memory that it has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 2**20

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def draw(self, fields: dict[str, object], client: int = 0) -> float:
        """Seconds until the images of a request are here. client: who asks, as a proxy would name it"""
        place, start = urlsplit(self.url), time.perf_counter()
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        headers["X-Forwarded-For"] = f"192.0.2.{client}"
        connection.request("POST", "/api/samples", json.dumps(fields), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200 or '"status": "done"' not in text:
            raise OSError(f"{answer.status}: {text[:200]}")
        return time.perf_counter() - start


def under_load(server: Server, fields: list[dict[str, object]], clients: int, seconds: float) -> list[float]:
    """Seconds of each request of clients that ask for `seconds`; the last ones are waited for."""
    end, taken, seeds = time.perf_counter() + seconds, [], itertools.count()

    def client(number: int) -> None:
        for turn in itertools.count():
            if time.perf_counter() > end:
                return
            wanted = {**fields[(number + turn * clients) % len(fields)], "seed": next(seeds)}
            taken.append(server.draw(wanted, number))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return taken


def spread(values: Any) -> str:
    """Median of the rounds, and their range."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=child.ROOT / "weights/fashion-mnist-dual-25")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--plans", type=int, default=len(PLANS), help="1: all clients ask for the same plan")
    parser.add_argument("--conditions", type=int, default=0, help="of a conditional model, which the clients share")
    parser.add_argument("--seconds", type=float, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS)
    parser.add_argument("--serve", choices=SERVERS)
    options = parser.parse_args()
    if options.serve:
        serve_as(options.serve, options.run, options.clients, options.conditions)
        return
    fields = requests(options.plans, options.conditions)
    servers = {kind: Server.start(kind, options) for kind in options.servers}
    taken, rates, per_cpu = defaultdict(list), defaultdict(list), defaultdict(list)
    try:
        for server in servers.values():
            under_load(server, fields, 4, 2)
        before = {kind: server.megabytes for kind, server in servers.items()}
        for _ in range(options.rounds):
            for kind, server in servers.items():
                start, used = time.perf_counter(), server.cpu_seconds
                drawn = under_load(server, fields, options.clients, options.seconds)
                rates[kind].append(len(drawn) / (time.perf_counter() - start))
                per_cpu[kind].append(len(drawn) / (server.cpu_seconds - used))
                taken[kind] += drawn
                rate = f"{per_cpu[kind][-1]:.2f} a second of its CPU time"
                print(f"{kind:8}: {len(taken[kind])} requests so far, {rate}, {server.megabytes} MB", flush=True)
        for kind, server in servers.items():
            marks = np.quantile(taken[kind], (0.5, 0.95, 0.99))
            print(
                f"{kind:8}: {len(taken[kind])} requests, {spread(rates[kind])} a second, "
                f"{spread(per_cpu[kind])} a second of its CPU time, "
                f"the last one {spread(np.divide(per_cpu[options.servers[-1]], per_cpu[kind]))} times as many; "
                f"p50, p95, p99 {', '.join(f'{mark:.2f}' for mark in marks)} s; "
                f"{before[kind]} MB before, {server.megabytes} MB after",
                flush=True,
            )
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait(120)


if __name__ == "__main__":
    main()
