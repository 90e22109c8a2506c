"""Archives made to harm: each is refused by name, before any member is read, and nothing appears anywhere."""

import gzip
import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile

import pytest

from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.containers.files import Limits, open_files

SMALL = Limits(members=50, ratio=200, slack=1 << 16)


def zip_of(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("trial/params.json", "{}")
        for name, data in members:
            file.writestr(name, data)
    return path


def zip_link(path):
    info = zipfile.ZipInfo("trial/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zip_of(path, (info, "/etc/passwd"))


def zip_device(path):
    info = zipfile.ZipInfo("trial/device")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    return zip_of(path, (info, ""))


def zip_twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        return zip_of(path, ("trial/params.json", "{}"))


def zip_same_place_twice(path):
    return zip_of(path, ("trial/./params.json", "{}"))


def zip_nul(path):
    zip_of(path, ("trial/a_b", "x"))
    path.write_bytes(path.read_bytes().replace(b"trial/a_b", b"trial/a\x00b"))
    return path


def zip_bomb(path):
    return zip_of(path, ("trial/bomb", b"\0" * (4 << 20)), compression=zipfile.ZIP_DEFLATED)


def zip_overlapping(path):
    """Two entries of the directory that share one member's bytes, as bombs without nesting do."""
    zip_of(path, ("trial/a", b"x" * 100), ("trial/b", b"y" * 100))
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    first = data.index(b"trial/a", start) - 46
    second = data.index(b"trial/b", start) - 46
    offset = data[first + 42 : first + 46]
    path.write_bytes(data[: second + 42] + offset + data[second + 46 :])
    return path


def zip_false_size(path):
    """The directory says that a member inflates to four gigabytes."""
    zip_of(path, ("trial/a", b"x" * 100))
    data = bytearray(path.read_bytes())
    place = data.index(b"trial/a", data.index(b"PK\x01\x02")) - 46
    struct.pack_into("<I", data, place + 24, (1 << 32) - 2)
    path.write_bytes(bytes(data))
    return path


def zip_two_sizes(path):
    """A member stored as it is, of which the directory says that it goes on into the next."""
    zip_of(path, ("trial/a", b"x" * 100), ("trial/b", b"y" * 100))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"trial/a", data.index(b"PK\x01\x02")) - 46 + 24, 200)
    path.write_bytes(bytes(data))
    return path


def zip_far_away(path):
    """The directory puts a member beyond what 63 bits count."""
    zip_of(path)
    data = bytearray(path.read_bytes())
    entry, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + 12)
    struct.pack_into("<H", data, entry + 30, 12)
    struct.pack_into("<I", data, entry + 42, 0xFFFFFFFF)
    name_end = entry + 46 + len("trial/params.json")
    data[name_end:name_end] = struct.pack("<HHQ", 1, 8, (1 << 63) + 5)
    path.write_bytes(bytes(data))
    return path


def zip_beyond(path):
    zip_of(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 42, 0x7FFFFFF0)
    path.write_bytes(bytes(data))
    return path


def zip_encrypted(path):
    zip_of(path, ("trial/a", b"x"))
    data = bytearray(path.read_bytes())
    data[data.index(b"trial/a", data.index(b"PK\x01\x02")) - 46 + 8] |= 1
    path.write_bytes(bytes(data))
    return path


def tar_of(path, *members, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, kind, linked, data in [("trial/params.json", tarfile.REGTYPE, "", b"{}"), *members]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, linked, len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def regular(name, data=b"x"):
    return (name, tarfile.REGTYPE, "", data)


def tar_false_size(path):
    """A header that claims a terabyte of member."""
    info = tarfile.TarInfo("trial/huge")
    info.size = 1 << 40
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024))
    return path


def tar_huge_header(path):
    """A name of a gigabyte: readers of tar read it in one piece."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"a" * (1 << 16)))
    return path


def tar_pax(path, **headers):
    """A file of whose header a PAX header says something else, with one behind it."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, pax in (("trial/x", headers), ("trial/y", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 2000, pax
            file.addfile(info, io.BytesIO(b"1\n" * 1000))
    return path


def tar_pax_for_all(path):
    """A size that every file is said to have."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"size": "7"}) as file:
        info = tarfile.TarInfo("trial/x")
        info.size = 2000
        file.addfile(info, io.BytesIO(b"x" * 2000))
    return path


def tar_nested_headers(path):
    """A long name of a long name, a thousand times."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    path.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 1000)
    return path


HOSTILE = {
    "absolute.zip": (lambda p: zip_of(p, ("/etc/evil", "x")), "'/etc/evil' has an absolute path"),
    "drive.zip": (lambda p: zip_of(p, ("C:/evil", "x")), "'C:/evil' has an absolute path"),
    "parent.zip": (lambda p: zip_of(p, ("trial/../../evil", "x")), "leads out of its folder"),
    "backslash.zip": (lambda p: zip_of(p, ("..\\evil", "x")), "has a backslash"),
    "control.zip": (lambda p: zip_of(p, ("trial/a\x1b[2Jb", "x")), "control characters"),
    "newline.zip": (lambda p: zip_of(p, ("trial/a\nb", "x")), "control characters"),
    "nul.zip": (zip_nul, "control characters"),
    "link.zip": (zip_link, "'trial/link' is a link"),
    "device.zip": (zip_device, "'trial/device' is no regular file"),
    "twice.zip": (zip_twice, "'trial/params.json' stands twice"),
    "again.zip": (zip_same_place_twice, "'trial/params.json' stands twice"),
    "bomb.zip": (zip_bomb, "'trial/bomb' is a decompression bomb"),
    "overlap.zip": (zip_overlapping, "overlaps the member before it"),
    "size.zip": (zip_false_size, "is a decompression bomb"),
    "sizes.zip": (zip_two_sizes, "'trial/a' is stored as it is, yet has two sizes"),
    "far-away.zip": (zip_far_away, "'trial/params.json' lies beyond the end of the archive"),
    "beyond.zip": (zip_beyond, "'trial/params.json' lies beyond the end of the archive"),
    "lzma.zip": (lambda p: zip_of(p, compression=zipfile.ZIP_LZMA), "is compressed by method 14"),
    "bzip2.zip": (lambda p: zip_of(p, compression=zipfile.ZIP_BZIP2), "is compressed by method 12"),
    "encrypted.zip": (zip_encrypted, "is encrypted"),
    "long.zip": (lambda p: zip_of(p, ("a/" * 4000 + "b", "x")), "has a name of 8,001 characters"),
    "many.zip": (lambda p: zip_of(p, *((f"trial/{i}", "") for i in range(60))), "more than 50 members"),
    "absolute.tar": (lambda p: tar_of(p, regular("/etc/evil")), "'/etc/evil' has an absolute path"),
    "parent.tar": (lambda p: tar_of(p, regular("trial/../../evil")), "leads out of its folder"),
    "control.tar": (lambda p: tar_of(p, regular("trial/a\rb")), "control characters"),
    "symlink.tar": (lambda p: tar_of(p, ("trial/s", tarfile.SYMTYPE, "/etc", b"")), "'trial/s' is a link"),
    "hardlink.tar": (
        lambda p: tar_of(p, ("trial/h", tarfile.LNKTYPE, "trial/params.json", b"")),
        "'trial/h' is a link",
    ),
    "device.tar": (lambda p: tar_of(p, ("trial/d", tarfile.CHRTYPE, "", b"")), "'trial/d' is no regular file"),
    "block.tar": (lambda p: tar_of(p, ("trial/d", tarfile.BLKTYPE, "", b"")), "is no regular file"),
    "fifo.tar": (lambda p: tar_of(p, ("trial/f", tarfile.FIFOTYPE, "", b"")), "is no regular file"),
    "twice.tar": (lambda p: tar_of(p, regular("trial/params.json")), "'trial/params.json' stands twice"),
    "many.tar": (lambda p: tar_of(p, *(regular(f"trial/{i}", b"") for i in range(60))), "more than 50 members"),
    "bomb.tar.gz": (lambda p: tar_of(p, regular("trial/b", b"\0" * (8 << 20)), mode="w:gz"), "decompression bomb"),
    "bomb.tar.bz2": (lambda p: tar_of(p, regular("trial/b", b"\0" * (8 << 20)), mode="w:bz2"), "decompression bomb"),
    "bomb.tar.xz": (lambda p: tar_of(p, regular("trial/b", b"\0" * (8 << 20)), mode="w:xz"), "decompression bomb"),
    "size.tar.gz": (tar_false_size, "is a decompression bomb"),
    "no-size.tar": (lambda p: tar_pax(p, size="abc"), "'trial/x' has a size that is no number"),
    "negative.tar": (lambda p: tar_pax(p, size="-2048"), "'trial/x' has a size that is no number"),
    "size-for-all.tar": (tar_pax_for_all, "'trial/x' has two sizes"),
    "real-size.tar": (lambda p: tar_pax(p, **{"GNU.sparse.realsize": "99"}), "'trial/x' has two sizes"),
    "map.tar": (lambda p: tar_pax(p, **{"GNU.sparse.map": "0,x"}), "is not readable as tar"),
    "sparse.tar": (lambda p: tar_pax(p, **{"GNU.sparse.map": "0,5"}), "'trial/x' is no regular file"),
    "sparse-1.tar": (
        lambda p: tar_pax(p, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        "'trial/x' is no regular file",
    ),
    "nested.tar": (tar_nested_headers, "is not readable as tar"),
    "header.tar.gz": (tar_huge_header, "a header asks for 1,073,741,824 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_with_member_and_reason(name, tmp_path):
    make, reason = HOSTILE[name]
    archive = make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError) as refused:
        open_files(archive, SMALL)
    assert reason in str(refused.value)
    assert str(archive) in str(refused.value)
    assert str(refused.value).replace("\n", "").isprintable()
    assert sorted(tmp_path.rglob("*")) == before


def test_honest_archives_give_every_file_as_it_is(tmp_path):
    data = os.urandom(3 << 20)
    makers = {
        "a.zip": lambda p: zip_of(p, ("./trial/x", data), ("trial/e/", ""), compression=zipfile.ZIP_DEFLATED),
        **{f"a.tar{end}": (lambda p, m=mode: tar_of(p, regular("./trial/x", data), mode=m))
           for end, mode in {"": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.items()},
    }  # fmt: skip
    for name, make in makers.items():
        files = open_files(make(tmp_path / name))
        assert dict(files.sizes) == {"trial/params.json": 2, "trial/x": len(data)}
        assert files.read("trial/x") == data
        assert files.read("trial/params.json") == b"{}"  # backwards
        with pytest.raises(IntegrityError, match="expected at most 10"):
            files.read("trial/x", 10)
        files.close()


def test_a_flipped_byte_in_a_zip_is_told_when_the_member_is_read(tmp_path):
    data = bytearray(zip_of(tmp_path / "a.zip", ("trial/x", b"a" * 1000)).read_bytes())
    data[data.index(b"aaaa") + 100] ^= 1
    (tmp_path / "a.zip").write_bytes(bytes(data))
    files = open_files(tmp_path / "a.zip")
    with pytest.raises(IntegrityError, match=r"trial/x is damaged .*CRC"):
        files.read("trial/x")
    for start in (0, 100, 900, 100):  # wherever the range lies, and however often one is asked for
        with pytest.raises(IntegrityError, match=r"trial/x is damaged .*CRC"):
            files.read_range("trial/x", start, 4)


def test_a_member_of_a_zip_that_is_shorter_than_its_directory_says_is_told(tmp_path):
    zip_of(tmp_path / "a.zip", ("trial/x", b"a" * 1000), compression=zipfile.ZIP_DEFLATED)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<I", data, data.index(b"trial/x", data.index(b"PK\x01\x02")) - 46 + 24, 2000)
    (tmp_path / "a.zip").write_bytes(bytes(data))
    files = open_files(tmp_path / "a.zip")
    for read in (files.read, lambda name: files.read_range(name, 0, 1000)):
        with pytest.raises(IntegrityError, match=r"trial/x is damaged \(it has 1,000 bytes, not 2,000\)"):
            read("trial/x")


@pytest.mark.parametrize("compressed", [bytes, gzip.compress])
@pytest.mark.parametrize("cut", [0, 200, 512, 700, 1400, 2560, 2561, 3072, 3583])
def test_a_tar_that_ends_too_soon_is_told(tmp_path, cut, compressed):
    """In a header, behind it, in the data, and wherever the two blocks of the end are not whole."""
    whole = tar_of(tmp_path / "whole.tar", regular("trial/x", b"y" * 2000)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(compressed(whole[: 1024 + cut]))
    with pytest.raises(IntegrityError, match=r"cut\.tar: is damaged or cut off after member 'trial/(params.json|x)'"):
        open_files(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(compressed(whole[: 1024 + 3584]))
    assert open_files(tmp_path / "cut.tar").sizes.keys() == {"trial/params.json", "trial/x"}


@pytest.mark.parametrize("compressed", [bytes, gzip.compress])
def test_a_flipped_bit_in_a_header_of_a_tar_does_not_hide_what_is_behind_it(tmp_path, compressed):
    members = [regular(f"trial/{letter}") for letter in "abc"]
    data = bytearray(tar_of(tmp_path / "a.tar", *members).read_bytes())
    data[data.index(b"trial/b")] ^= 1
    (tmp_path / "a.tar").write_bytes(compressed(bytes(data)))
    with pytest.raises(IntegrityError, match="damaged or cut off after member 'trial/a'"):
        open_files(tmp_path / "a.tar")


def test_a_tar_behind_a_tar_is_not_left_out_in_silence(tmp_path):
    data = tar_of(tmp_path / "a.tar").read_bytes() + tar_of(tmp_path / "b.tar", regular("trial/x")).read_bytes()
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"after member 'trial/params.json' \(there is more behind the end mark"):
        open_files(tmp_path / "a.tar")


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=ustar"], ["--format=v7"], ["-b1"]])
def test_what_the_tar_of_the_system_writes_is_read(tmp_path, options):
    if not shutil.which("tar"):
        pytest.skip("there is no tar")
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/x").write_bytes(b"x" * 700)
    (tmp_path / "trial/empty").write_bytes(b"")
    subprocess.run(["tar", *options, "-cf", "a.tar", "trial"], cwd=tmp_path, check=True)
    files = open_files(tmp_path / "a.tar")
    assert dict(files.sizes) == {"trial/x": 700, "trial/empty": 0}
    assert files.read("trial/x") == b"x" * 700


@pytest.mark.parametrize(("mode", "place"), [("w:gz", -6), ("w:bz2", -4), ("w:xz", -14)])
def test_a_wrong_checksum_of_a_compressed_tar_is_told(tmp_path, mode, place):
    """All the data inflate as they were; only the sum behind them is another."""
    path = tar_of(tmp_path / "a.tar", regular("trial/x", os.urandom(3000)), mode=mode)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="damaged or cut off after member 'trial/x'"):
        open_files(path)
    path.write_bytes(bytes(data[:-3]))
    with pytest.raises(IntegrityError, match="damaged or cut off after member 'trial/x'"):
        open_files(path)


def test_zeros_without_end_behind_a_tar_are_not_read(tmp_path):
    tar_of(tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes() + bytes(16 << 20)))
    with pytest.raises(IntegrityError, match="inflates to more than"):
        open_files(tmp_path / "a.tar.gz", SMALL)


def test_links_of_a_folder_may_stay_in_it_but_not_leave_it(tmp_path):
    (tmp_path / "zoo/trial").mkdir(parents=True)
    (tmp_path / "zoo/trial/params.json").write_text("{}")
    (tmp_path / "zoo/latest").symlink_to("trial")
    assert list(open_files(tmp_path / "zoo").sizes) == ["trial/params.json"]
    (tmp_path / "zoo/out").symlink_to("/etc")
    with pytest.raises(IntegrityError, match="'out' is a link that leads out of the folder"):
        open_files(tmp_path / "zoo")
    (tmp_path / "zoo/out").unlink()
    os.mkfifo(tmp_path / "zoo/pipe")
    with pytest.raises(IntegrityError, match="'pipe' is no regular file"):
        open_files(tmp_path / "zoo")


@pytest.mark.parametrize("content", [b"hello", b"hello" * 200, b" PK\x03\x04 no zip"])
def test_what_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="neither a folder nor a zip or tar"):
        open_files(tmp_path / "file")
    with pytest.raises(UserError, match="there is no folder or archive"):
        open_files(tmp_path / "nothing")


@pytest.mark.parametrize("inner", [False, True], ids=["plain", "of zips"])
def test_a_zip_that_was_fetched_in_part_is_told_as_such(tmp_path, inner):
    """Of stored zips, as torch writes them, the last one's end may look like that of the whole."""
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 100)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as file:
        for number in range(3):
            file.writestr(f"zoo/{number}.pt", small.getvalue() if inner else b"x" * 100)
    whole = (tmp_path / "whole.zip").read_bytes()
    assert len(open_files(tmp_path / "whole.zip").sizes) == 3
    (tmp_path / "part.zip").write_bytes(whole[: whole.index(b"zoo/2.pt") - 10])
    told = r"part\.zip: begins as a zip, but its end is missing: the download is incomplete\nget the archive from its"
    with pytest.raises(IntegrityError, match=told):
        open_files(tmp_path / "part.zip")


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "zoo.zip").touch()
    with pytest.raises(UserError, match=r"zoo\.zip is empty"):
        open_files(tmp_path / "zoo.zip")


def test_a_range_of_a_file_is_the_same_part_of_it_wherever_it_lies(tmp_path):
    data = os.urandom(1 << 20)
    (tmp_path / "folder/trial").mkdir(parents=True)
    (tmp_path / "folder/trial/x").write_bytes(data)
    (tmp_path / "x.safetensors").write_bytes(data)
    places = [
        (tmp_path / "folder", "trial/x"),
        (tmp_path / "x.safetensors", "x.safetensors"),
        (zip_of(tmp_path / "stored.zip", ("trial/x", data), ("trial/y", b"y")), "trial/x"),
        (zip_of(tmp_path / "deflated.zip", ("trial/x", data), compression=zipfile.ZIP_DEFLATED), "trial/x"),
        (tar_of(tmp_path / "a.tar", regular("trial/x", data)), "trial/x"),
        (tar_of(tmp_path / "a.tar.gz", regular("trial/x", data), mode="w:gz"), "trial/x"),
    ]
    for path, name in places:
        files = open_files(path)
        for start, length in ((0, 8), (1 << 19, 70_000), ((1 << 20) - 5, 5), (3, 0)):
            assert files.read_range(name, start, length) == data[start : start + length], path
        for start, length in (((1 << 20) - 5, 6), (-1, 2), (0, -1)):
            with pytest.raises(IntegrityError, match="are not there"):
                files.read_range(name, start, length)
        assert files.read(name) == data
        files.close()


def test_a_pt_file_is_one_file_though_it_is_a_zip_inside(tmp_path):
    zip_of(tmp_path / "states.pt", ("trial/x", b"x"))
    files = open_files(tmp_path / "states.pt")
    assert list(files.sizes) == ["states.pt"]
    with pytest.raises(IntegrityError, match=r"states\.pt has \d+ bytes, expected at most 10"):
        files.read("states.pt", 10)


def test_a_compressed_tar_is_not_inflated_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr("zoogen.importers.containers.archives._AGAIN_AT_LEAST", 0)
    members = [regular(f"trial/{i}", os.urandom(2000)) for i in range(30)]
    for name, mode in {"a.tar": "w", "a.tar.gz": "w:gz"}.items():
        files = open_files(tar_of(tmp_path / name, *members, mode=mode))
        for _ in range(50):  # forwards, and back to the beginning for each round
            for place in range(0, 30, 10):
                assert files.read(f"trial/{place}") == members[place][3]

        def backwards(files=files):
            for place in [*reversed(range(30))] * 10:
                files.read(f"trial/{place}")

        if mode == "w":
            backwards()
        else:
            with pytest.raises(UserError, match="unpack it, and give its folder"):
                backwards()
        files.close()


def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("zoogen.importers.containers.files._memory", lambda: 10)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").write_bytes(b"123456")
    archives = zip_of(tmp_path / "a.zip", ("x", "123456")), tar_of(tmp_path / "a.tar", regular("x", b"123456"))
    for archive in (tmp_path / "folder", *archives):
        with pytest.raises(IntegrityError, match="x has 6 bytes, more than half of the memory"):
            open_files(archive).read("x")


def test_what_does_not_fit_into_memory_is_told_with_its_name(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    files = open_files(zip_of(tmp_path / "a.zip", ("x", "123456")))
    monkeypatch.setattr(zipfile.ZipFile, "read", full)
    with pytest.raises(IntegrityError, match=r"a\.zip: x does not fit into the memory"):
        files.read("x")
