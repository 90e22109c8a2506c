"""Whole processes: what importing loads, what signals do, what a killed driver leaves, what an address may be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.records import Resources
from zoogen.schedule import StopFlag, run_all, stop_on_signals
from zoogen.schedule.shape import how_many, shape_of


def test_importing_the_scheduler_loads_neither_ray_nor_torch():
    code = "import sys, zoogen.schedule, zoogen.schedule.serial; print({'ray', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_the_flag_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    flag = StopFlag()
    with stop_on_signals(flag):
        os.kill(os.getpid(), number)
        assert flag()
    assert flag.reason == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_the_block_at_once():
    flag = StopFlag()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(flag):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # asks again, politely
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def block():
        with stop_on_signals(StopFlag()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [before]


def test_ray_takes_fractions_up_to_one_and_whole_numbers_above():
    assert shape_of(Resources(cpus=0.5, gpus=0.25)) == (0.5, 0.25)
    assert shape_of(Resources(cpus=2.5, gpus=1.2)) == (3.0, 2.0)
    with pytest.raises(UserError, match=r"resources\.cpus is 0"):
        shape_of(Resources(cpus=0))


def test_a_node_holds_as_many_workers_as_its_scarcest_resource_allows():
    assert how_many((0.1, 0.0), (1.0, 0.0)) == 10
    assert how_many((1.0, 0.25), (16.0, 2.0)) == 8
    assert how_many((4.0, 0.25), (16.0, 2.0)) == 4
    assert how_many((1.0, 1.0), (16.0, 0.0)) == 0


def test_an_address_where_nobody_listens_is_a_clear_fault():
    from zoogen.schedule.ray import RayExecutor

    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with RayExecutor(address) as executor, pytest.raises(EnvironmentFault, match=f"cluster at {address}"):
            list(run_all(executor, dict, [object()], lambda item: None))


def test_ray_client_is_refused():
    from zoogen.schedule.ray import RayExecutor

    with pytest.raises(UserError, match="Ray Client"):
        RayExecutor("ray://somewhere:10001")


DRIVER = """
import pathlib, sys, time
from zoogen.core.records import Resources
from zoogen.schedule import run_all, StopFlag, Started, stop_on_signals
from zoogen.schedule.ray import RayExecutor
from zoogen.core.errors import Incomplete

class Item:
    resources = Resources()

class Sleeps:
    def run(self, item, should_stop):
        while not should_stop():
            time.sleep(0.05)
            yield "alive"
        raise Incomplete("stopped")

stop = StopFlag()
with stop_on_signals(stop), RayExecutor(cpus=1) as executor:
    try:
        for event in run_all(executor, Sleeps, [Item()], lambda item: None, stop):
            if isinstance(event, Started):
                print(event.worker.rpartition(":")[2], executor._connection._folder, flush=True)
    except Incomplete as error:
        print(error, flush=True)
        code = error.exit_code
sys.exit(code)
"""


@pytest.fixture
def driver(tmp_path):
    """A driver in a session of its own whose home is empty, with a worker in the middle of an item."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip
    pid, folder = process.stdout.readline().split()
    family = [psutil.Process(int(pid)), *psutil.Process(process.pid).children(recursive=True)]
    yield process, family, Path(folder)
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def ended(processes, seconds):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_ctrl_c_reaches_driver_and_workers_and_leaves_nothing_behind(driver, tmp_path):
    process, family, folder = driver
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (3, "")
    assert "stopped (SIGINT) with 1 of 1 work items not finished" in out
    assert ended(family, 10)
    assert not folder.exists()
    assert not list(tmp_path.iterdir()), "nothing is written to the user's home"


@pytest.mark.slow
def test_a_killed_driver_takes_its_local_ray_and_workers_along(driver):
    process, family, _ = driver
    # Ray's two agents, which run no work of ours, need a minute to notice.
    family = [member for member in family if not member.name().endswith("Agent")]
    assert any(member.name() == "ray::Actor" for member in family)
    process.kill()
    assert ended(family, 20)
