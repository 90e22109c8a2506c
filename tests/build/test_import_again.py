"""An import that is run a second time: after a kill, over another source, or over one that has changed since."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from import_runs import by_key, digests, poison, take
from published_repositories import convolutions, write_model

import zoogen
import zoogen.build.imported_units as units
from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder


def test_a_second_run_changes_nothing(trials, tmp_path):
    out = take(trials[0], tmp_path / "out").path
    before = digests(out)
    again = take(trials[0], out)
    assert (again.models, again.states) == (6, 18)
    assert digests(out) == before
    shutil.rmtree(out / ".work")  # what a resume needs, and nothing else
    take(trials[0], out)
    assert digests(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
import zoogen.build.imported_units as units
from zoogen.build import importing
units.BYTES = 40_000
at, source, out = int(sys.argv[1]), *map(Path, sys.argv[2:])
calls = 0
def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
units.seal_shard = counted(units.seal_shard)
importing.write_file = counted(importing.write_file)
importing.rebuild_tables = counted(importing.rebuild_tables)
importing.import_zoo(source, "ray-tune", out, print)
"""


def test_an_import_killed_anywhere_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch):
    poison(source, "NN_tune_trainable_a_2", 2, torch.nan)
    monkeypatch.setattr(units, "BYTES", 40_000)
    expected = digests(take(source, tmp_path / "uncut" / "zoo").path)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    for at in (2, 9):
        out = tmp_path / f"cut{at}" / "zoo"
        done = subprocess.run([sys.executable, script, str(at), source, out], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not verify(out).damaged
        take(source, out)
        assert digests(out) == expected
        assert verify(out).complete


def test_two_imports_at_once_are_refused(source, tmp_path):
    out = tmp_path / "out"
    code = f"import fcntl, os, time\nos.makedirs({str(out / '.work')!r})\nf = open({str(out / '.work/lock')!r}, 'w')\n"
    code += "fcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is being built by"):
            take(source, out)
    finally:
        holder.kill()
        holder.wait()


def test_the_folder_must_be_free_or_hold_the_same_import(source, tmp_path, small_zoo):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(UserError, match="holds other things"):
        take(source, tmp_path / "other")
    with pytest.raises(UserError, match="was not imported"):
        take(source, shutil.copytree(small_zoo, tmp_path / "small"))
    with pytest.raises(UserError, match="is a file"):
        take(source, tmp_path / "other/file")
    out = take(source, tmp_path / "out").path
    before = digests(out)
    shutil.rmtree(source / "NN_tune_trainable_a_1")
    with pytest.raises(UserError, match="not those of 'source'"):
        take(source, out)
    assert digests(out) == before


def test_a_shard_that_was_damaged_and_moved_aside_is_made_anew_by_the_same_command(source, tmp_path):
    done = take(source, tmp_path / "out")
    before = digests(done.path)
    weights = next(done.path.glob("shards/*/weights.h5"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (shard_id,) = verify(done.path).damaged_shards()
    ZooFolder(done.path).remove_damaged(shard_id)
    again = take(source, tmp_path / "out")
    assert (again.models, again.states) == (done.models, done.states)
    assert verify(done.path).complete
    assert {name: d for name, d in digests(done.path).items() if name.startswith("shards")} == {
        name: d for name, d in before.items() if name.startswith("shards")
    }


def test_other_weights_under_the_same_names_are_other_models(source, tmp_path):
    done = take(source, tmp_path / "out")
    place = next(source.glob("NN_tune_trainable_a_1/checkpoint_*0/checkpoints"))
    state = torch.load(place, weights_only=True)
    torch.save({name: tensor.flip(0) for name, tensor in state.items()}, place)
    assert place.stat().st_size == next(source.glob("NN_tune_trainable_a_1/checkpoint_*1/checkpoints")).stat().st_size
    with pytest.raises(UserError, match="whose models, checkpoints or records are not those of"):
        take(source, tmp_path / "out")
    other = take(source, tmp_path / "other")
    ids = [{row["source.key"]: row["model_id"] for row in by_key(zoogen.open(z.path)).values()} for z in (done, other)]
    assert {key for key in ids[0] if ids[0][key] != ids[1][key]} == {"NN_tune_trainable_a_1"}


@pytest.mark.parametrize("name", ["result.json", "progress.csv", "params.json"])
def test_records_that_were_edited_are_noticed(source, tmp_path, name):
    out = take(source, tmp_path / "out").path
    assert take(source, out).models == 6
    place = source / "NN_tune_trainable_a_1" / name
    place.write_text(place.read_text() + "\n")
    before = digests(out)
    with pytest.raises(UserError, match="whose models, checkpoints or records are not those of"):
        take(source, out)
    assert digests(out) == before


def test_a_zoo_within_its_source_is_none_of_its_records(source):
    assert take(source, source / "zoos/own").models == 6
    assert take(source, source / "zoos/own").models == 6


def test_a_table_that_was_edited_is_noticed(tmp_path):
    (tmp_path / "source").mkdir()
    for epoch in (0, 1):
        torch.save({"w": torch.full((2,), float(epoch))}, tmp_path / f"source/{epoch}.pt")
    table = tmp_path / "source/models.csv"
    table.write_text("file,model,epoch,test_acc\n0.pt,m,0,0.5\n1.pt,m,1,0.75\n")
    out = take(tmp_path / "source", tmp_path / "out", "torch").path
    assert take(tmp_path / "source", out, "torch").states == 2
    table.write_text(table.read_text().replace("0.75", "0.875"))
    with pytest.raises(UserError, match="whose models, checkpoints or records are not those of"):
        take(tmp_path / "source", out, "torch")


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["records"][0].__setitem__(4, "../../outside"),
        lambda told: told["records"][0].__setitem__(0, "../../outside"),
        lambda told: told["records"][0].__setitem__(2, [1]),
        lambda told: told["records"][0].__setitem__(3, [None]),
        lambda told: told["records"].append([]),
        lambda told: told["skipped"].append([1, "x", 2]),
        lambda told: told["diverged"].update(x="y"),
    ],
)
def test_what_an_earlier_run_noted_is_checked_before_it_is_gone_on_with(source, tmp_path, change):
    out = tmp_path / "out"
    take(source, out)
    before = digests(out)
    outside = shutil.copytree(next((out / "shards").iterdir()), tmp_path / "outside")
    note = next(p for p in (out / ".work/import").iterdir() if p.name != "kin.json")
    told = json.loads(note.read_text())
    change(told)
    note.write_text(json.dumps(told))
    take(source, out)
    assert verify(out).complete
    assert {n: d for n, d in digests(out).items() if n.startswith("shards")} == {
        n: d for n, d in before.items() if n.startswith("shards")
    }
    assert outside.exists()


def test_an_import_into_a_zoo_whose_manifest_is_spoiled_blames_the_zoo(source, tmp_path):
    out = tmp_path / "out"
    take(source, out)
    manifest = json.loads((out / "zoo.json").read_text())
    (out / "zoo.json").write_text(json.dumps(manifest | {"tasks": 3}))
    with pytest.raises(IntegrityError, match=r"out/zoo\.json: 'tasks' is missing or no dict"):
        take(source, out)


@pytest.mark.parametrize("told", [[1, 2, 3], ["x", 0.5, ["y"]], ["x", 0.5, "nobody"], ["x", "y", "a/a"], []], ids=str)
def test_relatives_that_an_earlier_run_noted_are_checked(tmp_path, told):
    for name in "ab":
        write_model(tmp_path / f"hub/{name}/{name}", convolutions(1), {"model_type": "cnn"})
    out = tmp_path / "out"
    take(tmp_path / "hub", out, "safetensors")
    place = out / ".work/import/kin.json"
    before, plan = place.read_bytes(), ZooFolder(out).read_plan()
    noted = json.loads(before)
    noted["kin"][next(iter(noted["kin"]))] = told
    place.write_text(json.dumps(noted))
    take(tmp_path / "hub", out, "safetensors")
    assert place.read_bytes() == before
    assert ZooFolder(out).read_plan().equals(plan)
