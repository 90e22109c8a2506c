"""Files made to harm: refused before any of their data is read."""

import contextlib
import hashlib
import json
import os
import resource
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_samples import read_weights

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError
from zoogen.store.check import problems_of
from zoogen.store.fence import builder_of, check_token
from zoogen.store.read import ShardReader
from zoogen.store.shard_info import read_shard_info
from zoogen.store.tables import read_parquet, read_schema
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder

SHAPE = (12, 21)


def external_link(file):
    del file["weights"]
    file["weights"] = h5py.ExternalLink("/etc/hostname", "/weights")


def soft_link(file):
    file.move("weights", "side/other")
    file["weights"] = h5py.SoftLink("/side/other")


def external_side_group(file):
    del file["side"]
    file["side"] = h5py.ExternalLink("/etc/hostname", "/")


def virtual_dataset(file):
    del file["weights"]
    layout = h5py.VirtualLayout(SHAPE, "<f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "weights", SHAPE)
    file.create_virtual_dataset("weights", layout)


def external_storage(file):
    del file["weights"]
    file.create_dataset("weights", SHAPE, "<f4", external=[("/etc/passwd", 0, 12 * 21 * 4)])


def unknown_filter(file):
    del file["weights"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(SHAPE)
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # would load a plug-in library
    space = h5py.h5s.create_simple(SHAPE)
    h5py.h5d.create(file.id, b"weights", h5py.h5t.IEEE_F32LE, space, plist)


def other_filter(file):
    del file["weights"]
    file.create_dataset("weights", data=np.zeros(SHAPE, np.float32), chunks=SHAPE, shuffle=True)


def references(file):
    del file["model_id"]
    file.create_dataset("model_id", data=np.array([file.ref] * 12, dtype=h5py.ref_dtype))


def texts_of_any_length(file):
    del file["model_id"]
    file.create_dataset("model_id", data=["x"] * 12, dtype=h5py.string_dtype())


def arrays_of_any_length(file):
    del file["weights"]
    file.create_dataset("weights", (12,), h5py.vlen_dtype(np.float32))


def absurd_shape(file):
    del file["weights"]
    file.create_dataset("weights", (1 << 40, 21), "<f4", chunks=(16, 21), fletcher32=True)


def promised_but_absent_chunks(file):
    del file["weights"]
    file.create_dataset("weights", SHAPE, "<f4", chunks=(4, 21), fletcher32=True)


def inflating_bomb(file):
    del file["test_predictions"]
    file.create_dataset("test_predictions", (12, 1 << 27), "u1", chunks=(12, 1 << 23), compression="gzip")


def other_dtype(file):
    del file["weights"]
    file.create_dataset("weights", data=np.zeros(SHAPE, ">f4"), chunks=SHAPE, fletcher32=True)


def one_dataset_more(file):
    file.create_dataset("more", data=np.zeros(3))


def loop_of_groups(file):
    del file["side/int64"]
    file["side/int64"] = file["/"]


def huge_attribute_count(file):
    for number in range(5_000):
        file.attrs[f"a{number}"] = number


def attribute_of_a_dataset(file):
    file["weights"].attrs["note"] = np.zeros(1 << 12)


def attribute_of_a_group(file):
    file["side"].attrs["note"] = 1


def newer_version(file):
    file.attrs["zoogen_format_version"] = np.int64(2)


def no_version(file):
    del file.attrs["zoogen_format_version"]


def text_as_version(file):
    file.attrs["zoogen_format_version"] = "1"


SPOILERS = [
    external_link, soft_link, external_side_group, virtual_dataset, external_storage, unknown_filter, other_filter,
    references, texts_of_any_length, arrays_of_any_length, absurd_shape, promised_but_absent_chunks, inflating_bomb,
    huge_attribute_count, attribute_of_a_dataset, attribute_of_a_group,
    other_dtype, one_dataset_more, loop_of_groups, newer_version, no_version, text_as_version,
]  # fmt: skip


def sign(folder, **changes):
    """Make ``shard.json`` agree with the files as they are: the attacker computes digests too."""
    told = json.loads((folder / "shard.json").read_text())
    told.pop("digest")
    told |= changes
    for name, file in told["files"].items():
        data = (folder / name).read_bytes()
        file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    told["digest"] = digest(canonical_json(told))
    (folder / "shard.json").write_text(json.dumps(told, sort_keys=True, indent=1) + "\n")


@pytest.fixture
def shard(sample):
    sample.seal(0)
    return sample.path / "shards" / "c0-s0"


def test_signing_itself_breaks_nothing(shard, sample):
    sign(shard)
    assert problems_of(shard) == []
    assert read_weights(sample.path, "c0-s0").shape == SHAPE


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda f: f.__name__)
def test_a_hostile_weights_file_is_refused(shard, sample, spoil):
    with h5py.File(shard / "weights.h5", "r+") as file:
        spoil(file)
    sign(shard)
    with pytest.raises(IntegrityError, match=r"weights\.h5"):
        read_weights(sample.path, "c0-s0")
    assert problems_of(shard)


def test_a_shard_json_that_promises_the_absurd_shape_does_not_help(shard, sample):
    with h5py.File(shard / "weights.h5", "r+") as file:
        absurd_shape(file)
    told = json.loads((shard / "shard.json").read_text())
    told["datasets"]["weights.h5"]["weights"]["shape"] = [1 << 40, 21]
    for dataset in told["datasets"]["weights.h5"].values():
        dataset["shape"][0] = 1 << 40
    sign(shard, datasets=told["datasets"], states=1 << 40)
    with pytest.raises(IntegrityError, match=r"weights\.h5"):
        read_weights(sample.path, "c0-s0", [0])


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000, b"PK\x03\x04"])
def test_what_is_no_hdf5_file_is_refused(shard, sample, content):
    (shard / "weights.h5").write_bytes(content)
    sign(shard)
    with pytest.raises(IntegrityError, match=r"weights\.h5"):
        read_weights(sample.path, "c0-s0")


def test_a_pipe_as_weights_is_not_waited_for(shard, sample):
    (shard / "weights.h5").unlink()
    os.mkfifo(shard / "weights.h5")
    with pytest.raises(IntegrityError, match="not a regular file"):
        read_weights(sample.path, "c0-s0")


def test_random_bytes_in_the_file_never_crash_the_reader(shard, sample):
    good = (shard / "weights.h5").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        (shard / "weights.h5").write_bytes(data)
        with contextlib.suppress(IntegrityError):
            assert read_weights(sample.path, "c0-s0").shape == SHAPE


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2}, {"states": -1}, {"states": "12"}, {"shard_id": "../c0-s0"}, {"shard_id": "other"},
        {"files": {}}, {"files": {"../x": {"size": 1, "sha256": ""}}}, {"datasets": {}}, {"epochs": None},
        {"datasets": {"weights.h5": {"weights": {"dtype": "object", "shape": [12, 21]}}}},
        {"layout_id": ["x"]}, {"models": 1 << 60},
    ],
    ids=str,
)  # fmt: skip
def test_a_shard_json_that_lies_is_refused(shard, change):
    told = json.loads((shard / "shard.json").read_text()) | change
    told.pop("digest")
    told["digest"] = digest(canonical_json(told))
    (shard / "shard.json").write_text(json.dumps(told, sort_keys=True, indent=1) + "\n")
    with pytest.raises(IntegrityError, match=r"shard\.json"):
        read_shard_info(shard)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "3", "null", "\udcff", '{"format": "zoogen"}'], ids=range(6))
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "zoo.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(IntegrityError, match=r"zoo\.json"):
        ZooFolder(tmp_path).manifest()


class Pickled(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.string(), "tests.pickled")

    def __arrow_ext_serialize__(self):
        return b"code"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.struct({"a": pa.int64()}), pa.list_(pa.binary()), pa.timestamp("s"), pa.decimal128(5)],
    ids=str,
)
def test_a_table_with_a_strange_column_is_refused(tmp_path, kind):
    version = {b"zoogen.format_version": b"1"}
    schema = pa.schema({"model_id": pa.string(), "x": kind}, metadata=version)
    pq.write_table(schema.empty_table(), tmp_path / "t.parquet")
    with pytest.raises(IntegrityError, match="'x'"):
        read_schema(tmp_path / "t.parquet")


def test_a_column_of_a_registered_extension_type_is_refused(tmp_path):
    pa.register_extension_type(Pickled())
    try:
        schema = pa.schema({"x": Pickled()}, metadata={b"zoogen.format_version": b"1"})
        pq.write_table(schema.empty_table(), tmp_path / "t.parquet")
        with pytest.raises(IntegrityError, match="'x'"):
            read_schema(tmp_path / "t.parquet")
    finally:
        pa.unregister_extension_type("tests.pickled")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"model_id": ["a"]}), "format version none"),
        (pa.table({"model_id": [1]}), "should be string, found int64"),
        (pa.table({"x": [1]}), "found none"),
        (pa.table([pa.array(["a"]), pa.array(["b"])], names=["model_id", "model_id"]), "model_id"),
    ],
)
def test_a_table_with_wrong_columns_is_refused(tmp_path, table, message):
    if "version" not in message:
        table = table.replace_schema_metadata({b"zoogen.format_version": b"1"})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(IntegrityError, match=message):
        read_parquet(tmp_path / "t.parquet", {"model_id": pa.string()})


def test_random_bytes_in_a_table_never_crash_the_reader(shard):
    good = (shard / "checkpoints.parquet").read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        (shard / "checkpoints.parquet").write_bytes(data)
        try:
            read_parquet(shard / "checkpoints.parquet")
        except IntegrityError:
            found += 1
    assert found > 100


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


IN_PLACE = pytest.mark.parametrize("make", [pipe, endless, folder], ids=lambda f: f.__name__)
READERS = {
    "zoo.json": ZooFolder.manifest,
    "plan.parquet": ZooFolder.plan_table,
    "cohorts.parquet": ZooFolder.read_cohorts,
    "models.parquet": lambda zoo: read_parquet(zoo.path / "models.parquet"),
    "shards/c0-s0/shard.json": lambda zoo: read_shard_info(zoo.path / "shards/c0-s0"),
    "shards/c0-s0/checkpoints.parquet": lambda zoo: read_schema(zoo.path / "shards/c0-s0/checkpoints.parquet"),
    "shards/c0-s0/weights.h5": lambda zoo: read_weights(zoo.path, "c0-s0"),
}


@IN_PLACE
@pytest.mark.parametrize("name", READERS)
def test_what_stands_in_the_place_of_a_file_is_not_read(shard, sample, name, make):
    (sample.path / name).unlink(missing_ok=True)
    make(sample.path / name)
    with pytest.raises(IntegrityError, match=rf"{name}: .*(not a regular file|a folder|a link)"):
        READERS[name](sample.folder)
    verify(sample.path)


@IN_PLACE
def test_work_of_a_build_that_is_no_file_is_not_read(sample, make):
    for name in ("lock", "token"):
        (sample.path / ".work" / name).unlink(missing_ok=True)
        make(sample.path / ".work" / name)
    assert builder_of(sample.path) is None
    with pytest.raises(IntegrityError, match="token"):
        check_token(sample.path, "0")


def test_a_shard_and_its_files_are_no_links_out_of_the_zoo(shard, sample, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(shard, elsewhere)
    for name in (*sorted(p.name for p in shard.iterdir()), ""):
        place = shard / name if name else shard
        kept = place.rename(tmp_path / "kept")
        place.symlink_to(elsewhere / name)
        with pytest.raises(IntegrityError, match=f"{place}: is a link"):
            read_weights(sample.path, "c0-s0")
        assert "is a link" in str(verify(sample.path).damaged[0])
        place.unlink()
        kept.rename(place)
    assert not verify(sample.path).damaged
    (tmp_path / "linked").symlink_to(sample.path)
    assert read_weights(tmp_path / "linked", "c0-s0").shape == SHAPE


def test_a_table_of_rows_that_take_no_bytes_is_not_read(tmp_path):
    schema = pa.schema({"model_id": pa.string()}, metadata={b"zoogen.format_version": b"1"})
    group = pa.table({"model_id": pa.DictionaryArray.from_arrays(np.zeros(1 << 20, np.int32), ["a"]).cast(pa.string())})
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="zstd") as writer:
        for _ in range(30):
            writer.write_table(group.cast(schema))
    with pytest.raises(IntegrityError, match=r"31,457,280 rows in [\d,]+ bytes, more than any table has"):
        read_parquet(tmp_path / "t.parquet", {"model_id": pa.string()})


def regions(file):
    del file["epoch"]
    kind = h5py.regionref_dtype
    file.create_dataset("epoch", data=np.array([file["weights"].regionref[:2]] * 12, dtype=kind), dtype=kind)


def fields(file):
    del file["weights"]
    file.create_dataset("weights", data=np.zeros(12, [("a", "<f4", (20,)), ("b", "<f4")]))


def text_of_fields(file):
    del file["model_id"]
    file.create_dataset("model_id", data=np.zeros(12, [("a", "S16"), ("b", "S16")]))


def compressed(name):
    def spoil(file):
        data = file[name][()]
        del file[name]
        file.create_dataset(name, data=data, chunks=data.shape, compression="gzip")

    spoil.__name__ = f"compressed {name}"
    return spoil


COMPRESSED = [compressed(name) for name in ("weights", "model_id", "epoch", "side/int64")]


def one_huge_chunk(file):
    del file["test_predictions"]
    data = np.zeros((12, 1 << 24), np.uint8)
    file.create_dataset("test_predictions", data=data, chunks=data.shape, compression="gzip")


def real_bomb(file):
    """Zeros whose compressed chunks are really there."""
    del file["test_predictions"]
    file.create_dataset("test_predictions", (12, 1 << 25), "u1", chunks=(1, 1 << 25), compression="gzip", fillvalue=0)
    for row in range(12):
        file["test_predictions"][row] = 0


@pytest.mark.parametrize(
    "spoil", [regions, fields, text_of_fields, one_huge_chunk, *COMPRESSED], ids=lambda f: f.__name__
)
def test_a_weights_file_of_other_kinds_of_data_is_refused(shard, sample, spoil):
    with h5py.File(shard / "weights.h5", "r+") as file:
        spoil(file)
    told = json.loads((shard / "shard.json").read_text())
    if spoil is one_huge_chunk:
        told["datasets"]["weights.h5"]["test_predictions"]["shape"] = [12, 1 << 24]
    sign(shard, datasets=told["datasets"])
    with pytest.raises(IntegrityError, match=r"weights\.h5"):
        read_weights(sample.path, "c0-s0")
    assert problems_of(shard)


def test_a_bomb_that_is_really_there_costs_what_is_asked_of_it(shard, sample):
    """What deflate can do at most is admitted, 1,000 : 1: a reader takes the rows that it asks for, not all."""
    with h5py.File(shard / "weights.h5", "r+") as file:
        real_bomb(file)
    told = json.loads((shard / "shard.json").read_text())
    told["datasets"]["weights.h5"]["test_predictions"]["shape"] = [12, 1 << 25]
    sign(shard, datasets=told["datasets"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_weights(sample.path, "c0-s0").shape == SHAPE
    with ShardReader(shard) as reader:
        assert reader.predictions([0]).shape == (1, 1 << 25)
    verify(sample.path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB; all rows are 400 MB
