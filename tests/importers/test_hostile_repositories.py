"""Repositories made to harm, and damaged ones: refused or left out with file and reason, and nothing beyond is read."""

import json

import pytest
import torch
from published_repositories import vit, write_model
from safetensors.torch import save_file

from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped


def models(path):
    with open_source(path) as source:
        return list(source.models())


@pytest.mark.parametrize("line", ["../../etc", "/etc/passwd", "a/b/c", "a b", "a/..", "-x", "a/b@../c"])
def test_a_list_names_repositories_and_no_paths(tmp_path, line):
    (tmp_path / "repos.txt").write_text(f"me/model\n{line}\n")
    with pytest.raises(UserError, match="line 2 names no repository"):
        models(tmp_path / "repos.txt")


def test_a_listed_folder_that_leads_out_is_refused(tmp_path):
    write_model(tmp_path / "elsewhere", vit(0))
    (tmp_path / "hub/me").mkdir(parents=True)
    (tmp_path / "hub/me/model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "hub/repos.txt").write_text("me/model\n")
    with pytest.raises(IntegrityError, match="'me/model' is a link that leads out of the folder"):
        models(tmp_path / "hub/repos.txt")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret.safetensors"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, target):
    save_file(vit(0), tmp_path / "secret.safetensors")
    (tmp_path / "hub/me/model").mkdir(parents=True)
    (tmp_path / "hub/me/model/model.safetensors").symlink_to(target)
    with pytest.raises(IntegrityError, match=r"'me/model/model\.safetensors' is a link that leads out of the folder"):
        models(tmp_path / "hub")


def test_a_circle_of_links_leads_nowhere(tmp_path):
    write_model(tmp_path / "me/model", vit(0))
    (tmp_path / "me/a.safetensors").symlink_to("b.safetensors")
    (tmp_path / "me/b.safetensors").symlink_to("a.safetensors")
    try:
        assert [m.key for m in models(tmp_path)] == ["me/model"]
    except IntegrityError as error:  # Python before 3.13 tells circles
        assert "is a link that leads nowhere" in str(error)  # noqa: PT017


INDICES = {
    "a folder above": ({"weight_map": {"w": "../b.safetensors"}}, "names the part '../b.safetensors', which is no"),
    "an absolute path": (
        {"weight_map": {"w": "/etc/b.safetensors"}},
        "names the part '/etc/b.safetensors', which is no",
    ),
    "another kind": ({"weight_map": {"w": "pytorch_model.bin"}}, "names the part 'pytorch_model.bin', which is no"),
    "no names": ({"weight_map": {"w": 1}}, "is an index without a weight_map of names"),
    "no map": ({}, "is an index without a weight_map"),
    "a list": ([], "is no mapping"),
    "missing part": ({"weight_map": {"w": "c.safetensors"}}, "names the part c.safetensors, which is not there"),
    "other tensors": ({"weight_map": {"v": "b.safetensors"}}, "names other tensors for the part b.safetensors"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_lies_is_left_out_with_its_reason(tmp_path, name):
    index, says = INDICES[name]
    for folder in ("zoo", "zoo/me"):
        (tmp_path / folder).mkdir()
        save_file({"w": torch.ones(2)}, tmp_path / folder / "b.safetensors")
    (tmp_path / "zoo/me/model.safetensors.index.json").write_text(json.dumps(index))
    skipped = [m for m in models(tmp_path / "zoo") if isinstance(m, Skipped)]
    assert [s.key for s in skipped] == ["me"]
    assert skipped[0].reason.startswith(f"has no usable checkpoint: me/model.safetensors.index.json {says}")


def test_damaged_parts_records_and_cards_are_told_and_the_rest_is_read(tmp_path):
    write_model(tmp_path / "me/good", vit(0))
    (tmp_path / "me/good/config.json").write_text('{"a":' * 100_000)
    (tmp_path / "me/good/README.md").write_text("---\nlicense: !!python/object/apply:os.system ['echo']\n---\n")
    (tmp_path / "me/bad").mkdir()
    (tmp_path / "me/bad/model.safetensors").write_bytes(b"no")
    save_file(vit(1), tmp_path / "me/model-00001-of-00002.safetensors")
    found = {m.key: m for m in models(tmp_path)}
    assert [n.partition(" (")[0] for n in found["me/good"].notes] == [
        "config.json is not readable as JSON", "README.md is left out",
    ]  # fmt: skip
    assert found["me/bad"].reason == "has no usable checkpoint: me/bad/model.safetensors has 2 bytes, " + (
        "which is too short for a safetensors file"
    )
    assert "whose index" in found["me/model-00001-of-00002.safetensors"].reason
