"""A build over a Ray cluster of two nodes, one of which dies in the middle."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_runs import build, leftovers, rows, shards, write_blueprint
from fault_points import read_points
from kill_sweep import CHANGES, SHARD_BYTES

from zoogen.store.verify import verify

sys.path.insert(0, str(Path(__file__).parent.parent / "schedule"))
from test_cluster import cluster, environment, family, kill

pytestmark = pytest.mark.slow

__all__ = ["cluster"]


@pytest.fixture(autouse=True)
def points(tmp_path, monkeypatch):
    """Where workers say what they do; set before the nodes start, whose workers inherit it."""
    folder = tmp_path / "points"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "faulty_site"))
    monkeypatch.setenv("ZOOGEN_TEST_POINTS", str(folder))
    monkeypatch.setenv("ZOOGEN_TEST_SLOW", "0.05")
    monkeypatch.setenv("ZOOGEN_TEST_SHARD_BYTES", str(SHARD_BYTES))
    return folder


def test_a_build_that_loses_a_node_stores_every_model_once(points, cluster, tmp_path, monkeypatch):
    address, token, second = cluster
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", CHANGES), tmp_path / "zoo"
    options = ["-o", str(zoo), "--address", address, "--trainer", "plain"]
    command = [sys.executable, "-m", "zoogen", "build", str(blueprint), *options]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment(token), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        while True:
            there = {p.pid for p in family(second)}
            found = read_points(points)
            on_second = [threads for pid, threads in found.items() if pid in there]
            training = [p for threads in on_second for p in threads if p.phase == "train"]
            # In the middle of a cohort, with both nodes at work.
            if len(found) > len(on_second) > 0 and any(p.count >= 3 for p in training):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        kill(second)
        assert not verify(zoo).complete
        assert process.wait(600) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    output = log.read_text()
    assert "was lost" in output
    assert "is tried again" in output
    assert "Traceback" not in output
    report = verify(zoo)
    assert report.complete, report
    assert (report.counts["planned"], report.counts["models"]) == (32, 32)
    assert len(rows(zoo)) == 32 * 5, "every state, each once"
    assert leftovers(zoo) == []
    monkeypatch.setattr("zoogen.plan.cohorts.SHARD_BYTES", SHARD_BYTES)
    build(blueprint, tmp_path / "undisturbed")
    assert shards(zoo) == shards(tmp_path / "undisturbed"), "the bytes depend on where a cohort was trained"
