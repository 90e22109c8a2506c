"""Headers of safetensors files: what the library of the format reads is read alike, and what lies is refused unread."""

import json

import pytest
import torch
from published_repositories import convolutions, one, raw, vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zoogen.importers.containers.files import open_files
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.safetensors_data import read_tensors, tensor_digests
from zoogen.importers.tensors.safetensors_header import read_header

DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool float8_e4m3fn float8_e5m2"
)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    """Equal bits are asked for, of NaN and of float8, which torch does not compare."""
    return tensor.contiguous().view(BITS[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_tensors_of_every_dtype_are_those_that_the_library_wrote(tmp_path, dtype):
    noise = torch.randint(0, 256, (6, 16), dtype=torch.uint8)
    kind = getattr(torch, dtype)
    written = {
        "matrix": (noise % 2).to(kind) if dtype == "bool" else noise.view(kind),
        "scalar": torch.ones((), dtype=kind),
        "empty": torch.ones((0, 3), dtype=kind),
    }
    save_file(written, tmp_path / "a.safetensors", metadata={"format": "pt", "note": "é"})
    files = open_files(tmp_path)
    header = read_header(files, "a.safetensors")
    read = read_tensors(files, "a.safetensors", header)
    assert {n: (t.dtype, t.shape) for n, t in read.items()} == {n: (t.dtype, t.shape) for n, t in written.items()}
    assert all(torch.equal(bits(read[name]), bits(tensor)) for name, tensor in written.items())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as library:
        assert header.metadata == library.metadata()
        assert {n: list(t.shape) for n, t in header.tensors.items()} == {
            n: library.get_slice(n).get_shape()
            for n in library.keys()  # noqa: SIM118 - no mapping
        }


def test_tensors_that_are_not_aligned_are_read_as_the_library_reads_them(tmp_path):
    header = {"flag": one("U8", (1,), (0, 1)), "weight": one("F32", (2,), (1, 9))}
    (tmp_path / "a.safetensors").write_bytes(raw(header, b"\x07" + torch.tensor([1.5, -2.0]).numpy().tobytes()))
    files = open_files(tmp_path)
    read = read_tensors(files, "a.safetensors", read_header(files, "a.safetensors"))
    expected = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())


def test_digests_do_not_depend_on_names_files_or_blocks(tmp_path, monkeypatch):
    state = vit(0)
    save_file(state, tmp_path / "a.safetensors")
    save_file({f"model.{n}": t for n, t in reversed(state.items())} | convolutions(1), tmp_path / "b.safetensors")
    files = open_files(tmp_path)
    one_block = {n: tensor_digests(files, n, read_header(files, n)) for n in files.sizes}
    monkeypatch.setattr("zoogen.importers.tensors.safetensors_data._BLOCK", 100)
    assert one_block == {n: tensor_digests(files, n, read_header(files, n)) for n in files.sizes}
    first, second = one_block.values()
    assert all(second[f"model.{name}"] == digest for name, digest in first.items())
    different = {first[n] for n in state if "weight" in n} | {second[n] for n in second if n.startswith("0.")}
    assert len(different) == 15 - 2 + 4 - 2  # 11 blocks, norm and head; the convolution's weight and bias, running ones


F32 = b"\0" * 8
HOSTILE = {
    "empty": (b"", "too short"),
    "no length": (b"\x08\0\0", "too short"),
    "an archive": (b"PK\x03\x04" + b"\0" * 60, "a header of 67,324,752 bytes; at most"),
    "length of 2**63": (raw({"a": one()}, F32, length=1 << 63), "9,223,372,036,854,775,808 bytes; at most"),
    "length beyond the file": (raw({"a": one()}, F32, length=10_000), "a header of 10,000 bytes, and"),
    "no JSON": (raw(b"{'a'}"), "not readable as JSON"),
    "a list": (raw([one()]), "no JSON object"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not readable as JSON"),
    "nested deep": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deep"),
    "digits without end": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "not readable as JSON"),
    "a name twice": (raw(b'{"a": %s, "a": %s}' % ((json.dumps(one()).encode(),) * 2), F32), "'a' stands twice"),
    "a field twice": (
        raw(b'{"a": {"dtype": "F32", "dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}'),
        "stands twice",
    ),
    "nothing": (raw({"__metadata__": {"format": "pt"}}), "holds 0 tensors"),
    "metadata that is no text": (raw({"__metadata__": {"epoch": 3}, "a": one()}, F32), "is not text by name"),
    "metadata that is a list": (raw({"__metadata__": ["pt"], "a": one()}, F32), "is not text by name"),
    "a control character": (raw({"a\x1b[2J": one()}, F32), "a tensor with the name 'a\\\\x1b"),
    "half a surrogate": (raw(b'{"\\ud800": %s}' % json.dumps(one()).encode(), F32), "a tensor with the name"),
    "a name without end": (raw({"a" * 600: one()}, F32), "a tensor with the name"),
    "an unknown dtype": (raw({"a": one("F128")}, F32), "the unknown dtype 'F128'"),
    "a dtype that is a list": (raw({"a": one(["F32"])}, F32), "the unknown dtype"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, F32), "without dtype, shape"),
    "a field too many": (raw({"a": one() | {"path": "/etc/passwd"}}, F32), "or with more"),
    "a negative shape": (raw({"a": one(shape=[-1, -2])}, F32), "'a' of the shape"),
    "a shape of floats": (raw({"a": one(shape=[2.0])}, F32), "'a' of the shape"),
    "a shape of truths": (raw({"a": one("F64", [True])}, F32), "'a' of the shape"),
    "a shape that overflows": (raw({"a": one(shape=[1 << 62, 1 << 62, 4])}, F32), "in 8 bytes"),
    "steps that overflow beside a zero": (
        raw({"a": one(shape=[0, 1 << 62, 1 << 62], offsets=(0, 0)), "b": one()}, F32),
        "'a' of the shape",
    ),
    "a shape beyond 64 bits": (raw({"a": one(shape=[1 << 64])}, F32), "'a' of the shape"),
    "a hundred dimensions": (raw({"a": one(shape=[1] * 99 + [2])}, F32), "'a' of the shape"),
    "another size": (raw({"a": one(shape=[3])}, F32), "F32 .3. in 8 bytes"),
    "a backward range": (raw({"a": one(offsets=(8, 0))}, F32), "at the offsets"),
    "a negative range": (raw({"a": one(offsets=(-8, 0))}, F32), "at the offsets"),
    "three offsets": (raw({"a": one(offsets=(0, 4, 8))}, F32), "at the offsets"),
    "beyond the file": (raw({"a": one(offsets=(0, 8))}, b"\0" * 7), "beyond the end of the file"),
    "overlap": (raw({"a": one(), "b": one(offsets=(4, 12))}, b"\0" * 12), "'b', which overlaps the tensor before it"),
    "the same bytes": (raw({"a": one(), "b": one()}, F32), "'b', which overlaps the tensor before it"),
    "a hole": (raw({"a": one(), "b": one(offsets=(12, 20))}, b"\0" * 20), "'b', which comes after a hole"),
    "bytes at the end": (raw({"a": one()}, b"\0" * 30), "22 bytes that belong to no tensor"),
    "bytes at the start": (raw({"a": one(offsets=(8, 16))}, b"\0" * 16), "'a', which comes after a hole"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_refused_before_any_tensor_is_read(tmp_path, name):
    data, says = HOSTILE[name]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(Unusable, match=says):
        read_header(open_files(tmp_path), "a.safetensors")


def test_too_many_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("zoogen.importers.tensors.safetensors_header._MOST_TENSORS", 10)
    save_file({str(i): torch.ones(1) for i in range(11)}, tmp_path / "a.safetensors")
    with pytest.raises(Unusable, match="holds 11 tensors; from 1 to 10 are read"):
        read_header(open_files(tmp_path), "a.safetensors")


def test_booleans_that_are_none_and_dtypes_that_are_not_stored_are_told(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(raw({"a": one("BOOL", (2,), (0, 2))}, b"\x01\x07"))
    (tmp_path / "b.safetensors").write_bytes(raw({"b": one("F8_E8M0", (2,), (0, 2))}, b"\x01\x07"))
    files = open_files(tmp_path)
    with pytest.raises(Unusable, match="BOOL with bytes other than 0 and 1"):
        read_tensors(files, "a.safetensors", read_header(files, "a.safetensors"))
    with pytest.raises(Unusable, match="holds b, which is F8_E8M0; such tensors are not stored"):
        read_tensors(files, "b.safetensors", read_header(files, "b.safetensors"))


def test_a_file_that_ends_sooner_than_it_was_listed_is_told(tmp_path):
    save_file(vit(0), tmp_path / "a.safetensors")
    files = open_files(tmp_path)
    header = read_header(files, "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-4])
    with pytest.raises(Unusable, match=r"a\.safetensors"):
        tensor_digests(files, "a.safetensors", header)
    with pytest.raises(Unusable, match="is no longer as it was listed"):
        read_tensors(files, "a.safetensors", header)
