"""A cluster of two nodes on this machine, with a token and ports of its own; nodes are ended by process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).parent / "ray"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(token):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # Ray's default takes half a minute to miss a node.
    health = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
    return clean | health | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


def family(process):
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process):
    members = family(process)
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(members, timeout=10)


@contextmanager
def node(*arguments, token):
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [RAY, "start", *arguments, "--num-cpus=1", "--object-store-memory=100000000", "--block"],
            env=environment(token), stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield process
        finally:
            kill(process)


@pytest.fixture
def cluster():
    token, port = secrets.token_hex(32), free_port()
    folder = tempfile.mkdtemp(prefix="zg-", dir="/tmp")  # short: socket paths have 107 characters
    address = f"127.0.0.1:{port}"
    try:
        with ExitStack() as stack:
            # Two loopback addresses, so that the driver joins the head and not the node that is to die.
            stack.enter_context(
                node(
                    "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
                    f"--temp-dir={folder}", token=token,
                )
            )  # fmt: skip
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, "the head does not listen"
                    time.sleep(0.2)
            second = stack.enter_context(
                node(f"--address={address}", "--node-ip-address=127.0.0.2", f"--temp-dir={folder}", token=token)
            )
            yield address, token, second
    finally:
        shutil.rmtree(folder, ignore_errors=True)


DRIVER = """
import json, os, sys, time
from zoogen.core.errors import ZoogenError
from zoogen.core.records import Resources
from zoogen.schedule import Failed, Finished, Message, Retried, Started, run_all
from zoogen.schedule.ray import RayExecutor

class Item:
    resources = Resources()
    def __init__(self, number):
        self.number = number

class Steps:
    def run(self, item, should_stop):
        for step in range(20):
            time.sleep(0.05)
            yield step

items = [Item(i) for i in range(40)]
try:
    with RayExecutor(sys.argv[1]) as executor:
        for event in run_all(executor, Steps, items, lambda item: None):
            if not isinstance(event, Message):
                told = {"event": type(event).__name__, "number": event.item.number}
                print(json.dumps(told | {"worker": getattr(event, "worker", None)}), flush=True)
except ZoogenError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def driver(address, token):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, address], env=environment(token), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_work_of_a_node_that_dies_is_done_by_the_others(cluster):
    address, token, second = cluster
    process = driver(address, token)
    events, killed = [], False
    try:
        for line in process.stdout:
            events.append(json.loads(line))
            there = {p.pid for p in family(second)}
            starts = [int(e["worker"].rpartition(":")[2]) for e in events if e["event"] == "Started"]
            if not killed and sum(pid in there for pid in starts) >= 2:
                kill(second)
                killed = True
    finally:
        _, err = process.communicate()
    assert killed, "no work was done on the second node"
    assert (process.returncode, err) == (0, "")
    finished = [e["number"] for e in events if e["event"] == "Finished"]
    assert sorted(finished) == list(range(40)), "each once"
    assert any(e["event"] == "Retried" for e in events)
    assert not any(e["event"] == "Failed" for e in events)
    assert socket.create_connection(tuple(address.split(":")), timeout=5), "the cluster is not ours to stop"


def test_a_wrong_token_is_a_clear_fault(cluster):
    address, _, _ = cluster
    out, err = driver(address, "0" * 64).communicate(timeout=120)
    assert f"cannot connect to the Ray cluster at {address}" in out
    assert "RAY_AUTH_TOKEN" in out
    assert "Traceback" not in out + err
