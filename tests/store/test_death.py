"""A process may die at any instruction, and the disk may be full: what is on disk is a valid smaller zoo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from store_samples import Sample

from zoogen.core.errors import EnvironmentFault
from zoogen.store import stacks
from zoogen.store.check import problems_of
from zoogen.store.zoo import ZooFolder

# Seals one shard in a child process per step; child n kills itself (SIGKILL) before its n-th change of the file system.
_DYING = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow.parquet
import zoogen.store.stacks
from zoogen.store.zoo import ZooFolder
from store_samples import Sample

def arm(n):
    left = [n]
    def dying(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for owner, names in (
        (os, ["fsync", "rename"]), (Path, ["mkdir", "replace"]), (zoogen.store.stacks._Sink, ["write"]),
        (pyarrow.parquet.ParquetWriter, ["write_table", "close"]),
    ):
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))

sample = Sample.make(Path(sys.argv[1]) / "first")
for n in range(1, 100):
    shutil.copytree(sample.path, sample.path.with_name(f"zoo-{n}"))
    pid = os.fork()
    if pid == 0:
        sample.folder = ZooFolder(sample.path.with_name(f"zoo-{n}"))
        arm(n)
        sample.seal(2)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        print(n)
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def test_a_kill_at_any_step_of_sealing_leaves_no_half_shard_and_the_next_build_seals_the_same_bytes(sample, tmp_path):
    expected = sample.seal(2)
    done = subprocess.run(
        [sys.executable, "-c", _DYING, str(tmp_path)], env=_environment(), check=True, capture_output=True, text=True
    )
    steps = int(done.stdout)
    assert steps > 15
    states = set()
    zoos = sorted(tmp_path.glob("zoo-*"))
    assert len(zoos) == steps
    for path in zoos:
        folder = ZooFolder(path)
        present = [p.name for p in folder.shard_folders()]
        half = list((path / "shards").glob(".tmp-*"))
        states.add((len(present), bool(half)))
        assert present in ([], ["c0-s2"])
        assert all(not problems_of(p) for p in folder.shard_folders())
        again = Sample(folder, sample.layout, sample.cohort, folder.new_token())
        folder.clean_leftovers(again.token)
        assert not list((path / "shards").glob(".tmp-*"))
        assert again.seal(2).digest == expected.digest
        assert not problems_of(path / "shards" / "c0-s2")
    # The kills did fall before, within and after the writing.
    assert states == {(0, False), (0, True), (1, False)}


_FULL = """
import os, resource, signal, sys
from pathlib import Path
from store_samples import Sample
from zoogen.core.errors import EnvironmentFault
from zoogen.store.work import Work
from store_samples import make_state
from zoogen.store.derive import rebuild_tables

sample = Sample.make(Path(sys.argv[1]))
sample.seal(0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (64, 300, 1000, 3000, 6000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    work = Work.claim(sample.path, sample.cohort, "t")
    for write in (
        lambda: sample.seal(2), lambda: work.save(make_state(sample.cohort, sample.layout, 1), []),
        lambda: sample.folder.write_manifest({"text": "x" * 10_000}), lambda: rebuild_tables(sample.folder, {}),
    ):
        try:
            write()
            print("written", limit)
        except EnvironmentFault as fault:
            assert "no room" in str(fault) and "resumes" in str(fault), fault
            print("full", limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not list(sample.path.rglob(".tmp-*")), list(sample.path.rglob(".tmp-*"))
sample.seal(2)
print("end")
"""


def test_a_full_disk_is_told_leaves_nothing_behind_and_can_be_resumed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "zoo")], env=_environment(), capture_output=True, text=True
    )
    # A process that HDF5 left with an unwritable file would crash on its way out.
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("full") >= 12
    assert done.stdout.endswith("end\n")
    zoo = ZooFolder(tmp_path / "zoo")
    assert set(zoo.sealed()) == {"c0-s0", "c0-s2"}
    assert zoo.manifest()["name"] == "sample"


def test_a_folder_that_may_not_be_written_is_told(sample, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere, so the refusal is made
    with pytest.raises(EnvironmentFault, match="permissions"):
        sample.seal(0)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_an_interrupt_while_hdf5_writes_is_raised_once_the_file_is_closed(sample, monkeypatch, nth):
    written = []

    class Interrupted:
        """The file under the sink; Ctrl-C arrives during its n-th write."""

        def __init__(self, raw):
            self._raw = raw

        def __getattr__(self, name):
            return getattr(self._raw, name)

        def write(self, data):
            written.append(len(data))
            if len(written) == nth:
                raise KeyboardInterrupt
            return self._raw.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(stacks, "_Sink", lambda raw, real=stacks._Sink: real(Interrupted(raw)))
        with pytest.raises(KeyboardInterrupt):
            sample.seal(0)
    assert len(written) == nth  # nothing is written any more
    assert not list((sample.path / "shards").iterdir())
    sample.seal(0)
