"""Several processes that `torchrun` started and that share one pass: which of them this is, what they tell each other, how their totals become one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, RankError
from ..files import sha256
from ..totals import Key, Moments, Totals

T = TypeVar("T")

# A rank waits for the slowest, and for rank 0 while it tokenises and makes the table. One that dies is seen at once, by its closed connection.
TIMEOUT = timedelta(days=7)
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One of the processes of a run.

    rank: 0 to world - 1; 0 does what only one may do. world: how many there are. local: number on its machine, and of its GPU. neighbours: how many there are
    on its machine. restarts: how often torchrun has started them again.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    neighbours: int = 1
    restarts: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """This process as torchrun's environment has it; one alone without.

        Raises:
            InputError: WORLD_SIZE promises several processes, and the rest of what torchrun sets is not there.
        """
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls(restarts=restarts)
        if absent := [name for name in ENVIRONMENT if not os.environ.get(name)]:
            raise InputError(f"WORLD_SIZE says that this is one of several processes, and {absent[0]} is not set: start them with torchrun")
        rank, world, local = (int(os.environ[name]) for name in ENVIRONMENT[:3])
        return cls(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), restarts)

    def device(self, name: str) -> str:
        """What "cuda" stands for in this process: a GPU of its own.

        Raises:
            InputError: there are more processes than GPUs, or all are to share one.
        """
        if self.world == 1 or not name.startswith("cuda"):
            return name
        if name != "cuda":
            raise InputError(f"--device {name} would put all {self.world} processes on one GPU; give --device cuda, and each takes its own")
        if self.local >= torch.cuda.device_count():
            raise InputError(f"process {self.local} of this machine has no GPU: there are {torch.cuda.device_count()}; start no more processes than GPUs")
        return f"cuda:{self.local}"

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            with _told():
                dist.all_reduce(torch.zeros(1))  # not dist.barrier, which with GPUs blocks one and cannot be interrupted

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0, then on the others: it leaves files which the next call finds."""
        if self.rank:
            self.wait()
            return work()
        made = work()
        self.wait()
        return made

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0, on every rank; of the same shape and dtype on all."""
        if self.world > 1:
            host = tensor.cpu().contiguous()
            with _told():
                dist.broadcast(host, 0)
            return host.to(tensor.device)
        return tensor

    def agree(self, what: dict[str, Any]) -> None:
        """Refuse work on different things, which a machine with other files or options would do.

        Raises:
            InputError: this rank was told something else than rank 0.
        """
        if self.world > 1:
            mine = torch.tensor(list(bytes.fromhex(sha256(json.dumps(what, sort_keys=True, default=str)))))
            if not torch.equal(self.broadcast(mine.clone()), mine):
                raise InputError(
                    f"rank {self.rank} has other models, tokens, options or room (then say --storage) than rank 0: give all the same command and the same files"
                )


@contextmanager
def started(device: str) -> Iterator[Ranks]:
    """Connect the ranks while the block lasts: over gloo, and over nccl what lies on GPUs.

    Raises:
        RankError: another rank ended meanwhile.
    """
    ranks = Ranks.here()
    if ranks.world == 1:
        yield ranks
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(ranks.device("cuda"))
    with _told():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=_store(ranks), rank=ranks.rank, world_size=ranks.world, timeout=TIMEOUT)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _store(ranks: Ranks) -> dist.Store:
    """Where the ranks leave their addresses: torchrun's own store, under a name for every restart and every start since.

    torchrun may keep its store over a restart (torch 2.13 with --standalone does), and gloo then waits for addresses of processes that are dead.
    """
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world, timeout=TIMEOUT))
    place = f"pyuniversal/{ranks.restarts}"
    return dist.PrefixStore(f"{place}/{store.add(f'{place}/starts-{ranks.rank}', 1)}", store)


@contextmanager
def _told() -> Iterator[None]:
    """Say in words that a connection broke: the reason is what the rank at its other end said."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(f"another process of this run ended; what it said itself is the reason ({str(error).splitlines()[0]})") from error


@dataclass(frozen=True)
class Held:
    """Chunks that the sums of other ranks hold. observed: of every source. added: of every product."""

    observed: list[set[int]]
    added: dict[Key, set[int]]

    @classmethod
    def elsewhere(cls, totals: Totals, ranks: Ranks) -> Held:
        """What all other ranks hold.

        Raises:
            InputError: two ranks hold the same chunk.
        """
        mine = held(totals)
        everyone = mine.clone()
        if ranks.world > 1:
            with _told():
                dist.all_reduce(everyone)
        if (everyone > 1).any():
            chunk = int((everyone > 1).nonzero()[0, 1])
            raise InputError(f"two ranks hold chunk {chunk}: the folders rank-* beside the totals are not of one run; remove them, or --overwrite")
        sets = [set(row.nonzero().flatten().tolist()) for row in everyone - mine]
        n = len(totals.sources)
        return cls(sets[:n], dict(zip(totals.added, sets[n:], strict=True)))


def held(totals: Totals) -> Tensor:
    """1 where a sum holds a chunk, int32 [sources and products, chunks]."""
    sums = [*totals.observed, *totals.added.values()]
    held = torch.zeros(len(sums), totals.n_chunks, dtype=torch.int32)
    for row, chunks in zip(held, sums, strict=True):
        row[sorted(chunks)] = 1
    return held


def reduce_(totals: Totals, ranks: Ranks, *, settle: bool = False) -> None:
    """Add what all ranks have summed to the totals of rank 0, sum by sum; those of the others are spent afterwards.

    Counts and histograms are exact. Moments are merged in the order of ranks, so that they come out the same each time; products are added by the collective,
    in the precision of their totals. `settle` writes each product of rank 0 to its folder before the next one is added.

    Raises:
        InputError: two ranks hold the same chunk.
        RankError: another rank ended.
    """
    if ranks.world == 1:
        return
    others = Held.elsewhere(totals, ranks)
    if ranks.rank == 0:
        totals.hold(others.observed, others.added)
    with _told():
        for site, pre, histogram in zip(totals.site, totals.pre, totals.histogram, strict=True):
            _merge_in_order(site, ranks)
            _merge_in_order(pre, ranks)
            dist.reduce(histogram.counts, 0)
        for key in totals.product_keys():
            _reduce_product(totals, key)
            if ranks.rank:
                del totals.products[key]
            elif settle:
                totals.settle([key])


def _merge_in_order(moments: Moments, ranks: Ranks) -> None:
    """Merge the moments of ranks 1, 2, ... into those of rank 0."""
    state = moments.state.cpu().contiguous()
    if ranks.rank:
        dist.send(state, 0)
        return
    for rank in range(1, ranks.world):
        other = Moments(moments.neurons, sets=moments.sets)
        other.state = torch.empty_like(state)
        dist.recv(other.state, rank)
        moments.merge(other)


def _reduce_product(totals: Totals, key: Key) -> None:
    """Add one product of all ranks to that of rank 0."""
    product = totals.product(key)
    tokens = torch.tensor(product.tokens)
    for tensor in (product.total, *product.rounding, tokens):
        dist.reduce(tensor, 0)
    product.tokens = int(tokens)
    if product.tokens and product.centre is None:  # rank 0 itself had no chunk with a token to correlate
        product.centre = totals.centre_of(key)
