"""Imports in this process, and what to compare of the zoos they leave."""

from __future__ import annotations

import hashlib
import json

import torch

from zoogen.build.importing import import_zoo


def take(source, out, kind="ray-tune"):
    return import_zoo(source, kind, out, lambda text: None)


def digests(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and ".work" not in p.parts)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def skips(out):
    lines = (out / "logs/import.jsonl").read_text().splitlines()
    return [(told["key"], told["epoch"], told["reason"]) for told in map(json.loads, lines)]


def by_key(zoo):
    return {row["source.key"]: row for _, row in zoo.models.iterrows()}


def poison(source, name, epoch, value):
    (file,) = source.glob(f"{name}/checkpoint_*{epoch}/checkpoints")
    state = torch.load(file, weights_only=True)
    next(iter(state.values())).view(-1)[0] = value
    torch.save(state, file)
