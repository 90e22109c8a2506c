"""``zoogen import``: what it prints, its exit codes, and that the other commands take what it made."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from published_zoos import config, write_trial


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "mnist"
    for seed in (1, 2):
        write_trial(folder / f"NN_tune_trainable_{seed}", config(seed=seed), epochs=1)
    (folder / "NN_tune_trainable_3").mkdir()
    (folder / "NN_tune_trainable_3/params.json").write_text("{}")
    return folder


def test_an_import_says_what_came_and_what_did_not_and_every_command_takes_it(zoogen, published, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mnist"), "zip", published.parent, "mnist")
    out = tmp_path / "zoo"
    code, told, notes = zoogen("import", archive, "--from", "ray-tune", "--out", out)
    assert code == 0, notes
    assert f"{out}: 2 models, 4 states" in told
    assert "1 model: has no checkpoints" in told
    assert "unit 1 of 1: 2 models, 4 states" in notes
    assert zoogen("verify", out)[:2] == (0, f"{out}: complete; 2 models, 4 states in 1 shard, every digest is right\n")
    code, told, _ = zoogen("info", out)
    assert code == 0
    assert "cnn-s with 2,464 parameters (2 models)" in told
    assert "Imported from mnist.zip (ray-tune)" in told
    assert notes.splitlines()[0] == "ray-tune: 2 models"
    assert "complete already" not in notes
    code, again, notes = zoogen("import", archive, "--out", out)  # the kind is recognised
    assert (code, again.splitlines()[0]) == (0, f"{out}: 2 models, 4 states")
    assert notes.splitlines() == ["ray-tune: 2 models", f"{out}: complete already"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "there is no folder or archive"),
        (("mnist", "--from", "ray"), "unknown kind of source 'ray'"),
        (("mnist/NN_tune_trainable_3", "--from", "ray-tune"), "holds no model that can be imported"),
        (("mnist/NN_tune_trainable_3",), "say what it is (--from KIND); known: "),
    ],
)
def test_a_source_that_is_none_is_a_mistake_of_the_user(zoogen, published, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(published.parent)
    code, _, err = zoogen("import", *arguments, "--out", tmp_path / "zoo")
    assert code == 2
    assert says in err
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder"])
@pytest.mark.parametrize("kind", [(), ("--from", "safetensors")])
def test_a_zoo_is_no_source(zoogen, small_zoo, tmp_path, form, kind):
    source = small_zoo
    if form != "folder":
        within = (small_zoo,) if form == "zip" else (small_zoo.parent, small_zoo.name)
        source = shutil.make_archive(str(tmp_path / "zoo"), "zip", *within)
    code, _, err = zoogen("import", source, *kind, "--out", tmp_path / "out")
    assert code == 2
    assert "is a zoo already" in err
    assert "zoogen.open" in err
    assert not (tmp_path / "out").exists()


def test_archives_in_a_folder_are_named(zoogen, published, tmp_path):
    """Nothing is imported where they are all there is; beside models they are told and recorded."""
    folder = tmp_path / "downloads"
    shutil.make_archive(str(folder / "b"), "zip", published.parent, published.name)
    shutil.make_archive(str(folder / "a"), "gztar", published.parent, published.name)
    for kind in ((), ("--from", "ray-tune")):
        code, _, err = zoogen("import", folder, *kind, "--out", tmp_path / "zoo")
        assert code == 2
        assert f"it holds a.tar.gz, b.zip; give that: zoogen import {folder / 'a.tar.gz'}" in err
    shutil.copytree(published, folder / published.name)
    code, told, err = zoogen("import", folder, "--out", tmp_path / "zoo")
    assert code == 0, err
    assert "2 archives: is not read in a folder; import it by itself" in told
    assert '"key": "b.zip"' in (tmp_path / "zoo/logs/import.jsonl").read_text()


def test_help_names_every_kind_and_loads_nothing_heavy():
    from zoogen.cli.importing import EXAMPLES, KINDS, import_
    from zoogen.importers.source import SOURCES

    probe = "import sys\nfrom zoogen.cli import main\nsys.argv = ['zoogen', *sys.argv[1:]]\n"
    probe += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    shown = {}
    for arguments in (("import", "--help"), ("--help",)):
        done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=True)
        shown[arguments] = " ".join(done.stdout.split()), {name.split(".")[0] for name in done.stderr.split()}
        assert not shown[arguments][1] & {"torch", "pandas", "h5py", "ray", "pyarrow"}
    assert f"Layout of SOURCE: {', '.join(SOURCES.names())}. [default: recognised]" in shown["import", "--help"][0]
    assert "zoogen.importers" not in done.stderr.split()
    for kind in SOURCES.names():
        assert f" {kind} {KINDS[kind]}" in shown["import", "--help"][0]
    for line in EXAMPLES:
        assert line in shown["import", "--help"][0]
        import_.make_context("import", line.split()[2:])
    assert "..." not in shown["--help",][0].partition("Commands:")[2]


def test_without_out_nothing_is_read(zoogen, published):
    code, _, err = zoogen("import", published)
    assert code == 2
    assert "--out" in err
