"""What a plan counts, against the published decomposition and against plain arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zoogen.blueprint import load, loads
from zoogen.plan import make_plan

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"


def test_the_2022_dataset_is_27_zoos_50360_models_and_2585360_states():
    """specs: Schuerholt et al. 2022 (arXiv:2209.14764), decomposition of the abstract's numbers."""
    plans = {p.stem: make_plan(load(p)).summary for p in sorted((BLUEPRINTS / "model-zoos-2022").glob("*.yaml"))}
    assert len(plans) == 27
    assert sum(s.models for s in plans.values()) == 50_360
    assert sum(s.states for s in plans.values()) == 2_585_360
    resnets = [s for name, s in plans.items() if "resnet" in name]
    assert sorted(s.states for s in resnets) == [50_000, 60_000, 60_000]
    # Raw float32 of the CNN zoos is about 41 GB, about 7.9 G optimizer steps.
    cnns = [s for name, s in plans.items() if "resnet" not in name]
    assert sum(s.weight_bytes for s in cnns) == pytest.approx(41.1e9, rel=0.01)
    assert sum(s.optimizer_steps for s in cnns) == pytest.approx(7.9e9, rel=0.01)


def test_steps_states_and_bytes_are_products():
    text = """
zoo: small
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [8]}
training: {epochs: 5, batch_size: 100, optimizer: {name: adam, lr: 0.1}}
seeds: {range: [0, 7]}
checkpoints: {every: 2}
"""
    summary = make_plan(loads(text)).summary
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    states = 7 * 4  # epochs 0, 2, 4 and the last, 5
    assert (summary.models, summary.states) == (7, states)
    assert summary.optimizer_steps == 7 * 5 * 13  # 1,257 training samples
    assert summary.weight_bytes == states * parameters * 4
    assert summary.optimizer_bytes == 7 * 2 * parameters * 4  # Adam's two moments at the last checkpoint


def test_a_million_cells_fit_in_two_gigabytes():
    """In a process of its own: the peak memory of this one is that of all tests before."""
    text = """
zoo: million
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [8], dropout: {grid: [0.0, 0.1, 0.2, 0.3, 0.4]}}
training:
  epochs: 1
  batch_size: 32
  optimizer: {name: sgd, lr: {grid: [0.1, 0.2, 0.3, 0.4, 0.5]}, weight_decay: {grid: [0.0, 0.1, 0.2, 0.3]}}
seeds: {range: [0, 10000]}
"""
    program = (
        "import sys, resource\n"
        "from zoogen.blueprint import loads\n"
        "from zoogen.plan import make_plan\n"
        "summary = make_plan(loads(sys.stdin.read())).summary\n"
        "print(summary.models, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True).stdout
    models, peak = map(int, out.split())
    assert models == 1_000_000
    assert peak * (1 if sys.platform == "darwin" else 1024) < 2 * 2**30
