"""Archives made to harm: each is refused by name, before any member is read, and nothing appears anywhere."""

import gzip
import io
import os
import stat
import struct
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
    with pytest.raises(IntegrityError, match=r"trial/x is damaged .*CRC"):
        open_files(tmp_path / "a.zip").read("trial/x")


@pytest.mark.parametrize("cut", [700, 1400])
def test_a_tar_that_ends_too_soon_is_told(tmp_path, cut):
    whole = tar_of(tmp_path / "whole.tar", regular("trial/x", b"y" * 2000)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 1024 + cut])
    with pytest.raises(IntegrityError, match=r"cut\.tar"):
        open_files(tmp_path / "cut.tar").read("trial/x")


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


@pytest.mark.parametrize("content", [b"", b"hello" * 200, b"PK\x03\x04 no zip"])
def test_what_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="neither a folder nor a zip or tar"):
        open_files(tmp_path / "file")
    with pytest.raises(UserError, match="there is no folder or archive"):
        open_files(tmp_path / "nothing")


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
