"""kill -9 on Ray at random moments, and a stop; minutes, so marked slow. A short sweep is in ``test_faults.py``."""

import json
import signal
import time

import pytest
from build_runs import leftovers, shards, write_blueprint
from kill_sweep import CHANGES, RayBuild, draw, sweep

from zoogen.store.verify import verify

pytestmark = pytest.mark.slow


def test_builds_killed_at_20_random_moments_end_in_the_bytes_of_an_undisturbed_one(tmp_path):
    kills = draw(20, seed=0)
    sweep(tmp_path, kills, print)
    assert {kill.victim for kill in kills} == {"worker", "driver", "both"}
    assert {"train", "seal", "rename"} <= {point.phase for kill in kills for point in kill.met}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_on_ray_exits_3_within_seconds_and_goes_on_after_its_last_epochs(tmp_path, number):
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", CHANGES), tmp_path / "zoo"
    run = RayBuild(blueprint, zoo, tmp_path / "run")
    run.reach("train", 3)
    run.remember_family()
    asked = time.monotonic()
    run.process.send_signal(number)
    assert run.process.wait(60) == 3, run.output
    assert time.monotonic() - asked < 20
    assert "Traceback" not in run.output
    assert run.clear_away(20) == []
    report = verify(zoo)
    assert not report.damaged
    assert report.missing
    again, undisturbed = RayBuild(blueprint, zoo, tmp_path / "again"), tmp_path / "undisturbed"
    assert again.process.wait(600) == 0, again.output
    for path in (zoo / "logs").glob("*.jsonl"):
        lines = map(json.loads, path.read_text().splitlines())
        assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [0, 1, 2, 3, 4], path
    at_once = RayBuild(blueprint, undisturbed, tmp_path / "at-once")
    assert at_once.process.wait(600) == 0, at_once.output
    assert shards(zoo) == shards(undisturbed)
    assert leftovers(zoo) == []
