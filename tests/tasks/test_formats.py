"""Each data set's files are read right, checked against their declared checksums, and never run anything."""

import pickle
import shutil

import numpy as np
import pytest

from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.core.registry import TASKS
from zoogen.tasks.pickled_batch import read_batch

NAMES = ["mnist", "fashion-mnist", "kmnist", "usps", "svhn", "cifar10", "cifar100", "stl10", "eurosat", "tiny-imagenet"]
ARCHIVES = ["cifar10", "cifar100", "stl10", "eurosat", "tiny-imagenet"]


def load(name, fake, tmp_path, **arguments):
    return TASKS.make(name, {"val": 4, **arguments}).load(fake.root, tmp_path / "cache")


def assert_holds_what_was_written(data, fake):
    for part, indices in data.split().items():
        source = part if part in fake.images and part == "test" else "train"
        inputs, targets = data.tensors(part, "cpu")
        assert np.array_equal(inputs.numpy(), fake.images[source][indices])
        assert np.array_equal(targets.numpy(), fake.targets[source][indices])


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_targets_come_back_as_they_were_written(name, make_fake, tmp_path):
    fake = make_fake(name)
    arguments = {"test": 9} if name == "eurosat" else {}
    assert_holds_what_was_written(load(name, fake, tmp_path, **arguments), fake)


@pytest.mark.parametrize("name", ARCHIVES)
def test_unpacked_archives_give_the_same_data(name, make_fake, tmp_path):
    fake = make_fake(name, unpacked=True)
    arguments = {"test": 9} if name == "eurosat" else {}
    assert_holds_what_was_written(load(name, fake, tmp_path, **arguments), fake)


@pytest.mark.parametrize("name", ["mnist", "svhn", "usps"])
def test_reading_equals_torchvisions(name, make_fake, tmp_path):
    from torchvision import datasets

    fake = make_fake(name)
    if name == "mnist":
        import gzip

        for packed in (fake.root / "MNIST/raw").glob("*.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        oracle = datasets.MNIST(fake.root)
        images, targets = oracle.data.numpy()[:, None], oracle.targets.numpy()
    elif name == "svhn":
        oracle = datasets.SVHN.__new__(datasets.SVHN)  # its checksums are those of the real files
        oracle.split_list = {"train": ["", "train_32x32.mat", None]}
        oracle.__init__(fake.root)
        images, targets = oracle.data, oracle.labels
    else:
        oracle = datasets.USPS(fake.root)
        images, targets = oracle.data[:, None], np.array(oracle.targets)
    inputs, found = TASKS.make(name, {"val": 0}).load(fake.root, tmp_path / "cache").tensors("train", "cpu")
    assert np.array_equal(inputs.numpy(), images)
    assert np.array_equal(found.numpy(), targets)


@pytest.mark.parametrize("name", ["mnist", "usps", "svhn", "cifar10", "stl10", "eurosat", "tiny-imagenet"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_named_with_both_checksums(name, damage, make_fake, tmp_path):
    fake = make_fake(name)
    source = TASKS.get(name).sources[0]
    path = fake.root / source.path
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": data, "truncate": data[: len(data) // 2], "empty": b""}[damage])
    with pytest.raises(IntegrityError) as caught:
        load(name, fake, tmp_path, **({"test": 9} if name == "eurosat" else {}))
    assert source.md5 in str(caught.value)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "cache").glob("tasks/*/"))


@pytest.mark.parametrize("name", ["cifar100", "stl10"])
def test_a_damaged_unpacked_file_is_named(name, make_fake, tmp_path):
    fake = make_fake(name, unpacked=True)
    path, published = TASKS.get(name).sources[0].members[-1]
    (fake.root / path).write_bytes((fake.root / path).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"{path} has md5 .* published is {published}"):
        load(name, fake, tmp_path)


@pytest.mark.parametrize("name", ["eurosat", "tiny-imagenet"])
def test_a_missing_or_broken_picture_of_an_unpacked_archive_is_an_error(name, make_fake, tmp_path):
    fake = make_fake(name, unpacked=True)
    arguments = {"test": 9} if name == "eurosat" else {}
    picture = sorted(p for p in fake.root.rglob("*_00*") if p.suffix in (".jpg", ".JPEG"))[0]
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=picture.name):
        load(name, fake, tmp_path, **arguments)
    picture.unlink()
    with pytest.raises(IntegrityError, match=r"published (are|is)"):
        load(name, fake, tmp_path, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_listed_with_place_checksum_and_address(name, tmp_path):
    with pytest.raises(EnvironmentFault) as caught:
        TASKS.make(name, {}).load(tmp_path / "nothing", tmp_path / "cache")
    for source in TASKS.get(name).sources:
        for word in (source.path, source.md5, source.urls[0], str(tmp_path / "nothing"), "ZOOGEN_DATA"):
            assert word in str(caught.value)


def test_unpacked_idx_files_are_checked_too(make_fake, tmp_path, monkeypatch):
    import gzip
    from dataclasses import replace

    from zoogen.tasks.sources import md5

    fake = make_fake("mnist")
    cls = TASKS.get("mnist")
    declared = []
    for source in cls.sources:
        packed = fake.root / source.path
        content = gzip.decompress(packed.read_bytes())
        packed.with_suffix("").write_bytes(content)
        packed.unlink()
        declared.append(replace(source, content_md5=md5(content)))
    monkeypatch.setattr(cls, "sources", tuple(declared))
    assert_holds_what_was_written(load("mnist", fake, tmp_path), fake)
    path = fake.root / declared[0].unpacked
    path.write_bytes(path.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(IntegrityError, match="images-idx3-ubyte has md5"):
        load("mnist", fake, tmp_path)


def test_another_packing_of_the_same_bytes_is_accepted_and_of_other_bytes_is_not(make_fake, tmp_path, monkeypatch):
    import bz2
    from dataclasses import replace

    from zoogen.tasks.sources import md5

    fake = make_fake("usps")
    cls = TASKS.get("usps")
    content = {s.path: bz2.decompress((fake.root / s.path).read_bytes()) for s in cls.sources}
    declared = tuple(replace(s, md5="0" * 32, content_md5=md5(content[s.path])) for s in cls.sources)
    monkeypatch.setattr(cls, "sources", declared)
    assert_holds_what_was_written(load("usps", fake, tmp_path), fake)
    (fake.root / "usps.bz2").write_bytes(bz2.compress(content["usps.bz2"].replace(b" 1:", b"  1:")))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(IntegrityError, match=r"usps\.bz2 has md5"):
        load("usps", fake, tmp_path)


class Bomb:
    """Pickles to a call of ``os.mkdir``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_batch_is_refused_before_it_runs_anything(protocol, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        read_batch(pickle.dumps({"data": Bomb(tmp_path / "ran")}, protocol))
    assert not (tmp_path / "ran").exists()


def test_a_hostile_batch_with_the_declared_checksum_is_an_integrity_error(make_fake, tmp_path, monkeypatch):
    from dataclasses import replace

    from zoogen.tasks.sources import md5

    fake = make_fake("cifar100", unpacked=True)
    cls = TASKS.get("cifar100")
    hostile = pickle.dumps({"data": Bomb(tmp_path / "ran")})
    (train, _), test = cls.sources[0].members
    (fake.root / train).write_bytes(hostile)
    monkeypatch.setattr(cls, "sources", (replace(cls.sources[0], members=((train, md5(hostile)), test)),))
    with pytest.raises(IntegrityError, match="mkdir"):
        load("cifar100", fake, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_written_by_python_3_are_read(protocol):
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    written = pickle.dumps({"data": data, "labels": [1, 2, 0]}, protocol)
    if protocol == 2:  # Python 3 needs a codec to put bytes into the old protocol; no published batch does
        with pytest.raises(pickle.UnpicklingError, match=r"_codecs\.encode"):
            read_batch(written)
    else:
        assert np.array_equal(read_batch(written)["data"], data)


def test_an_eps_file_named_jpg_is_not_given_to_ghostscript(make_fake, tmp_path):
    fake = make_fake("eurosat", unpacked=True)
    picture = sorted(fake.root.rglob("*.jpg"))[0]
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n")
    # Where Ghostscript is missing, Pillow's own refusal would look the same but for its words.
    with pytest.raises(IntegrityError, match=f"{picture.name} .* none of JPEG, PNG"):
        load("eurosat", fake, tmp_path, test=9)
