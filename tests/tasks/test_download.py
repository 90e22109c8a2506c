"""Download from a local server: the right file is kept, anything else is refused and not left behind."""

import functools
import http.server
import threading
from dataclasses import replace

import numpy as np
import pytest

from zoogen.core.errors import EnvironmentFault, IntegrityError
from zoogen.core.registry import TASKS


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


@pytest.fixture
def served(make_fake, monkeypatch):
    """A task whose files a server on this machine holds, and the folder that it serves."""
    fake = make_fake("usps")
    handler = functools.partial(Quiet, directory=str(fake.root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    cls = TASKS.get("usps")
    sources = tuple(replace(s, urls=(f"{address}missing/{s.path}", address + s.path)) for s in cls.sources)
    monkeypatch.setattr(cls, "sources", sources)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


def test_missing_files_are_fetched_from_the_first_address_that_answers(served, tmp_path):
    task = TASKS.make("usps", {"val": 4})
    data = task.load(tmp_path / "new", tmp_path / "cache", download=True)
    assert np.array_equal(data.tensors("test", "cpu")[0].numpy(), served.images["test"])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["usps.bz2", "usps.t.bz2"]


def test_without_permission_nothing_is_fetched(served, tmp_path):
    with pytest.raises(EnvironmentFault, match="2 source file"):
        TASKS.make("usps", {"val": 4}).load(tmp_path / "new", tmp_path / "cache")
    assert not (tmp_path / "new").exists()


def test_a_wrong_file_from_the_server_is_refused_and_not_kept(served, tmp_path):
    (served.root / "usps.bz2").write_bytes(b"something else")
    published = TASKS.get("usps").sources[0].md5
    with pytest.raises(IntegrityError, match=f"md5 .* published is {published}"):
        TASKS.make("usps", {"val": 4}).load(tmp_path / "new", tmp_path / "cache", download=True)
    assert not list((tmp_path / "new").iterdir())


def test_no_answer_lists_every_address_tried(served, tmp_path):
    for path in served.root.glob("usps*"):
        path.unlink()
    with pytest.raises(EnvironmentFault) as caught:
        TASKS.make("usps", {"val": 4}).load(tmp_path / "new", tmp_path / "cache", download=True)
    for word in (*TASKS.get("usps").sources[0].urls, "404", str(tmp_path / "new" / "usps.bz2")):
        assert word in str(caught.value)
