"""A team: processes that were launched together share out the work of a command that does not train.

Process 0 leads: it runs the command, whose `Mapper` (system/workers.py) is the team. The others follow: they do the
blocks that they are handed, and send back what came out, until they are dismissed. So one process alone reads what may
be damaged, writes, scores and reports, and what a team left is gone on with by any number of processes.

    leader                                followers
    a port, told by torch's store         connect, and show the word that was told with it
    a job, packed                   ->    unpack it with the first block: models are loaded from their directories
    blocks, two in hand at most     ->    do them, each with one thread of the CPU
                                    <-    items of blocks, or an error
    an exit code                    ->    end

The leader does blocks meanwhile. Nobody has a second block in hand unless one is left for everybody else. Whoever dies,
alone or with a machine, is noticed by the connection: then all end, and what had come is written.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch
from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

from dualrate.system.launch import LOST, STOPPED, Lost, device_of_process, is_alone, is_launched, timeout
from dualrate.system.progress import ECHO, Interrupts
from dualrate.system.workers import Block, Result, leading, packed, portable, unpacked

PLACE = "dualrate/team"  # in torch's store
WORD = 32  # bytes, random
ITEM, DONE, FAILED, LEAVES = "item", "done", "failed", "leaves"  # what a follower says: of a block; of itself, stopped
END = object()
FAREWELL = 10.0  # seconds in which followers leave, in which somebody who connects shows the word
AHEAD = 4  # messages of a follower that wait for the leader
SILENCE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}  # of a lost machine


def run_shared(run: Callable[[], None]) -> None:
    """Run a command; where several processes were launched together, one of them runs it and the others follow.

    A signal of `stops` becomes a KeyboardInterrupt. Raises Lost if another process is lost; SystemExit in a follower.
    """
    if not is_launched():
        run()
        return
    store = None if is_alone() else _store()  # before: it waits where Python handles no signal
    with Interrupts(echoes=True, raises=True):
        if store is None:
            run()
        elif os.environ["RANK"] == "0":
            with _gathered(store) as team, leading(team):
                run()
        else:
            follow(_joined(store))


class Team:
    """The processes as a `TeamMapper`. device: kind of device that blocks are done on

    followers: a connection to each, by rank
    """

    def __init__(self, followers: Mapping[Connection, int]) -> None:
        self.size, self.device = len(followers) + 1, "cpu"
        self._ranks, self._in_hand = dict(followers), dict.fromkeys(followers, 0)
        self._came: queue.Queue[tuple[Connection, bytes | None]] = queue.Queue(AHEAD * self.size)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __call__(self, job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
        """See `Mapper`. Raises Lost after whatever result is there."""
        results: dict[int, Result] = {}
        due = 0
        try:
            for number, result in self._items(partial(_once, job), blocks):
                results[number] = result
                while due in results:
                    yield blocks[due], results.pop(due)
                    due += 1
        except Lost:
            yield from ((blocks[number], results[number]) for number in sorted(results))
            raise

    def stream(self, job: Callable[[Block], Iterator[Result]], blocks: Sequence[Block], /) -> Iterator[Result]:
        """See `TeamMapper`. Raises Lost."""
        return (item for _, item in self._items(job, blocks))

    def dismiss(self, code: int) -> None:
        """End the followers with an exit code, and see them leave."""
        for follower in self._in_hand:
            with suppress(OSError):
                follower.send_bytes(packed((code, b"")))
        end = time.monotonic() + FAREWELL
        while self._reader.is_alive() and time.monotonic() < end:
            with suppress(queue.Empty):  # what they still sent
                self._came.get(timeout=0.01)

    def _items(self, job: Callable[[Block], Iterator[Result]], blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Numbers of blocks, each with something that the job yields of it."""
        while any(self._in_hand.values()):  # of a call that was broken off
            for _ in self._arrived(waits=True):
                pass
        for follower in self._in_hand:
            self._send(follower, self.device, job)
        left, begun, mine, items = deque(range(len(blocks))), set[int](), -1, iter(())

        def is_due(count: int) -> bool:  # so that results do not pile up behind a block that takes long
            return len(left) >= count and left[0] < min(begun, default=left[0]) + AHEAD * self.size

        while left or begun:
            for follower in self._in_hand:
                while is_due((1, self.size, len(blocks) + 1)[self._in_hand[follower]]):
                    begun.add(number := left.popleft())
                    self._send(follower, number, blocks[number])
                    self._in_hand[follower] += 1
            if mine < 0 and is_due(1):
                begun.add(mine := left.popleft())
                items = iter(job(blocks[mine]))
            if mine >= 0:
                with _one_thread():
                    item: Any = next(items, END)
                if item is not END:
                    yield mine, item
                else:
                    begun.remove(mine)
                    mine = -1
            for word, number, value in self._arrived(waits=mine < 0 and not is_due(1)):
                if word == ITEM:
                    yield number, value
                elif word == DONE:
                    begun.remove(number)
                else:
                    raise value

    def _arrived(self, *, waits: bool) -> Iterator[tuple[str, int, Any]]:
        """Words of followers on their blocks that have come. waits: for one at least, where any is due

        Raises Lost after whatever has come from the others.
        """
        lost = None
        while any(self._in_hand.values()):
            try:
                follower, content = self._came.get(waits)
            except queue.Empty:
                break
            waits = False
            if content is None:
                lost = follower
                time.sleep(ECHO)  # a signal that reached all of them comes here meanwhile
                continue
            word, number, value = unpacked(content)
            if word == LEAVES:
                raise KeyboardInterrupt
            self._in_hand[follower] -= word != ITEM
            yield word, number, value
        if lost is not None:
            raise self._lost(lost)

    def _send(self, follower: Connection, of: object, content: object) -> None:
        try:
            follower.send_bytes(packed((of, packed(content))))
        except OSError as error:
            raise self._lost(follower) from error

    def _lost(self, follower: Connection) -> Lost:
        return Lost(
            f"process {self._ranks[follower]} of {self.size} was lost. What had come is kept: the same command goes "
            "on, with any number of processes"
        )

    def _read(self) -> None:
        """Take what comes, so that no follower waits for a block of the leader's to end."""
        followers: list[Any] = list(self._in_hand)
        while followers:
            for follower in wait(followers):
                assert isinstance(follower, Connection)
                content = None
                try:
                    content = follower.recv_bytes()
                except (OSError, EOFError):
                    followers.remove(follower)
                self._came.put((follower, content))


def follow(leader: Connection) -> NoReturn:
    """Do what the leader hands out, until it ends this process; or ends by itself once the leader is lost."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the leader shows the same ones
    words: queue.SimpleQueue[tuple[object, bytes]] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                of, content = unpacked(leader.recv_bytes())
            except Exception:  # its end, or what it was saying when a signal came
                rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
                print(f"dualrate: process {rank} of {size} lost process 0, which leads", file=sys.stderr, flush=True)
                os._exit(LOST)
            if isinstance(of, int) and not content:
                os._exit(of)  # it holds nothing that would be lost
            words.put((of, content))

    def say(*message: object) -> None:
        nonlocal says
        content, says = packed(message), True
        with suppress(OSError):  # which `read` notices too
            leader.send_bytes(content)
        says = False

    threading.Thread(target=read, daemon=True).start()
    job, device, packed_job, says = None, "", b"", False
    try:
        while True:
            of, content = words.get()
            if isinstance(of, str):
                job, device, packed_job = None, of, content
                continue
            try:
                if job is None and device == "cuda":
                    torch.cuda.set_device(device_of_process(torch.device(device)))
                job = job or unpacked(packed_job)
                for item in job(unpacked(content)):
                    say(ITEM, of, item)
                say(DONE, of, None)
            except Exception as error:
                say(FAILED, of, portable(error))
    except KeyboardInterrupt:
        if not says:
            say(LEAVES, None, None)
        raise SystemExit(STOPPED) from None


def _once(job: Callable[[Block], Result], block: Block) -> Iterator[Result]:
    yield job(block)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _store() -> Any:
    """Torch's store of the processes that were launched together. Raises Lost where they do not come."""
    rank, size, patience = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout())
    try:
        return next(rendezvous("env://", rank, size, timeout=patience))[0]
    except DistError as error:
        raise Lost(f"process {rank} of {size} does not reach the others: {str(error).splitlines()[0]}") from error


@contextmanager
def _gathered(store: Any) -> Iterator[Team]:
    """The team, once all followers have come; it is dismissed at the end. Raises Lost where one does not come."""
    word, followers, size = secrets.token_bytes(WORD), {}, int(os.environ["WORLD_SIZE"])
    here = "127.0.0.1" if os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1") else ""
    both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if not here and socket.has_dualstack_ipv6() else {}
    with socket.create_server((here, 0), backlog=size, **both) as server:
        end = time.monotonic() + timeout()
        store.set(PLACE, f"{server.getsockname()[1]} {word.hex()}")
        while len(followers) < size - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                opened, _ = server.accept()
            except TimeoutError:
                raise Lost(f"{len(followers) + 1} of {size} processes came in {timeout():g} seconds") from None
            shown = _shown(opened)
            if len(shown) == WORD + 4 and secrets.compare_digest(shown[:WORD], word):
                followers[_connection(opened)] = int.from_bytes(shown[WORD:])
            else:
                opened.close()
    team, code = Team(followers), 0
    try:
        yield team
    except KeyboardInterrupt:
        code = STOPPED
        raise
    except Lost:
        code = LOST
        raise
    finally:
        team.dismiss(code)


def _shown(opened: socket.socket) -> bytes:
    """The word and the rank that somebody who connects shows, in parts too, within FAREWELL seconds in all."""
    shown, end = b"", time.monotonic() + FAREWELL
    with suppress(OSError):
        while len(shown) < WORD + 4:
            opened.settimeout(max(0.01, end - time.monotonic()))
            part = opened.recv(WORD + 4 - len(shown))
            if not part or time.monotonic() > end:
                break
            shown += part
    return shown


def _joined(store: Any) -> Connection:
    """The connection of a follower to its leader. Raises Lost where it does not answer."""
    host, rank = os.environ["MASTER_ADDR"], int(os.environ["RANK"])
    host = "127.0.0.1" if host == "localhost" else host
    try:
        port, word = store.get(PLACE).decode().split()
        opened = socket.create_connection((host, int(port)), timeout())
        opened.sendall(bytes.fromhex(word) + rank.to_bytes(4))
    except (OSError, DistError) as error:
        raise Lost(f"process {rank} does not reach process 0 at {host}: {str(error).splitlines()[0]}") from error
    return _connection(opened)


def _connection(opened: socket.socket) -> Connection:
    """The socket as a connection that ends where the other machine vanishes."""
    opened.settimeout(None)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(opened.detach())
