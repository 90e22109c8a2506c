"""Work on Ray core actors: a local Ray of our own, or a cluster that somebody else started.

Ray places workers and tells when one is lost; it holds no state that matters. Nothing but this file imports Ray.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.schedule.actor import Actor
from zoogen.schedule.shape import Shape, how_many, in_words, shape_of
from zoogen.schedule.stop import StopFlag
from zoogen.schedule.work import Event, Failed, Failure, Message, Started, Stopped, WorkerFactory

# Ray prints lost workers to stdout, where our results go; we report them ourselves.
# The variable is read when Ray is imported, so it stands before the import.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")

import ray
import ray.cloudpickle
from ray.exceptions import OutOfMemoryError, RayError

POLL_SECONDS = 0.2
NODES_SECONDS = 2.0
log = logging.getLogger(__name__)

START_SECONDS = 180.0
PLACEMENT_SECONDS = 600.0
FAILED_STARTS = 3

# One token for all local Rays of this process: Ray caches the first one it sees.
_TOKEN = secrets.token_hex(32)
_TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class RayExecutor:
    """Workers are Ray actors, one process each, of the CPUs and GPUs that their items ask for.

    Args:
        address: ``host:port`` of a running cluster (or ``auto``); None starts a local Ray and ends it in ``close``.
            Where this process is connected to Ray already, that connection is used and left alone.
        cpus, gpus: What the local Ray may use; None: all this process may use.
        grace_seconds: How long a worker may take to stop before it is ended.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        gpus: int | None = None,
        grace_seconds: float = 60.0,
    ) -> None:
        if address is not None and "://" in address:
            raise UserError(f"--address {address}: Ray Client is not supported; run on a node and give host:port")
        self._connection = _Connection(address, cpus, gpus)
        self._grace = grace_seconds

    def start(self) -> None:
        """Start or connect to Ray in a thread; errors come from ``run``."""
        self._connection.open()

    def run(self, factory: WorkerFactory, todo: deque[Any], stop: StopFlag) -> Generator[Event, None, None]:
        """See ``Executor.run``. Items of one shape start in their order; each shape has workers of its own."""
        self.start()
        if not self._connection.wait(stop):
            return
        _take_signals_back()
        pool = _Pool(ray.cloudpickle.dumps(factory), grows=self._connection.address is not None, grace=self._grace)
        try:
            yield from pool.work(todo, stop)
        except RayError as error:
            raise EnvironmentFault(
                f"lost Ray: {_first_line(error)}\nwhat is stored is valid; start Ray again and run the same command"
            ) from error
        finally:
            pool.end()

    def close(self) -> None:
        """End the local Ray; a cluster is only disconnected from."""
        self._connection.close()

    def __enter__(self) -> RayExecutor:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _take_signals_back() -> None:
    """Undo Ray's own handler of SIGTERM, which prints a stack trace of this process before ours runs."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)


class _Connection:
    """This process's connection to Ray, held by one thread for as long as it is open.

    Not only to start in the background: Linux ends Ray's local processes when the *thread* that forked them ends
    (PR_SET_PDEATHSIG), and ``ray.init`` in the main thread would replace our SIGTERM handler.
    """

    def __init__(self, address: str | None, cpus: int | None, gpus: int | None) -> None:
        self.address = address
        self._cpus, self._gpus = cpus, gpus
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._ours = False
        self._folder: Path | None = None
        self._began = 0.0

    def open(self) -> None:
        if self._thread is None:
            self._began = time.monotonic()
            self._thread = threading.Thread(target=self._hold, name="zoogen-ray", daemon=True)
            self._thread.start()

    def wait(self, stop: StopFlag) -> bool:
        """Until connected; False when ``stop`` came first."""
        while not self._ready.wait(POLL_SECONDS):
            if stop():
                return False
            if time.monotonic() - self._began > START_SECONDS:
                raise EnvironmentFault(f"{self._what()} did not answer within {START_SECONDS:.0f} s")
        if self._error is not None:
            raise self._fault(self._error) from self._error
        return True

    def close(self) -> None:
        if self._thread is None:
            return
        self._ready.wait(max(0.0, self._began + START_SECONDS - time.monotonic()))
        if self._ours and ray.is_initialized():
            ray.shutdown()
        self._closing.set()
        self._thread.join(5)
        if self._folder is not None and self._error is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._thread, self._error, self._folder, self._ours = None, None, None, False
        self._ready.clear()
        self._closing.clear()

    def _hold(self) -> None:
        try:
            if not ray.is_initialized():
                self._ours = True
                self._connect() if self.address else self._start_local_patiently()
        except BaseException as error:  # Ray ends some failed connections with SystemExit
            self._error = error
        finally:
            self._ready.set()
        self._closing.wait()

    def _connect(self) -> None:
        host, _, port = str(self.address).rpartition(":")
        if host and port.isdigit():
            # Ray tries for two minutes where nobody listens; a plain connection tells at once.
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)

    def _start_local_patiently(self) -> None:
        try:
            self._start_local()
        except Exception as error:
            # On a machine that is busy Ray's own processes now and then miss each other's start by seconds.
            log.warning("the local Ray did not start (%s); trying once more", _first_line(error))
            ray.shutdown()
            self._start_local()

    def _start_local(self) -> None:
        cpus = self._cpus
        if cpus is None and hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
            cpus = len(os.sched_getaffinity(0))  # Slurm and taskset; Ray itself sees only containers' limits
        # A folder of our own, short (socket paths have 107 characters): the user's other Rays keep theirs.
        self._folder = Path(tempfile.mkdtemp(prefix="zoogen-ray-", dir="/tmp" if Path("/tmp").is_dir() else None))
        before = {name: os.environ.get(name) for name in _TOKEN_VARIABLES}
        if not any(before.values()):
            os.environ["RAY_AUTH_TOKEN"] = _TOKEN  # otherwise Ray writes one to the user's home
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=self._gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 2**20,  # items and messages only
                _temp_dir=str(self._folder),
            )
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

    def _what(self) -> str:
        return f"the Ray cluster at {self.address}" if self.address else "the local Ray"

    def _fault(self, error: BaseException) -> EnvironmentFault:
        told = f"{type(error).__name__}: {_first_line(error)}"
        if not self.address:
            return EnvironmentFault(
                f"cannot start a local Ray ({told})\nits logs are in {self._folder}; --executor serial runs without Ray"
            )
        return EnvironmentFault(
            f"cannot connect to {self._what()} ({told})\n"
            "run this command on a node of the cluster (`ray start --address=...` makes it one); a cluster with token "
            "authentication needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH in this environment"
        )


@dataclass
class _Slot:
    """One actor: starting (no name yet), idle, or busy with an item; ``awaits`` is what Ray will answer next."""

    actor: Any
    shape: Shape
    awaits: Any
    name: str = ""
    item: Any = None
    busy: bool = False


class _Pool:
    """The actors of one run: as many per shape as there is work and room for."""

    def __init__(self, factory: bytes, grows: bool, grace: float) -> None:
        self._factory = factory
        self._grows = grows
        self._grace = grace
        self._slots: list[_Slot] = []
        self._queues: dict[Shape, deque[Any]] = defaultdict(deque)
        self._nodes: list[Shape] = []
        self._nodes_at = -math.inf
        self._failed_starts = 0
        self._failed_start_at = -math.inf
        self._worked_at = time.monotonic()

    def work(self, todo: deque[Any], stop: StopFlag) -> Iterator[Event]:
        while not stop():
            while todo:
                item = todo.popleft()
                self._queues[shape_of(item.resources)].append(item)
            yield from self._assign()
            if not any(s.busy for s in self._slots) and not any(self._queues.values()):
                return
            self._release()
            self._grow()
            for slot in self._answered():
                yield from self._receive(slot)
        yield from self._wind_down(stop)

    def end(self) -> None:
        for slot in list(self._slots):
            self._drop(slot)

    def _assign(self) -> Iterator[Event]:
        for slot in self._slots:
            queue = self._queues[slot.shape]
            if slot.name and not slot.busy and queue:
                slot.item, slot.busy = queue.popleft(), True
                slot.awaits = slot.actor.run.options(num_returns="streaming").remote(slot.item)
                yield Started(slot.item, slot.name)

    def _release(self) -> None:
        """Give back what no waiting item needs: another shape, or another user, may."""
        for slot in list(self._slots):
            if not slot.busy and not self._queues[slot.shape]:
                self._drop(slot)

    def _grow(self) -> None:
        have = Counter(s.shape for s in self._slots)
        starting = Counter(s.shape for s in self._slots if not s.name)
        for shape, queue in self._queues.items():
            if not queue:
                continue
            room = self._room(shape)
            if not room and not self._grows:
                raise EnvironmentFault(
                    f"a work item asks for {in_words(shape)}, which the local Ray does not have ({self._offer()}); "
                    "lower `resources` in the blueprint, or use a cluster (--address)"
                )
            # One more than fits, where a cluster may grow: an autoscaler acts on actors that wait for room.
            room += 1 if self._grows else 0
            for _ in range(min(len(queue) - starting[shape], room - have[shape])):
                self._slots.append(self._new(shape))
        if any(s.name for s in self._slots):
            self._worked_at = time.monotonic()
        elif time.monotonic() - self._worked_at > PLACEMENT_SECONDS:
            asked = " or ".join(in_words(shape) for shape, queue in self._queues.items() if queue)
            raise EnvironmentFault(
                f"Ray started no worker within {PLACEMENT_SECONDS:.0f} s; asked for {asked} each, its nodes "
                f"have {self._offer()}; `ray status` tells who uses them"
            )

    def _new(self, shape: Shape) -> _Slot:
        cpus, gpus = shape
        remote: Any = ray.remote  # its type hints know no concurrency groups
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = remote(**options, concurrency_groups={"control": 1})(Actor).remote()
        return _Slot(actor, shape, actor.prepare.remote(self._factory, shape))

    def _room(self, shape: Shape) -> int:
        """How many actors of this shape all living nodes hold when nothing else runs on them."""
        if time.monotonic() - self._nodes_at > NODES_SECONDS:
            resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._nodes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]
            self._nodes_at = time.monotonic()
        return sum(how_many(shape, node) for node in self._nodes)

    def _offer(self) -> str:
        return "; ".join(in_words(node) for node in self._nodes) or "no nodes"

    def _answered(self) -> list[_Slot]:
        """Slots with something to receive; waits a little when there is none."""
        by_ref = {id(slot.awaits): slot for slot in self._slots if slot.awaits is not None}
        refs = [slot.awaits for slot in by_ref.values()]
        if not refs:
            time.sleep(POLL_SECONDS)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [by_ref[id(ref)] for ref in ready]

    def _receive(self, slot: _Slot) -> Iterator[Event]:
        if not slot.busy:
            self._started(slot)
            return
        try:
            event = ray.get(next(slot.awaits), timeout=60)
        except (RayError, StopIteration) as error:
            yield Failed(slot.item, _loss(slot.name, error))
            self._drop(slot)
            return
        yield replace(event, item=slot.item)
        if not isinstance(event, Message):
            slot.busy, slot.item, slot.awaits = False, None, None
            if isinstance(event, Failed) and slot.shape[1]:
                self._drop(slot)  # after an error a CUDA context may fail everything that follows

    def _started(self, slot: _Slot) -> None:
        try:
            answer = ray.get(slot.awaits, timeout=60)
        except RayError as error:
            self._drop(slot)
            self._count_failed_start(error)
            return
        if isinstance(answer, Failure):
            if answer.error is not None:
                raise answer.error
            raise EnvironmentFault(f"a worker cannot start: {answer.reason}\n{answer.details}")
        slot.name, slot.awaits = answer, None
        self._failed_starts = 0

    def _count_failed_start(self, error: Exception) -> None:
        # A node that dies takes several starting workers with it: count what comes together once.
        if time.monotonic() - self._failed_start_at > 5:
            self._failed_start_at = time.monotonic()
            self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise EnvironmentFault(f"workers end while they start, {FAILED_STARTS} times in a row: {error}")

    def _wind_down(self, stop: StopFlag) -> Iterator[Event]:
        """Ask the busy workers to stop, give them the grace time, end the rest."""
        for slot in list(self._slots):
            if slot.busy:
                slot.actor.stop.options(concurrency_group="control").remote(stop.reason)
            else:
                self._drop(slot)
        deadline = time.monotonic() + self._grace
        while any(s.busy for s in self._slots) and time.monotonic() < deadline:
            for slot in self._answered():
                for event in self._receive(slot):
                    lost = isinstance(event, Failed) and event.failure.kind == "lost"
                    # The same signal may have reached the worker's machine: that is no fault of the item.
                    yield Stopped(event.item, event.failure.reason) if lost else event  # type: ignore[union-attr]
        for slot in self._slots:
            if slot.busy:
                yield Stopped(slot.item, f"ended after {self._grace:.0f} s of grace")

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        if ray.is_initialized():
            ray.kill(slot.actor)


def _loss(name: str, error: Exception) -> Failure:
    memory = isinstance(error, OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error)
    if isinstance(error, RayError) and isinstance(getattr(error, "cause", None), Exception):
        return Failure("exception", f"worker {name}: {_first_line(error.cause)}", str(error))  # type: ignore[attr-defined]
    what = "was ended by Ray because its node ran out of memory" if memory else "was lost"
    return Failure("memory" if memory else "lost", f"worker {name} {what}", str(error) or "its stream ended early")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
