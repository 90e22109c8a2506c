"""Decoded data are whole or absent, decoded once however many ask, and replaced when damaged."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from zoogen.core.errors import EnvironmentFault
from zoogen.tasks.cache import Decoded, array_digest, open_or_decode

ARRAYS = {"inputs": np.arange(60_000, dtype=np.uint8).reshape(100, 600), "targets": np.arange(100)}
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def counting(log, seconds=0.0):
    def decode():
        with log.open("a") as stream:
            stream.write("decoded\n")
        time.sleep(seconds)
        return Decoded(ARRAYS, "content")

    return decode


def times_decoded(log):
    return len(log.read_text().splitlines()) if log.exists() else 0


def assert_whole(folder, log):
    cached = open_or_decode(folder, counting(log))
    assert cached.content == "content"
    for name, array in ARRAYS.items():
        assert np.array_equal(cached.arrays[name], array)
        assert cached.digests[name] == array_digest(array)
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_the_second_open_does_not_decode(tmp_path):
    for _ in range(2):
        assert_whole(tmp_path / "tasks" / "x", tmp_path / "log")
    assert times_decoded(tmp_path / "log") == 1


def test_processes_that_ask_at_once_decode_once(tmp_path):
    folder, log = tmp_path / "tasks" / "x", tmp_path / "log"

    def worker():
        assert np.array_equal(open_or_decode(folder, counting(log, 0.3)).arrays["inputs"], ARRAYS["inputs"])

    processes = [FORK.Process(target=worker) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert times_decoded(log) == 1


@pytest.mark.parametrize("moment", ["decoding", "between files", "before the rename"])
def test_a_killed_decoder_leaves_nothing_that_is_taken_for_whole(moment, tmp_path, monkeypatch):
    folder, log = tmp_path / "tasks" / "x", tmp_path / "log"

    def die(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def worker():
        from zoogen.tasks import cache

        if moment == "decoding":
            open_or_decode(folder, die)
        elif moment == "between files":
            monkeypatch.setattr(cache, "array_digest", die)
        else:
            monkeypatch.setattr(cache.Path, "rename", die)
        open_or_decode(folder, counting(log))

    process = FORK.Process(target=worker)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not folder.exists()
    assert_whole(folder, log)


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "empty", "delete", "head", "head missing", "other shape", "pickled"]
)
def test_a_damaged_cache_is_decoded_again(damage, tmp_path):
    folder, log = tmp_path / "tasks" / "x", tmp_path / "log"
    assert_whole(folder, log)
    path = folder / "inputs.npy"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "delete":
        path.unlink()
    elif damage == "head":
        (folder / "cache.json").write_text('{"format": 1')
    elif damage == "head missing":
        (folder / "cache.json").unlink()
    elif damage == "other shape":
        np.save(path, ARRAYS["inputs"].reshape(600, 100))
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert_whole(folder, log)
    assert times_decoded(log) == 2


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "tasks").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="ZOOGEN_CACHE"):
        open_or_decode(tmp_path / "tasks" / "x", counting(tmp_path / "log"))


def test_an_error_while_decoding_leaves_the_cache_usable(tmp_path):
    def fail():
        raise EnvironmentFault("no files")

    with pytest.raises(EnvironmentFault, match="no files"):
        open_or_decode(tmp_path / "tasks" / "x", fail)
    assert_whole(tmp_path / "tasks" / "x", tmp_path / "log")


def test_digests_tell_shape_and_dtype_apart():
    zeros = np.zeros(8, np.uint8)
    assert len({array_digest(a) for a in (zeros, zeros.reshape(2, 4), zeros.view(np.int64))}) == 3
    assert array_digest(ARRAYS["inputs"][:, ::2]) == array_digest(ARRAYS["inputs"][:, ::2].copy())
