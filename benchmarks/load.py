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
from dualrate.serving import offer as queue
from dualrate.serving.app import serve
from dualrate.serving.offer import Job, Limits, Offer, data_uris

SERVERS = "alone", "requests", "engine"
PLANS = [(8, 2), (12, 3), (16, 4), (24, 6), (32, 8), (16, 8), (24, 4), (10, 5)]
SAMPLERS = "ancestral", "sde-dpm++2m"
GUIDANCE = 1.0, 1.5, 2.0


def requests(plans: int) -> list[dict[str, object]]:
    """Settings of clients in turn. plans: how many of PLANS they take."""
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
        if side.images is not None:  # it was drawn with another
            return
        with self.lock:
            batch = [job for job in self.waiting if job.settings == self.settings]
            self.waiting[:] = [job for job in self.waiting if job.settings != self.settings]
        seeds = [seed for job in batch for seed in job.seeds]
        images = np.concatenate(list(replace(side.drawer, batch_size=len(seeds)).batches(seeds)))
        for job in batch:
            job.sides[0].images = data_uris(images[: len(job.seeds)])
            images = images[len(job.seeds) :]

    @property
    def settings(self) -> str:
        (side,) = self.sides
        return repr((side.drawer.plan, side.drawer.sampler, side.drawer.label))


def serve_as(kind: str, run: Path, clients: int) -> None:
    """A server in this process, until it is told to end."""
    torch.set_num_threads(1)
    at_once = {"engine": clients}.get(kind, 1)
    if kind == "requests":
        queue.Job = Merged  # pyright: ignore[reportPrivateImportUsage]
    offer = Offer(dr.load(run), limits=Limits(at_once=at_once, waiting=2 * clients))
    serve(offer, "127.0.0.1", 0, lambda text: print(text, flush=True))


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @staticmethod
    def start(kind: str, run: Path, clients: int) -> Server:
        command = [sys.executable, "-m", "benchmarks.load", "--run", str(run), "--clients", str(clients)]
        process = subprocess.Popen([*command, "--serve", kind], stdout=subprocess.PIPE, text=True)
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

    def draw(self, fields: dict[str, object]) -> float:
        """Seconds until the images of a request are here."""
        place, start = urlsplit(self.url), time.perf_counter()
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
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
            taken.append(server.draw({**fields[(number + turn * clients) % len(fields)], "seed": next(seeds)}))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=child.ROOT / "weights/fashion-mnist-dual-25")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--plans", type=int, default=len(PLANS), help="1: all clients ask for the same plan")
    parser.add_argument("--seconds", type=float, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=SERVERS)
    options = parser.parse_args()
    if options.serve:
        serve_as(options.serve, options.run, options.clients)
        return
    fields = requests(options.plans)
    servers = {kind: Server.start(kind, options.run, options.clients) for kind in SERVERS}
    taken, walls, cpu = defaultdict(list), defaultdict(float), defaultdict(float)
    try:
        for server in servers.values():
            under_load(server, fields, 4, 2)
        before = {kind: server.megabytes for kind, server in servers.items()}
        for _ in range(options.rounds):
            for kind, server in servers.items():
                start, used = time.perf_counter(), server.cpu_seconds
                taken[kind] += under_load(server, fields, options.clients, options.seconds)
                walls[kind] += time.perf_counter() - start
                cpu[kind] += server.cpu_seconds - used
        for kind, server in servers.items():
            count, marks = len(taken[kind]), np.quantile(taken[kind], (0.5, 0.95, 0.99))
            print(
                f"{kind:8}: {count} requests, {count / walls[kind]:.2f} a second, "
                f"{count / cpu[kind]:.2f} a second of its CPU time; "
                f"p50, p95, p99 {', '.join(f'{mark:.2f}' for mark in marks)} s; "
                f"{before[kind]} MB before, {server.megabytes} MB after",
                flush=True,
            )
    finally:
        for server in servers.values():
            server.process.terminate()
            server.process.wait(30)


if __name__ == "__main__":
    main()
