"""A build killed before any of its steps that give a file or folder its name: the next build completes the zoo."""

import json
import multiprocessing
import os
import shutil
import signal
from itertools import count
from pathlib import Path

import build_runs
import pytest
from build_runs import SLOW_IMPORTS, build, leftovers, shards, write_blueprint

from zoogen.blueprint import load
from zoogen.plan import make_plan
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder

SMALL = {"training.epochs": 1, "training.optimizer.lr": 0.01, "seeds.range": [0, 1]}


def in_a_fork(function):
    """Its exit status; the caller has run no torch, so that forking is safe."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def dying_build(blueprint, zoo, step):
    """Builds until the ``step``-th mkdir, rename, replace or link, and dies before it."""
    left = [step]

    def dying(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    Path.mkdir, Path.replace, Path.rename = dying(Path.mkdir), dying(Path.replace), dying(Path.rename)
    os.rename, Path.hardlink_to = dying(os.rename), dying(Path.hardlink_to)
    return build(blueprint, zoo).exit_code


def kill_at_steps(folder, blueprint, first, stride, result):
    """Kill builds of ``blueprint`` at each ``stride``-th step, on copies of the zoo ``first`` (or none); complete them.

    Writes {step: [exit status, damage, exit code of the build after it, leftovers]} as JSON.
    """
    make_plan(load(Path(blueprint)))  # fills the registries once, not in every fork
    told = {}
    for step in count(stride, stride):
        zoo = Path(folder) / "zoo"
        shutil.rmtree(zoo, ignore_errors=True)
        if first:
            shutil.copytree(first, zoo)
        code = in_a_fork(lambda: dying_build(blueprint, zoo, step))  # noqa: B023 - called at once
        if code == 0:
            break
        damaged = [str(d) for d in verify(zoo).damaged] if (zoo / "zoo.json").exists() else []
        told[step] = [code, damaged, in_a_fork(lambda: build(blueprint, zoo).exit_code), leftovers(zoo)]  # noqa: B023
        shutil.move(zoo, Path(folder) / f"zoo-{step}")
    Path(result).write_text(json.dumps(told))


def check_deaths(folder, blueprint, first, stride, expected):
    """Every zoo that a killed build left is valid, and completed its shards are ``expected``."""
    context = multiprocessing.get_context("forkserver")  # a process that has run no torch
    context.set_forkserver_preload(SLOW_IMPORTS)
    folder.mkdir()
    arguments = (str(folder), str(blueprint), first and str(first), stride, str(folder / "result"))
    process = context.Process(target=build_runs.call, args=("test_every_death", "kill_at_steps", arguments))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    told = {int(step): found for step, found in json.loads((folder / "result").read_text()).items()}
    assert max(told) > 20
    wrong = {step: found for step, found in told.items() if found != [-signal.SIGKILL, [], 0, []]}
    assert not wrong, "\n".join(f"{step}: {found}" for step, found in wrong.items())
    for step in told:
        assert shards(folder / f"zoo-{step}") == expected, step
        assert verify(folder / f"zoo-{step}").complete, step


strides = pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])


@strides
def test_a_first_build_may_die_before_any_step(tmp_path, stride):
    blueprint = write_blueprint(tmp_path / "a.yaml", SMALL)
    build(blueprint, tmp_path / "undisturbed")
    check_deaths(tmp_path / "deaths", blueprint, None, stride, shards(tmp_path / "undisturbed"))


@strides
def test_an_extension_may_die_before_any_step(tmp_path, stride):
    first, extended = tmp_path / "first", tmp_path / "extended"
    build(write_blueprint(tmp_path / "a.yaml", SMALL), first)
    blueprint = write_blueprint(tmp_path / "b.yaml", SMALL | {"training.epochs": 2, "seeds.range": [0, 2]})
    shutil.copytree(first, extended)
    build(blueprint, extended)
    check_deaths(tmp_path / "deaths", blueprint, first, stride, shards(extended))


def test_a_first_build_killed_between_cohorts_and_plan_goes_on(tmp_path, monkeypatch):
    blueprint, zoo = write_blueprint(tmp_path / "a.yaml", SMALL), tmp_path / "zoo"

    def killed(self, table):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ZooFolder, "write_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            build(blueprint, zoo)
    assert sorted(p.name for p in zoo.glob("*.parquet")) == ["cohorts.parquet"]
    report = verify(zoo)
    assert not report.damaged
    assert not report.complete
    assert build(blueprint, zoo).exit_code == 0
    assert verify(zoo).complete
