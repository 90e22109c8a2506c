"""Memory of an import, from listing to sealed tables: it has a unit at a time, however many states there are."""

import ctypes
import gc
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # the writers of published layouts

from preprocessed_zoos import write_dataset
from published_matrices import CONFIGS, write_small_cnn_zoo
from published_zoos import Published, config

import zoogen.build.imported_units as units
from zoogen.build.importing import import_zoo

WIDTH = 25_000  # numbers of a state: 0.1 MB
MODELS, SHORT, LONG = 8, 10, 60
PEAK = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not PEAK.exists(), reason="the peak of memory is read from Linux")


def states(epochs):
    """Model, epoch and tensors of every state."""
    for model in range(MODELS):
        for epoch in range(epochs):
            yield model, epoch, {"w": torch.randn(100, WIDTH // 100)}


def ray_tune(folder, epochs):
    for model, epoch, state in states(epochs):
        trial = folder / f"trial_{model}"
        (trial / f"checkpoint_{epoch:06d}").mkdir(parents=True)
        torch.save(state, trial / f"checkpoint_{epoch:06d}/checkpoints")
        (trial / "params.json").write_text("{}")
        with (trial / "result.json").open("a") as file:
            file.write(json.dumps({"training_iteration": epoch, "test_acc": 0.5}) + "\n")


def torch_folder(folder, epochs):
    rows = []
    for model, epoch, state in states(epochs):
        torch.save(state, folder / f"{model}_{epoch}.pt")
        rows.append({"file": f"{model}_{epoch}.pt", "model": model, "epoch": epoch, "test_acc": 0.5})
    pd.DataFrame(rows).to_csv(folder / "models.csv")


def safetensors(folder, epochs):
    for model, epoch, state in states(epochs):
        save_file(state, folder / f"model_{model}_epoch_{epoch}.safetensors")


def modelzoo_pt(folder, epochs):
    trial = {"t": (config(), {0: Published(config()).state_dict()}, {0: dict.fromkeys(("train_acc", "test_acc"), 0)})}
    trial["t"][2][0]["training_iteration"] = 0

    def replace(found):
        one = found["trainset"]
        listed = list(states(epochs))
        one.paths = [f"/zoo/trial_{model}" for model, _, _ in listed]
        one.epochs = [epoch for _, epoch, _ in listed]
        one.data_in = [{"w": state["w"]} for _, _, state in listed]
        one.data_out = one.properties = None

    write_dataset(folder / "dataset.pt", {"trainset": trial}, change=replace)


def small_cnn_zoo(folder, epochs):
    """As many numbers, in models of nine states each."""
    write_small_cnn_zoo(folder / "zoo", dict(list(CONFIGS.items())[:1]))
    matrix, table = np.load(folder / "zoo/weights.npy"), pd.read_csv(folder / "zoo/metrics.csv.gz", index_col=0)
    copies = epochs * MODELS * WIDTH // matrix.size
    np.save(folder / "zoo/weights.npy", np.tile(matrix, (copies, 1)))
    parts = [table.assign(modeldir=f"/somewhere/{copy}") for copy in range(copies)]
    pd.concat(parts).to_csv(folder / "zoo/metrics.csv.gz")


KINDS = {
    "ray-tune": (ray_tune, 1),
    "torch": (torch_folder, 1),
    "safetensors": (safetensors, 1),
    "modelzoo-pt": (modelzoo_pt, 1),
    "small-cnn-zoo": (small_cnn_zoo, 15),  # kB for each model, of which there are many here
}


def peak_of(call):
    """Bytes that the process had more of, at most, while ``call`` ran."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    PEAK.write_text("5")
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def memory(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_number_of_states(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(units, "BYTES", 4 << 20)
    write, per_model = KINDS[kind]
    peaks, sizes, models = [], [], []
    for number, epochs in enumerate((1, SHORT, LONG)):  # the first one loads libraries
        source = tmp_path / f"source{number}"
        source.mkdir()
        write(source, epochs)
        done = []
        out = tmp_path / f"zoo{number}"
        peaks.append(peak_of(lambda s=source, o=out, d=done: d.append(import_zoo(s, kind, o, lambda text: None))))
        sizes.append(4 * MODELS * epochs * WIDTH)
        models.append(done[0].models)
    grown, more = peaks[2] - peaks[1], sizes[2] - sizes[1]
    assert more == 40_000_000
    # Freed memory that the allocator keeps is some 10 MB, more or less, in a process that other tests ran in.
    assert grown < more / 2 + (models[2] - models[1]) * per_model * 1000
