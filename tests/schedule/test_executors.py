"""What every executor promises, tried on workers that count, fail, die and wait."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from zoogen.core.errors import EnvironmentFault, Incomplete, IntegrityError, UserError
from zoogen.core.records import Resources
from zoogen.schedule import (
    Failed,
    Finished,
    Message,
    Retried,
    SerialExecutor,
    Split,
    Started,
    StopFlag,
    Stopped,
    run_all,
)


@dataclass(frozen=True)
class Piece:
    numbers: tuple[int, ...]
    resources: Resources = field(default_factory=Resources)


def halves(piece):
    middle = len(piece.numbers) // 2
    return (Piece(piece.numbers[:middle]), Piece(piece.numbers[middle:])) if middle else None


class Squares:
    """Yields (pid, n, n * n) for each number; a number in ``errors`` raises its exception instead."""

    def __init__(self, errors=None):
        self.errors = errors or {}

    def run(self, item, should_stop):
        for n in item.numbers:
            if n in self.errors:
                raise self.errors[n]
            yield os.getpid(), n, n * n


class Deadly(Squares):
    """Kills its own process over an item with a 3, so many times; each death leaves a file."""

    def __init__(self, folder, times):
        super().__init__()
        self.folder, self.times = folder, times

    def run(self, item, should_stop):
        yield os.getpid(), -1, 1
        if 3 in item.numbers and (deaths := len(list(self.folder.iterdir()))) < self.times:
            (self.folder / f"{deaths}").touch()
            os.kill(os.getpid(), 9)
        yield from super().run(item, should_stop)


class Waits:
    """Says that it began, then waits to be stopped; a deaf one never looks."""

    def __init__(self, deaf=False):
        self.deaf = deaf

    def run(self, item, should_stop):
        yield "began"
        began = time.monotonic()
        while time.monotonic() - began < 60:
            time.sleep(0.02)
            if should_stop() and not self.deaf:
                raise Incomplete("at a boundary")


class Cannot:
    def __init__(self, error):
        raise error


@pytest.fixture(scope="module")
def ray_executor():
    from zoogen.schedule.ray import RayExecutor  # isort: skip (it sets what Ray reads on import)
    from ray import cloudpickle

    # Workers cannot import this file: send its classes along.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with RayExecutor(cpus=2, grace_seconds=3) as executor:
        yield executor
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(params=["serial", "ray"])
def executor(request):
    return SerialExecutor() if request.param == "serial" else request.getfixturevalue("ray_executor")


def only(kind, events):
    return [e for e in events if isinstance(e, kind)]


def test_every_item_runs_once_with_its_messages_in_order_on_few_processes(executor):
    pieces = [Piece((10 * i, 10 * i + 1, 10 * i + 2)) for i in range(20)]
    events = list(run_all(executor, Squares, pieces, halves))
    assert Counter(e.item for e in only(Started, events)) == Counter(pieces)
    assert Counter(e.item for e in only(Finished, events)) == Counter(pieces)
    for piece in pieces:
        said = [e.payload[1:] for e in only(Message, events) if e.item is piece]
        assert said == [(n, n * n) for n in piece.numbers]
    processes = {e.payload[0] for e in only(Message, events)}
    assert len(processes) <= 2, "workers are reused"
    assert {int(e.worker.rpartition(":")[2]) for e in only(Started, events)} == processes


def test_items_start_in_the_order_given(executor):
    pieces = [Piece((i,)) for i in range(10)]
    events = list(run_all(executor, Squares, pieces, halves))
    assert [e.item for e in only(Started, events)] == pieces


@pytest.mark.parametrize("error", [ValueError("bad luck"), UserError("no such thing"), MemoryError()], ids=str)
def test_a_failing_item_is_bisected_until_the_bad_element_stands_alone(executor, error):
    pieces = [Piece(tuple(range(8))), Piece((20, 21))]
    events = list(run_all(executor, partial(Squares, {5: error}), pieces, halves))
    assert [e.item.numbers for e in only(Failed, events)] == [(5,)]
    done = sorted(n for e in only(Finished, events) for n in e.item.numbers)
    assert done == [0, 1, 2, 3, 4, 6, 7, 20, 21]
    assert [e.item.numbers for e in only(Split, events)] == [tuple(range(8)), (4, 5, 6, 7), (4, 5)]
    failure = only(Failed, events)[0].failure
    assert str(error) in failure.reason
    assert "in run" in failure.details, "the worker's traceback"
    # Tried again at each of the four sizes, except where the same must follow.
    tries = {"ValueError": 1, "UserError": 0, "MemoryError": 2}[type(error).__name__]
    assert len(only(Retried, events)) == 4 * tries
    assert failure.kind == ("memory" if isinstance(error, MemoryError) else "exception")


@pytest.mark.parametrize("fault", [EnvironmentFault("disk is full"), IntegrityError("wrong checksum")], ids=str)
def test_what_every_item_would_meet_ends_the_run(executor, fault):
    with pytest.raises(type(fault), match=str(fault)):
        list(run_all(executor, partial(Squares, {5: fault}), [Piece((i,)) for i in range(50)], halves))


def test_a_worker_that_cannot_be_made_ends_the_run(executor):
    with pytest.raises(EnvironmentFault, match="no data"):
        list(run_all(executor, partial(Cannot, EnvironmentFault("no data")), [Piece((1,))], halves))


def test_a_raised_flag_stops_items_in_the_middle_and_starts_no_more(executor):
    stop = StopFlag()
    pieces = [Piece((i,)) for i in range(5)]
    seen = []

    def consume():
        for event in run_all(executor, Waits, pieces, halves, stop):
            seen.append(event)
            if isinstance(event, Message):
                threading.Timer(0.2, stop.request, ["SIGTERM"]).start()

    began = time.monotonic()
    with pytest.raises(Incomplete, match=r"SIGTERM.* 5 of 5 "):
        consume()
    assert time.monotonic() - began < 15  # includes the start of workers; the work itself would take 300 s
    assert {e.item for e in only(Stopped, seen)} == {e.item for e in only(Started, seen)}
    assert {e.reason for e in only(Stopped, seen)} == {"at a boundary"}
    assert len(only(Started, seen)) <= 2


def test_an_item_left_incomplete_by_its_worker_does_not_hold_up_the_others(executor):
    taken = Incomplete("another build works on it")
    events = run_all(executor, partial(Squares, {5: taken}), [Piece((4,)), Piece((5,)), Piece((6,))], halves)
    seen = [next(events) for _ in range(8)]  # three began, two messages, two finished, one stopped
    with pytest.raises(Incomplete, match=r"another build works on it.* 1 of 3 "):
        next(events)
    assert sorted(e.item.numbers for e in only(Finished, seen)) == [(4,), (6,)]
    assert [e.item.numbers for e in only(Stopped, seen)] == [(5,)]


def test_a_run_stopped_before_it_begins_starts_nothing(executor):
    stop = StopFlag()
    stop.request("SIGINT")
    with pytest.raises(Incomplete, match="1 of 1"):
        list(run_all(executor, Squares, [Piece((1,))], halves, stop))


def test_a_worker_that_does_not_stop_is_ended_after_the_grace_time(ray_executor):
    stop = StopFlag()
    events = run_all(ray_executor, partial(Waits, deaf=True), [Piece((1,))], halves, stop)
    while not isinstance(next(events), Message):
        pass
    stop.request("SIGTERM")
    began = time.monotonic()
    assert isinstance(next(events), Stopped)
    with pytest.raises(Incomplete):
        next(events)
    assert 2.5 < time.monotonic() - began < 10  # grace_seconds=3


def test_a_killed_worker_is_replaced_and_its_item_tried_again(ray_executor, tmp_path, capfd):
    pieces = [Piece((i, i + 1)) for i in range(0, 8, 2)]
    events = list(run_all(ray_executor, partial(Deadly, tmp_path, times=2), pieces, halves))
    assert {e.item for e in only(Finished, events)} == set(pieces)
    assert [(e.item.numbers, e.failure.kind) for e in only(Retried, events)] == [((2, 3), "lost")] * 2
    assert not only(Failed, events)
    out, err = capfd.readouterr()
    assert not out + err, "Ray's own words stay out of the terminal"


def test_an_item_that_kills_its_workers_is_given_up_after_three(ray_executor, tmp_path):
    events = list(run_all(ray_executor, partial(Deadly, tmp_path, times=99), [Piece((3,)), Piece((2,))], halves))
    assert [e.item.numbers for e in only(Failed, events)] == [(3,)]
    assert [e.item.numbers for e in only(Finished, events)] == [(2,)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_worker_whose_code_is_wrong_ends_the_run_with_its_traceback(ray_executor):
    with pytest.raises(EnvironmentFault, match=r"KeyError: 'typo'[\s\S]*in __init__"):
        list(run_all(ray_executor, partial(Cannot, KeyError("typo")), [Piece((1,))], halves))


def test_workers_have_the_cores_of_their_item_and_no_gpu(ray_executor):
    class Tells:
        def run(self, item, should_stop):
            yield os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]

    pieces = [Piece((i,), Resources(cpus=cpus)) for i, cpus in enumerate((0.5, 2.0, 1.0, 2.0))]
    events = list(run_all(ray_executor, Tells, pieces, halves))
    said = {e.item.numbers[0]: e.payload for e in only(Message, events)}
    assert said == {0: ("1", ""), 1: ("2", ""), 2: ("1", ""), 3: ("2", "")}


def test_an_item_too_big_for_the_machine_is_refused(ray_executor):
    with pytest.raises(EnvironmentFault, match=r"64 CPU, which the local Ray does not have \(2 CPU\)"):
        list(run_all(ray_executor, Squares, [Piece((1,), Resources(cpus=64.0))], halves))


def test_leaving_the_stream_ends_the_workers(ray_executor):
    events = run_all(ray_executor, Waits, [Piece((1,))], halves)
    pid = next(int(e.worker.rpartition(":")[2]) for e in events if isinstance(e, Started))
    events.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
