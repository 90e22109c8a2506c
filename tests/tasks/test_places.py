"""Options come before environment variables, and these before the defaults."""

from pathlib import Path

from zoogen.tasks import cache_root, data_root


def test_data_root_is_option_then_variable_then_cache(monkeypatch):
    monkeypatch.setenv("ZOOGEN_DATA", "/from/variable")
    assert data_root(Path("/from/option")) == Path("/from/option")
    assert data_root() == Path("/from/variable")
    monkeypatch.delenv("ZOOGEN_DATA")
    monkeypatch.setenv("ZOOGEN_CACHE", "/cache")
    assert data_root() == Path("/cache/data")


def test_cache_root_is_variable_then_xdg_then_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("ZOOGEN_CACHE", "~/mine")
    assert cache_root() == Path("/home/x/mine")
    monkeypatch.delenv("ZOOGEN_CACHE")
    assert cache_root() == Path("/xdg/zoogen")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("/home/x/.cache/zoogen")


def test_load_uses_the_variable(make_fake, tmp_path, monkeypatch):
    from zoogen.core.registry import TASKS

    fake = make_fake("mnist")
    monkeypatch.setenv("ZOOGEN_DATA", str(fake.root))
    assert TASKS.make("mnist", {"val": 4}).load(None, tmp_path / "cache").size("train") == 26
