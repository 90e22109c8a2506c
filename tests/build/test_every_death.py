"""A build killed before any of its steps that give a file or folder its name: the next build completes the zoo."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import build_runs
from build_runs import SLOW_IMPORTS, build, leftovers, shards, write_blueprint

from zoogen.store.verify import verify

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
    """Builds until the ``step``-th mkdir, rename or replace, and dies before it."""
    left = [step]

    def dying(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    Path.mkdir, Path.replace, Path.rename = dying(Path.mkdir), dying(Path.replace), dying(Path.rename)
    os.rename = dying(os.rename)
    return build(blueprint, zoo).exit_code


def kill_at_every_step(folder, blueprint, first, result):
    """Kill builds of ``blueprint`` at step 1, 2, ... on copies of the zoo ``first`` (or none) and complete them."""
    told = []
    step = 0
    while True:
        step += 1
        zoo = Path(folder) / "zoo"
        shutil.rmtree(zoo, ignore_errors=True)
        if first:
            shutil.copytree(first, zoo)
        code = in_a_fork(lambda: dying_build(blueprint, zoo, step))  # noqa: B023 - called at once
        if code == 0:
            break
        damaged = [str(d) for d in verify(zoo).damaged] if (zoo / "zoo.json").exists() else []
        told.append([code, damaged, in_a_fork(lambda: build(blueprint, zoo).exit_code), leftovers(zoo)])  # noqa: B023
        shutil.move(zoo, Path(folder) / f"zoo-{step}")
    Path(result).write_text(json.dumps(told))


def deaths(folder, blueprint, first=None):
    """What ``kill_at_every_step`` tells, from a process that may fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    folder.mkdir()
    arguments = (str(folder), str(blueprint), first and str(first), str(folder / "result"))
    process = context.Process(target=build_runs.call, args=("test_every_death", "kill_at_every_step", arguments))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return json.loads((folder / "result").read_text())


def check(told, folder, expected):
    assert len(told) > 15
    wrong = {
        step: (code, damaged, completed, left)
        for step, (code, damaged, completed, left) in enumerate(told, 1)
        if code != -signal.SIGKILL or damaged or completed != 0 or left
    }
    assert not wrong, "\n".join(f"{step}: {told}" for step, told in wrong.items())
    for step in range(1, len(told) + 1):
        assert shards(folder / f"zoo-{step}") == expected, step
        assert verify(folder / f"zoo-{step}").complete, step


def test_a_first_build_may_die_before_any_step(tmp_path):
    blueprint = write_blueprint(tmp_path / "a.yaml", SMALL)
    build(blueprint, tmp_path / "undisturbed")
    check(deaths(tmp_path / "deaths", blueprint), tmp_path / "deaths", shards(tmp_path / "undisturbed"))


def test_an_extension_may_die_before_any_step(tmp_path):
    first, extended = tmp_path / "first", tmp_path / "extended"
    build(write_blueprint(tmp_path / "a.yaml", SMALL), first)
    blueprint = write_blueprint(tmp_path / "b.yaml", SMALL | {"training.epochs": 2, "seeds.range": [0, 2]})
    shutil.copytree(first, extended)
    build(blueprint, extended)
    check(deaths(tmp_path / "deaths", blueprint, first), tmp_path / "deaths", shards(extended))
