"""State dicts are read without running anything: what else a file holds makes it unusable."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.state_dicts import layout_of_tensors, load_tensors, misfit


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


UNUSABLE = {
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
