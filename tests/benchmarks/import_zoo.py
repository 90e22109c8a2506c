"""Import of a ray-tune zoo of 1,000 models x 51 epochs of cnn-s against ``torch.load`` of its files one by one.

The source is written first, in the layout of the zoos of 2022 and by ``torch.save``: random weights (they do not
compress), a ``result.json`` and ``progress.csv`` per trial, no optimizer states; as a folder, and as an uncompressed
zip of it. ``zoogen import`` is timed as a whole command, from start to exit. The loop is what one writes with torch:
every file loaded, its tensors flattened into a row of one matrix; its start-up (the import of torch) is not counted,
and it keeps neither losses nor accuracies. It runs as torch loads today (``weights_only``), and as it did when those
zoos were published and it ran whatever code a file holds. The ways take turns, ``--runs`` times, on a warm page cache.

    python tests/benchmarks/import_zoo.py [--models 1000] [--epochs 51] [--runs 3] [--folder DIR]

The folder (default: one that is removed at the end) needs 2.5 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine, table, told

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))

WAYS = {"zoogen import": None, "torch.load": True, "torch.load, weights_only=False": False}


def write_source(folder: Path, models: int, epochs: int) -> None:
    """Trials as Ray Tune leaves them; every number of every state differs."""
    import torch
    from published_zoos import Published, config

    generator = torch.Generator().manual_seed(0)
    for model in range(models):
        settings = config(seed=model, training__epochs_train=epochs - 1, optim__lr=10 ** -(2 + model % 3))
        trial = folder / f"NN_tune_trainable_{model:05d}"
        shapes = {name: tensor.shape for name, tensor in Published(settings).state_dict().items()}
        lines = []
        for epoch in range(epochs):
            place = trial / f"checkpoint_{epoch:06d}"
            place.mkdir(parents=True)
            torch.save({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, place / "checkpoints")
            names = ("train_loss", "train_acc", "validation_loss", "validation_acc", "test_loss", "test_acc")
            scores = dict(zip(names, torch.rand(len(names), generator=generator).tolist(), strict=True))
            told = {"training_iteration": epoch, "time_this_iter_s": 0.25, "trial_id": "abc", "hostname": "somewhere"}
            lines.append({**scores, **told, "config": settings})
        (trial / "params.json").write_text(json.dumps(settings))
        (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        header = [name for name in lines[0] if name != "config"]
        rows = [",".join(header), *(",".join(str(line[name]) for name in header) for line in lines)]
        (trial / "progress.csv").write_text("\n".join(rows) + "\n")


def write_zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder.parent))


def with_zoogen(source: Path, out: Path) -> tuple[float, int]:
    """Seconds of the whole command, and its largest resident set in bytes."""
    command = [sys.executable, "-m", "zoogen", "import", str(source), "--from", "ray-tune", "--out", str(out)]
    began = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - began
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return seconds, used.ru_maxrss << 10


def with_loop(source: Path, states: int, weights_only: bool) -> tuple[float, int]:
    """Seconds until all states are rows of a matrix, and the largest resident set in bytes; in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=loop, args=(source, states, weights_only, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def loop(source: Path, states: int, weights_only: bool, queue: Any) -> None:
    import torch

    began = time.perf_counter()
    matrix = None
    for row, file in enumerate(opened(source)):
        state = torch.load(file, map_location="cpu", weights_only=weights_only)
        flat = torch.cat([tensor.flatten() for tensor in state.values()])
        if matrix is None:
            matrix = torch.empty(states, len(flat))
        matrix[row] = flat
    seconds = time.perf_counter() - began
    assert matrix is not None
    assert row + 1 == states
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))


def opened(source: Path) -> Iterator[Any]:
    """Every checkpoint, as what ``torch.load`` takes."""
    if source.is_dir():
        yield from sorted(source.glob("*/checkpoint_*/checkpoints"))
        return
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith("/checkpoints"):
                with archive.open(name) as file:
                    yield file


def sizes(place: Path) -> tuple[int, int, int]:
    """How many files; bytes in them, and in blocks of the disk (folders included)."""
    found = [path.stat() for path in ([place, *place.rglob("*")] if place.is_dir() else [place])]
    files = [one.st_size for one in found if stat.S_ISREG(one.st_mode)]
    return len(files), sum(files), sum(one.st_blocks * 512 for one in found)


def check(zoo: Path, source: Path, states: int) -> int:
    """The zoo holds what ``torch.load`` gives (of 50 states), bit for bit; returns its parameters."""
    import torch

    import zoogen

    opened_zoo = zoogen.open(zoo)
    assert len(opened_zoo.checkpoints) == states
    keys = dict(zip(opened_zoo.models["source.key"], opened_zoo.models["model_id"], strict=True))
    paths = sorted(source.glob("*/checkpoint_*/checkpoints"))
    for path in paths[:: max(1, states // 50)]:
        epoch = int(path.parent.name.rpartition("_")[2])
        found = opened_zoo.state_dict(keys[path.parent.parent.name], epoch)
        told = torch.load(path, weights_only=True)
        assert all(torch.equal(own, theirs) for own, theirs in zip(found.values(), told.values(), strict=True))
    return sum(t.numel() for t in told.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=51)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="work here and keep the source for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.folder or Path(temporary), options.models, options.epochs, options.runs)


def measure(folder: Path, models: int, epochs: int, runs: int) -> None:
    name = f"zoo-{models}x{epochs}"
    source, archive, states = folder / name, folder / f"{name}.zip", models * epochs
    if not archive.exists():
        write_source(source, models, epochs)
        write_zip(source, folder / "part")
        (folder / "part").rename(archive)
    with tempfile.TemporaryDirectory(dir=folder) as outs:
        seconds: dict[tuple[str, str], list[float]] = {}
        memory: dict[tuple[str, str], list[float]] = {}
        for run in range(runs):
            for form, place in (("folder", source), ("zip", archive)):
                out = Path(outs) / f"{form}-{run}"
                for way, weights_only in WAYS.items():
                    if weights_only is None:
                        took, peak = with_zoogen(place, out)
                        if out.name != "folder-0":
                            shutil.rmtree(out)
                    else:
                        took, peak = with_loop(place, states, weights_only)
                    seconds.setdefault((form, way), []).append(took)
                    memory.setdefault((form, way), []).append(peak)
                    print(f"{form}, {way}: {took:.1f} s", file=sys.stderr, flush=True)
        report(source, archive, Path(outs) / "folder-0", states, seconds, memory)


def report(
    source: Path, archive: Path, zoo: Path, states: int, seconds: dict[Any, list[float]], memory: dict[Any, list[float]]
) -> None:
    raw = check(zoo, source, states) * states * 4
    size = sum(path.stat().st_size for path in source.glob("*/checkpoint_*/checkpoints"))
    rows = []
    for (form, way), took in seconds.items():
        base = seconds[form, "torch.load"]
        ratios = [b / t for b, t in zip(base, took, strict=True)]
        rates, speeds = [states / t for t in took], [size / t / 1e6 for t in took]
        peak = f"{max(memory[form, way]) / 1e6:,.0f}"
        rows.append([form, way, told(rates), told(speeds), told(ratios, "{:.1f}".format), peak])
    print(table(["source", "way", "states/s", "MB/s of checkpoints", "over `torch.load`", "peak memory, MB"], rows))
    rows = []
    _, whole, on_disk = sizes(source)
    for what, place in (("source, folder", source), ("source, zip", archive), ("zoo", zoo)):
        count, apparent, blocks = sizes(place)
        over = [f"{apparent / raw:.2f}", f"{apparent / whole:.2f}", f"{blocks / on_disk:.2f}"]
        rows.append([what, f"{count:,}", f"{apparent / 1e6:,.0f}", f"{blocks / 1e6:,.0f}", *over])
    print(table(["", "files", "MB", "MB on disk", "over raw float32", "over the folder", "on disk"], rows))
    print(json.dumps({"states": states, "raw_bytes": raw, "checkpoint_bytes": size, "machine": machine()}))


if __name__ == "__main__":
    main()
