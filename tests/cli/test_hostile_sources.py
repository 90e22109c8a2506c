"""Sources made to harm, through ``zoogen import``: an exit code and a message, never a traceback or a wait."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from published_zoos import config, write_trial

from zoogen.cli.terminal import printable

ESCAPE = "\x1b]0;pwned\x07\x1b[2J"


def state():
    data = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, data)
    return data.getvalue()


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def trials(folder, **changes):
    for seed in (1, 2):
        write_trial(folder / f"t{seed}", config(seed=seed) | changes, epochs=1)
    return folder


def table(folder, text, name="models.csv"):
    folder.mkdir()
    (folder / "a.pt").write_bytes(state())
    (folder / name).write_text(text)
    return folder


def safetensors(folder, card="", **files):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "o/m").mkdir(parents=True)
    (folder / "o/m/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (folder / "o/m/README.md").write_text(card, errors="surrogatepass")
    for name, text in files.items():
        (folder / f"o/m/{name}.json").write_text(text)
    return folder


def pipe_as_table(path):
    table(path, "file\na.pt\n")
    (path / "models.csv").unlink()
    os.mkfifo(path / "models.csv")
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def link_to_a_device(path):
    (safetensors(path) / "o/m/config.json").symlink_to("/dev/zero")
    return path


def keys_of_one_hash(path):
    table(path, "file\na.pt\n")
    keys = b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(60_000))
    with zipfile.ZipFile(io.BytesIO(state())) as file:
        members = {m.filename: file.read(m) for m in file.infolist()}
    zip_of(path / "a.pt", {n: b"\x80\x02}(" + keys + b"u." if n.endswith(".pkl") else d for n, d in members.items()})
    return path


def lists_without_end(path):
    trials(path)
    for place in path.glob("*/params.json"):
        place.write_text('{"a": [' + ",".join(["[]"] * 300_000) + "]}")
    return path


def tar_with_a_link(path):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("z/t/params.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    return path


def spoiled_results(path):
    lines = ['{"training_iteration": 0, "test_acc": 1e999}', '{"a\\u001b[2J": 1, "training_iteration": 1}', "{", "[[["]
    (trials(path) / "t1/result.json").write_text("\n".join([*lines, '{"training_iteration": ' + "9" * 400 + "}"]))
    return path


BIDI = "z/a\u202etxt\u2028b"
SOURCES = {
    # The source, its kind, and the exit code.
    "an escape as a file": (lambda p: table(p, f"file\n{ESCAPE}.pt\n"), "torch", 2),
    "an escape as a setting": (lambda p: table(p, f"file,note\na.pt,{ESCAPE}\n"), "torch", 0),
    "a column of NUL": (lambda p: table(p, "file,note\na.pt,a\0b\n"), "torch", 0),
    "a number of 5,000 digits": (lambda p: table(p, f'[{{"file": "a.pt", "a": {"9" * 5000}}}]', "m.json"), "torch", 4),
    "a pipe as a table": (pipe_as_table, "torch", 4),
    "keys of one hash": (keys_of_one_hash, "torch", 2),
    "settings of an escape": (lambda p: trials(p, **{"model::type": ESCAPE, "x": ESCAPE}), "ray-tune", 0),
    "settings without end": (lists_without_end, "ray-tune", 0),
    "spoiled results": (spoiled_results, "ray-tune", 0),
    "a name that turns": (
        lambda p: zip_of(p, {f"{BIDI}/checkpoint_0/checkpoints": b"", f"{BIDI}/params.json": "{}"}),
        "ray-tune",
        2,
    ),
    "another compression": (
        lambda p: zip_of(p, {"z/checkpoint_0/checkpoints": state()}, compression=zipfile.ZIP_LZMA),
        "ray-tune",
        4,
    ),
    "a link in a tar": (tar_with_a_link, None, 4),
    "a link to a device": (link_to_a_device, "safetensors", 4),
    "a bomb of aliases": (
        lambda p: safetensors(p, f'---\na: &a "{"x" * 30_000}"\nb: [{",".join(["*a"] * 9000)}]\n---\n'),
        "safetensors",
        0,
    ),
    "a deep card": (lambda p: safetensors(p, "---\na: " + "[" * 60_000 + "\n---\n"), "safetensors", 0),
    "a card of halves": (lambda p: safetensors(p, '---\nlicense: "\\ud800\\x1b[2J"\n---\n'), "safetensors", 0),
    "a model of an escape": (
        lambda p: safetensors(p, config=json.dumps({"architectures": [ESCAPE], "model_type": "\ud800"})),
        "safetensors",
        0,
    ),
    "a pipe": (pipe, None, 2),
    "nothing in a file": (lambda p: (p.touch(), p)[1], None, 2),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_hostile_source_is_told_and_what_came_of_it_is_sound(zoogen, tmp_path, name):
    make, kind, expected = SOURCES[name]
    chosen = ["--from", kind] if kind else []
    code, out, err = zoogen("import", make(tmp_path / "source"), *chosen, "--out", tmp_path / "zoo")
    assert code == expected, err
    assert "mistake of zoogen" not in err
    assert printable(out + err) == out + err
    if code:
        assert not (tmp_path / "zoo").exists()
        return
    assert zoogen("verify", tmp_path / "zoo")[0] == 0
    for command in ("info", "status"):
        code, out, err = zoogen(command, tmp_path / "zoo")
        assert (code, printable(out + err)) == (0, out + err)
