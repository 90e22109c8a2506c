"""State dicts are read without running anything: what else a file holds makes it unusable."""

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from typing import ClassVar
from zlib import crc32

import pytest
import torch

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.state_dicts import layout_of_tensors, load_tensors, misfit
from zoogen.importers.tensors.templates import Templates
from zoogen.importers.tensors.views import Views


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('pwned').touch()",)


def compressed(data):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as again:
        for name in file.namelist():
            again.writestr(name, file.read(name))
    return out.getvalue()


def other_pickle(pickled, data=None):
    """A file with another pickle than its own."""
    out = io.BytesIO()
    source = io.BytesIO(saved({"w": torch.ones(2)}) if data is None else data)
    with zipfile.ZipFile(source) as file, zipfile.ZipFile(out, "w") as again:
        for name in file.namelist():
            again.writestr(name, pickled if name.endswith("data.pkl") else file.read(name))
    return out.getvalue()


def other_booleans(data):
    """The same with 2 for true, and checksums to match."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, "w") as again:
        for name in file.namelist():
            content = file.read(name)
            again.writestr(name, content.replace(b"\1", b"\2") if "/data/" in name else content)
    return out.getvalue()


def called(name, *arguments):
    """A pickle of a call, with whole numbers for arguments."""
    numbers = b"".join(b"\x8a\x08" + n.to_bytes(8, "little") for n in arguments)
    return b"\x80\x02c" + name.replace(".", "\n").encode() + b"\n(" + numbers + b"tR."


COPIES = b"\x80\x02](" + b"](K\x01K\x02e" * 9000 + b"e\x85q\x00ccollections\nOrderedDict\nq\x01("


def with_a_second_pickle(name):
    out = io.BytesIO(saved({"w": torch.ones(2)}))
    with zipfile.ZipFile(out, "a") as file:
        file.writestr(name.replace("\0", "#"), b"\x80\x02}.")
    return out.getvalue().replace(name.replace("\0", "#").encode(), name.encode())


UNUSABLE = {
    "gigabytes of a few bytes": (lambda: other_pickle(called("__builtin__.bytearray", 1 << 31)), "names __builtin__"),
    "gigabytes in the old format": (lambda: called("__builtin__.bytearray", 1 << 31), "names __builtin__.bytearray"),
    "a storage of gigabytes": (lambda: other_pickle(called("torch.FloatStorage", 1 << 31)), "calls torch.FloatStorage"),
    "a tensor of gigabytes": (lambda: other_pickle(called("torch.Tensor", 1 << 31)), "calls torch.Tensor"),
    "copies without end": (lambda: other_pickle(COPIES + b"h\x01h\x00R" * 200 + b"t."), "copies without end"),
    "records that differ in case": (lambda: with_a_second_pickle("archive/DATA.PKL"), "records of one name"),
    "a record whose name ends within": (lambda: with_a_second_pickle("archive/data.pkl\0x"), "records of one name"),
    "booleans of another value": (
        lambda: other_booleans(saved({"w": torch.tensor([True, False, True])})),
        "neither true nor false",
    ),
    "code": (lambda: saved({"w": Evil()}), "without running code"),
    "code in a plain pickle": (lambda: pickle.dumps(Evil()), "without running code"),
    "code in the old format": (lambda: saved({"w": Evil()}, _use_new_zipfile_serialization=False), "without running"),
    "a module": (lambda: saved(torch.nn.Linear(2, 2)), "without running code"),
    "nothing": (lambda: b"", "without running code"),
    "noise": (lambda: bytes(range(256)) * 10, "without running code"),
    "half a file": (lambda: saved({"w": torch.ones(100)})[:400], "is damaged"),
    "a number": (lambda: saved(3), "holds no state dict"),
    "an empty dict": (lambda: saved({}), "holds no state dict"),
    "a number in the dict": (lambda: saved({"epoch": 3, "w": torch.ones(2)}), "'epoch', which is a int"),
    "a numbered tensor": (lambda: saved({1: torch.ones(2)}), "a tensor with the name 1"),
    "control characters": (lambda: saved({"a\x1b[2J": torch.ones(2)}), "a tensor with the name"),
    "a sparse tensor": (lambda: saved({"w": torch.eye(3).to_sparse()}), "no plain tensor"),
    "no memory at all": (lambda: saved({"w": torch.empty(5, device="meta")}), "plain tensor"),
    "one number a billion times": (lambda: saved({"w": torch.ones(1).expand(1 << 40)}), "more than the file has"),
    "compressed records": (lambda: compressed(saved({"w": torch.zeros(1 << 16)})), "compressed records"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_plain_state_dict_is_unusable_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, reason = UNUSABLE[name]
    with pytest.raises(Unusable, match=reason) as error:
        load_tensors(make())
    assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dict_comes_back_bit_for_bit(new, wrapper):
    state = OrderedDict(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).state_dict())
    data = saved({wrapper: state, "epoch": 3} if wrapper else state, _use_new_zipfile_serialization=new)
    found = load_tensors(data)
    assert list(found) == list(state)
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in state.items())


class Python2(pickle._Pickler):
    """As Python 2 pickles: short texts have one byte for their length, what is remembered counts from 1."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def memoize(self, value):
        number = len(self.memo) + 1
        self.write(self.put(number))
        self.memo[id(value)] = number, value

    def save_text(self, value):
        self.write(b"U" + bytes([len(value)]) + value.encode())
        self.memoize(value)

    dispatch[str] = save_text

    def save_ordered(self, value):
        self.save_reduce(OrderedDict, ([list(pair) for pair in value.items()],), obj=value)

    dispatch[OrderedDict] = save_ordered


def test_state_dicts_of_python_2_are_read():
    tools = types.SimpleNamespace(
        __name__="old", Pickler=Python2, dump=lambda v, f, protocol: Python2(f, protocol).dump(v)
    )
    state = OrderedDict(a=torch.randn(2, 3), b=torch.arange(4))
    data = saved(state, _use_new_zipfile_serialization=False, pickle_module=tools)
    assert b"U\x07storage" in data
    found = load_tensors(data)
    assert all(torch.equal(found[n], t) for n, t in state.items())


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_state_dict_beside_all_that_training_needs_is_read(new, optimizer):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    steps = optimizer(model.parameters(), lr=0.1)
    plan = torch.optim.lr_scheduler.MultiStepLR(steps, [1, 2])
    model(torch.randn(4, 3)).sum().backward()
    steps.step()
    plan.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": steps.state_dict(),
        "scheduler": plan.state_dict(),
        "random": torch.get_rng_state(),
        "epoch": 3,
        "kinds": (torch.float16, torch.Size([2]), torch.device("cpu"), {1, 2}, 1j),
        "parameter": model[0].weight,
        "complex": torch.ones(2, dtype=torch.complex64),
        "wide": torch.ones(2, dtype=torch.uint16 if new else torch.int16),
        "text": "x" * (2 << 20),
    }
    found = load_tensors(saved(checkpoint, _use_new_zipfile_serialization=new))
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in model.state_dict().items())


def test_booleans_of_another_value_are_refused_in_files_of_a_known_kind_too():
    templates = Templates()
    data = saved({"n": torch.ones(1), "b": torch.tensor([True, False, True])})
    load_tensors(data, templates)
    assert isinstance(load_tensors(data, templates), Views)
    right, wrong = b"\1\0\1", b"\2\0\1"
    sums = [crc32(content).to_bytes(4, "little") for content in (right, wrong)]
    other = data.replace(right, wrong).replace(*sums)
    assert templates.read(other) is None
    with pytest.raises(Unusable, match="neither true nor false"):
        load_tensors(other, templates)


def test_a_layout_of_tensors_alone_brings_every_tensor_back():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(3, 4))
    state = dict(network.state_dict(), half=torch.ones(3, dtype=torch.float64), flag=torch.tensor([True, False]))
    layout = layout_of_tensors(state)
    rows = {d: layout.flatten(state, d) for d in ("float32", *layout.side_dtypes)}
    back = layout.unflatten(rows)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], t) for n, t in state.items())
    roles = {e.name: e.role for e in layout.entries}
    assert roles["0.weight"] == roles["2.weight"] == "weight"
    assert (roles["1.weight"], roles["1.bias"], roles["1.running_var"]) == (
        "norm_scale",
        "norm_shift",
        "running_statistic",
    )
    assert layout.trainable == sum(p.numel() for p in network.parameters())
    assert misfit(layout, state) is None
    assert misfit(layout, {n: t for n, t in state.items() if n != "flag"}) == "lacks flag"
    assert misfit(layout, state | {"more": torch.ones(1)}) == "has more"
    assert "2.bias is float32 (5,), not float32 (4,)" in misfit(layout, state | {"2.bias": torch.ones(5)})
    assert "float16" in misfit(layout, state | {"2.bias": torch.ones(4).half()})


def test_a_record_that_says_it_is_a_folder_is_damage():
    """torch reads nothing of it, and gives whatever was in memory before."""
    data = bytearray(saved({"w": torch.ones(1000)}))
    entry = data.rindex(b"archive/data/0") - 46
    data[entry + 38] |= 0x10
    with pytest.raises(Unusable, match=r"is damaged \(a record has no content\)"):
        load_tensors(bytes(data))
