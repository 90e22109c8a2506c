"""Only files are opened as files, and no further than asked for."""

import os
import socket

import pytest

from zoogen.core.errors import IntegrityError
from zoogen.core.regular import open_regular, read_regular


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def circle(path):
    path.symlink_to(path)


def socket_(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("make", [pipe, device, folder, circle, socket_], ids=lambda f: f.__name__)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(tmp_path / "f" if make is not socket_ else type(tmp_path)("f"))
    with pytest.raises(IntegrityError, match="f: "):
        open_regular(tmp_path / "f")


def test_a_file_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert read_regular(tmp_path / "f", 5) == b"12345"
    with pytest.raises(IntegrityError, match="more than the 4 bytes"):
        read_regular(tmp_path / "f", 4)


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "f").write_bytes(b"1")
    (tmp_path / "link").symlink_to("f")
    assert read_regular(tmp_path / "link", 1) == b"1"


def test_an_absent_file_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "f")
