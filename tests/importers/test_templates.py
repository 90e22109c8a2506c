"""What is read by a template is what torch reads; what differs from it anywhere else than in its numbers is not."""

import io
import json
import random
import struct
import sys
import zipfile
from contextlib import suppress
from unittest import mock

import pytest
import torch
from published_zoos import Published, config
from torch.serialization import get_crc32_options, set_crc32_options

import zoogen
from zoogen.build.importing import import_zoo
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.state_dicts import layout_of_tensors, load_tensors
from zoogen.importers.tensors.templates import Templates
from zoogen.importers.tensors.views import Views, row_of


@pytest.fixture(params=[True, False], ids=["checksums", "none"])
def checksums(request):
    """Whether torch writes them."""
    before = get_crc32_options()
    set_crc32_options(request.param)
    yield request.param
    set_crc32_options(before)


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def loaded(data):
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def same(found, told):
    assert list(found) == list(told)
    for name, tensor in told.items():
        assert (found[name].dtype, found[name].shape, found[name].stride()) == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        bits = [t.reshape(-1).contiguous().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits)


def bits(shape, dtype):
    """Any bits at all, NaNs and -0 among them."""
    size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8)
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(shape)


def every_dtype():
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    return {name: bits((3, 2), getattr(torch, name)) for name in names}


def shapes():
    return {str(s): bits(s, torch.float32) for s in [(), (1,), (0,), (5, 0, 2), (7,), (2, 3), (4, 1, 3, 3), (1, 1, 1)]}


def views_of_one_storage():
    whole = bits((6, 4), torch.float32)
    return {"whole": whole, "row": whole[2], "column": whole[:, 1], "turned": whole.T, "again": whole, "end": whole[5:]}


def wide_and_repeated():
    return {"repeated": bits((3, 1), torch.float32).expand(3, 50), "step": bits((40,), torch.int16)[1::3]}


def network():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(3, 2))
    for tensor in model.state_dict().values():
        tensor.copy_(bits(tensor.shape, tensor.dtype))
    return model.state_dict()


STATES = {
    "every dtype": every_dtype,
    "shapes": shapes,
    "views of one storage": views_of_one_storage,
    "wide and repeated": wide_and_repeated,
    "a network": network,
    "parameters": lambda: {"w": torch.nn.Parameter(bits((3,), torch.float32))},
    "wrapped": lambda: {"epoch": 3, "state_dict": network(), "lr": 0.1},
    "one tensor": lambda: {"w": bits((1000,), torch.float32)},
}


@pytest.mark.parametrize("name", STATES)
def test_a_second_file_of_a_kind_is_read_without_torch_bit_for_bit(name, checksums, monkeypatch):
    torch.manual_seed(0)
    first, second = (saved(STATES[name]()) for _ in range(2))
    assert first != second
    templates = Templates()
    load_tensors(first, templates)
    told = [loaded(data) for data in (first, second)]
    monkeypatch.setattr(torch, "load", None)
    for data, state in zip((first, second), told, strict=True):
        found = load_tensors(data, templates)
        assert isinstance(found, Views)
        same(found, state.get("state_dict", state))


LEFT_TO_TORCH = {
    "the format before 1.6": lambda: saved(network(), _use_new_zipfile_serialization=False),
    "complex numbers": lambda: saved({"w": torch.randn(3, dtype=torch.complex64)}),
    "negated views": lambda: saved({"w": torch.randn(3, dtype=torch.complex64).conj().imag}),
    "more bytes than wanted": lambda: saved({"w": torch.zeros(17 << 18)}),
    "a long pickle": lambda: saved({"state_dict": network(), "text": "x" * (2 << 20)}),
    "records that look alike": lambda: saved({str(i): torch.tensor([i % 2 == 0]) for i in range(300)}),
    "of a machine of the other byte order": lambda: other_order({"w": torch.arange(4.0)}),
    "records that start anywhere": lambda: written_again(saved({"w": torch.arange(4.0)})),
}


def other_order(state):
    """As a machine would write it that keeps the highest byte first."""
    with mock.patch.object(sys, "byteorder", "big"):
        return saved({n: torch.from_numpy(t.numpy().byteswap()) for n, t in state.items()})


def written_again(data):
    """By another zip writer, which aligns nothing."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, "w") as again:
        for name in file.namelist():
            again.writestr(name, file.read(name))
    return out.getvalue()


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_a_template_cannot_tell_for_certain_is_left_to_torch(name):
    torch.manual_seed(0)
    data = LEFT_TO_TORCH[name]()
    templates = Templates()
    told = loaded(data)
    for _ in range(2):
        found = load_tensors(data, templates)
        assert not isinstance(found, Views)
        same(found, told.get("state_dict", told))


def test_the_other_byte_order_is_read_as_numbers_not_as_bytes():
    assert load_tensors(other_order({"w": torch.arange(4.0)}), Templates())["w"].tolist() == [0, 1, 2, 3]


def test_whatever_bit_flips_the_numbers_stay_right_or_the_file_is_left_out(checksums):
    """Only bits of records may pass, and only where the file was written without checksums."""
    torch.manual_seed(0)
    state = {"w": torch.randn(3), "b": torch.randn(2, dtype=torch.float64)}
    data = saved(state)
    templates = Templates()
    load_tensors(data, templates)
    chance = random.Random(0)
    for place in range(checksums, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        try:
            found = load_tensors(bytes(flipped), templates)
        except Unusable:
            continue
        if checksums:
            same(found, state)
        else:
            same(found, loaded(bytes(flipped)))


def parts(data):
    """Content, and places of both headers, of every member."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        place, found = file.start_dir, {}
        for member in file.infolist():
            name, extra = struct.unpack_from("<2H", data, member.header_offset + 26)
            start = member.header_offset + 30 + name + extra
            found[member.filename.partition("/")[2]] = (start, start + member.file_size, member.header_offset, place)
            place += 46 + sum(struct.unpack_from("<3H", data, place + 28))
    return found


def changed(data, place, content):
    return data[:place] + content + data[place + len(content) :]


def other_numbers(data):
    start, end, _, _ = parts(data)["data/0"]
    return changed(data, start, b"\1" * (end - start))


def directory_of(field, value):
    """A field of the directory's entry for the first record."""

    def change(data):
        return changed(data, parts(data)["data/0"][3] + field, value)

    return change


def header_of(field, value):
    def change(data):
        return changed(data, parts(data)["data/0"][2] + field, value)

    return change


def offset_of_the_other(data):
    own, other = parts(data)["data/0"], parts(data)["data/1"]
    return changed(data, own[3] + 42, struct.pack("<I", other[2]))


def twice_the_same_name(data):
    return changed(data, parts(data)["data/0"][3] + 46, b"archive/data/1")


def friendly_pickle_of_others(data):
    """The pickle of a known kind, in a file of other records."""
    other = saved({"w": torch.ones(1), "b": torch.ones(4)})
    theirs, ours = parts(other)["data.pkl"], parts(data)["data.pkl"]
    return changed(other, theirs[0], data[ours[0] : ours[1]])


def compressed(data):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as file, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as again:
        for name in file.namelist():
            again.writestr(name, file.read(name))
    return out.getvalue()


HOSTILE = {
    "numbers against their checksum": other_numbers,
    "a record shorter than its tensor": directory_of(20, struct.pack("<2I", 4, 4)),
    "a record that ends behind the file": directory_of(20, struct.pack("<2I", 1 << 20, 1 << 20)),
    "a record that says it is compressed": directory_of(10, struct.pack("<H", 8)),
    "a header that says it is compressed": header_of(8, struct.pack("<H", 8)),
    "a record of another name": directory_of(46, b"archive/data/9"),
    "a header of another name": header_of(30, b"archive/data/9"),
    "two records of one name": twice_the_same_name,
    "a record in the place of another": offset_of_the_other,
    "a record that says it is a folder": directory_of(38, b"\x10"),
    "an encrypted record": directory_of(8, struct.pack("<H", 0x809)),
    "a longer extra field": header_of(28, struct.pack("<H", 60)),
    "another record's pickle": friendly_pickle_of_others,
    "half a file": lambda data: data[: len(data) // 2],
    "a stem that leads out": lambda data: data.replace(b"archive/", b"../../x/"),
    "a stem of control characters": lambda data: data.replace(b"archive/", b"arch\x1bve/"),
    "one record of another stem": lambda data: data.replace(b"archive/data/0", b"evil___/data/0"),
    "compressed records": compressed,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_that_looks_like_a_known_kind_is_as_torch_reads_it_or_is_left_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = {"w": torch.randn(4), "b": torch.randn(4)}
    data = saved(state)
    templates = Templates()
    load_tensors(data, templates)
    assert isinstance(load_tensors(data, templates), Views)
    hostile = HOSTILE[name](data)
    assert hostile != data
    assert templates.read(hostile) is None
    with suppress(Unusable):
        same(load_tensors(hostile, templates), loaded(hostile))
    assert not list(tmp_path.iterdir())


def test_files_that_were_saved_under_other_names_are_of_one_kind(tmp_path, monkeypatch):
    """torch writes a file's name before the name of every record in it."""
    states = {name: {"w": torch.randn(5)} for name in ("run-1", "run_2", "run.3")}
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.pt")
    templates = Templates()
    load_tensors((tmp_path / "run-1.pt").read_bytes(), templates)
    monkeypatch.setattr(torch, "load", None)
    for name, state in states.items():
        same(load_tensors((tmp_path / f"{name}.pt").read_bytes(), templates), state)


def test_what_runs_code_is_refused_in_the_size_of_a_known_kind_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return exec, ("import pathlib; pathlib.Path('pwned').touch()",)

    known, evil = saved({"w": torch.ones(300)}), saved({"w": Evil()})
    templates = Templates()
    load_tensors(known, templates)
    with pytest.raises(Unusable, match="without running code"):
        load_tensors(evil, templates)
    assert not list(tmp_path.iterdir())


def test_no_more_than_some_kinds_are_learned():
    templates = Templates()
    for size in range(260):
        load_tensors(saved({"w": torch.ones(size)}), templates)
    first, last = saved({"w": torch.zeros(1)}), saved({"w": torch.zeros(259)})
    assert templates.read(first) is not None
    assert templates.read(last) is None


@pytest.mark.parametrize("name", ["shapes", "views of one storage", "wide and repeated", "a network", "every dtype"])
def test_a_row_made_of_a_file_is_the_row_made_of_its_tensors(name):
    torch.manual_seed(0)
    data = saved(STATES[name]())
    templates = Templates()
    load_tensors(data, templates)
    found, told = templates.read(data), loaded(data)
    layout = layout_of_tensors(told)
    row = row_of(layout, found)
    assert row.tobytes() == layout.flatten(told).numpy().tobytes()
    row[:] = 0  # memory of its own
    assert row_of(layout, found).tobytes() == layout.flatten(told).numpy().tobytes()


def test_a_row_of_another_layout_is_refused():
    data = saved({"w": torch.ones(3), "b": torch.ones(2)})
    templates = Templates()
    load_tensors(data, templates)
    found = templates.read(data)
    for other in (
        {"w": torch.ones(4), "b": torch.ones(2)},
        {"w": torch.ones(3), "b": torch.ones(2), "c": torch.ones(1)},
    ):
        with pytest.raises(ValueError, match="the layout says"):
            row_of(layout_of_tensors(other), found)


def test_a_damaged_checkpoint_among_others_is_left_out_and_told(tmp_path):
    trial = tmp_path / "zoo/trial"
    for epoch in range(5):
        (trial / f"checkpoint_{epoch:06d}").mkdir(parents=True)
        torch.save(Published(config()).state_dict(), trial / f"checkpoint_{epoch:06d}/checkpoints")
    (trial / "params.json").write_text(json.dumps(config()))
    place = trial / "checkpoint_000003/checkpoints"
    data = bytearray(place.read_bytes())
    data[parts(bytes(data))["data/2"][0] + 100] ^= 8
    place.write_bytes(data)
    loaded(bytes(data))  # torch does not look at checksums
    import_zoo(tmp_path / "zoo", "ray-tune", tmp_path / "out", lambda text: None)
    zoo = zoogen.open(tmp_path / "out")
    assert sorted(zoo.checkpoints["epoch"]) == [0, 1, 2, 4]
    told = [json.loads(line) for line in (tmp_path / "out/logs/import.jsonl").read_text().splitlines()]
    assert [t["epoch"] for t in told if "Bad CRC-32" in t["reason"]] == [3]
    state = torch.load(trial / "checkpoint_000004/checkpoints", weights_only=True)
    model = zoo.models["model_id"].iloc[0]
    found = zoo.state_dict(model, 4)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), state.values(), strict=True))
