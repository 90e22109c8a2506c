"""Try again, bisect, give up: one bad model costs itself, not its cohort and not the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from zoogen.core.errors import EnvironmentFault, Incomplete, IntegrityError, UserError
from zoogen.schedule.stop import StopFlag
from zoogen.schedule.work import Event, Executor, Failed, Failure, Finished, Retried, Split, Stopped, WorkerFactory

RETRIES = {"exception": 1, "memory": 2, "lost": 2}
"""How often an item is tried again after a failure of that kind. A worker may be lost, or memory be short, through its
neighbours' doing, so those are tried once more."""

SplitItem = Callable[[Any], tuple[Any, Any] | None]


def run_all(
    executor: Executor,
    factory: WorkerFactory,
    items: Iterable[Any],
    split: SplitItem,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Run every item to its end, yielding what happens.

    A failed item goes to the end of the queue and is tried again as often as ``RETRIES`` says; then ``split`` gives its
    two parts, which are items like any other; then it is reported with ``Failed``. So a worker's messages may come
    again for the same item. The item of a user's mistake is not tried again as it is, since the same would follow.

    Args:
        executor: Where to run; neither started nor closed here unless it has to be started.
        factory: Makes a worker, in the worker's process.
        items: In the order they are started.
        split: Parts of an item, or None when it cannot be divided. Parts of one item never run beside it.
        stop: When raised, nothing more is started and workers are asked to stop.

    Raises:
        EnvironmentFault, IntegrityError: raised by a worker; every item would meet the same, so the run ends here.
        Incomplete: after all else, when items were stopped or never started.
    """
    stop = stop or StopFlag()
    todo = deque(items)
    total = left = len(todo)
    failures: Counter[int] = Counter()
    kept: list[Any] = []  # an item's id() stays its own while the item lives
    stopped = ""
    with closing(executor.run(factory, todo, stop)) as events:
        for event in events:
            if isinstance(event, Finished):
                left -= 1
            elif isinstance(event, Stopped):
                stopped = stopped or event.reason
            elif isinstance(event, Failed):
                failure = event.failure
                if isinstance(failure.error, (EnvironmentFault, IntegrityError)):
                    raise failure.error
                kept.append(event.item)
                failures[id(event.item)] += 1
                if failures[id(event.item)] <= _retries(failure):
                    todo.append(event.item)
                    event = Retried(event.item, failure)
                elif parts := split(event.item):
                    todo.extend(parts)
                    left, total = left + 1, total + 1
                    event = Split(event.item, parts, failure)
                else:
                    left -= 1
            yield event
    if left:
        reason = stop.reason or stopped
        raise Incomplete(
            f"stopped{f' ({reason})' if reason else ''} with {left} of {total} work items not finished; "
            "run the same command again to go on"
        )


def _retries(failure: Failure) -> int:
    return 0 if isinstance(failure.error, UserError) else RETRIES[failure.kind]
