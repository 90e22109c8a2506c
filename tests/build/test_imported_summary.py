"""What an import left out, summed up: how many, and why."""

import pytest

from zoogen.build.imported_summary import summed_up
from zoogen.importers.source import Skipped

NO_CODE = "is imported without code: "


def test_every_reason_of_few_is_told_whole_and_counted():
    task = "the size of its images is not recorded; name what it was trained on (--task)"
    skipped = [Skipped(f"r{i}", None, NO_CODE + task) for i in range(4)]
    skipped += [Skipped("m", None, NO_CODE + 'its record and tensors are those of no network here (type "mlp")')]
    skipped += [Skipped("m", epoch, "holds NaN or infinite numbers") for epoch in range(1200)]
    skipped += [Skipped("dataset.pt: trainset", None, "holds pairs of states", what="part")]
    skipped += [Skipped("m", None, f"has results that are of no stored state ({i}, kept)") for i in range(3)]
    assert summed_up(skipped) == [
        f"4 models: {NO_CODE}{task}",
        f'1 model: {NO_CODE}its record and tensors are those of no network here (type "mlp")',
        "1,200 checkpoints: holds NaN or infinite numbers",
        "1 part: holds pairs of states",
        "3 models: has results that are of no stored state",
    ]


def test_of_many_reasons_of_a_kind_the_first_one_is_told():
    skipped = [Skipped(f"m{i}", 0, f"is not a state dict: byte {i} is odd") for i in range(5)]
    assert summed_up(skipped) == ["5 checkpoints: is not a state dict: byte 0 is odd; this is the first of them"]


@pytest.mark.parametrize("quote", ["", "'"])
def test_of_a_long_path_in_a_reason_its_middle_is_left_out(quote):
    path = f"{quote}zoos/{'seed_' * 60}/checkpoint_000050/checkpoints{quote}"
    why = "is damaged (Bad CRC-32 for file); get the archive from its source, or leave it out"
    (line,) = summed_up([Skipped("m", 50, f"mnist.zip: member {path} {why}")])
    assert len(line) < 220
    assert line.startswith(f"1 checkpoint: mnist.zip: member {quote}zoos/")
    assert line.endswith(f"_000050/checkpoints{quote} {why}")


def test_a_long_reason_is_cut():
    (line,) = summed_up([Skipped("m", None, "has no usable checkpoint: " + "x" * 5000 + "\nand more")])
    assert len(line) < 220
    assert line.endswith("xxx ...")
