"""Class folders of images of any size: what is declared is compared with what is there."""

import io

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets, transforms

from zoogen.core.contracts import describe_task
from zoogen.core.errors import EnvironmentFault, IntegrityError, UserError
from zoogen.core.registry import TASKS
from zoogen.tasks.image_folder import content_digest
from zoogen.tasks.pictures import folder_tree

DECLARED = {"folder": "pets", "size": 20, "classes": 3, "train": 12, "test": 6}


@pytest.fixture
def root(tmp_path):
    """Three classes, 4 training and 2 test images each, in several formats, modes and sizes."""
    rng = np.random.default_rng(0)
    i = 0
    for part, n in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "eel"):
            for k in range(n):
                i += 1
                suffix = ("png", "JPEG", "bmp", "webp")[i % 4]
                path = tmp_path / "data" / "pets" / part / name / f"{k}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (22 + i, 40 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels if i % 3 else pixels[..., 0]).save(path)
    (tmp_path / "data" / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "data"


def load(root, **arguments):
    return TASKS.make("image-folder", {**DECLARED, **arguments}).load(root, root.parent / "cache")


@pytest.mark.parametrize(("crop", "side"), [(None, 20), (16, 16)])
def test_images_are_those_of_torchvisions_image_folder(root, crop, side):
    steps = [transforms.Resize(20), transforms.CenterCrop(side)]
    data = load(root, crop=crop)
    for part in ("train", "test"):
        oracle = datasets.ImageFolder(root / "pets" / part, transforms.Compose(steps))
        inputs, targets = data.tensors(part, "cpu")
        assert targets.tolist() == oracle.targets
        for (image, _), found in zip(oracle, inputs, strict=True):
            assert np.array_equal(found.numpy().transpose(1, 2, 0), np.asarray(image))


def test_one_channel_is_torchvisions_grayscale(root):
    steps = transforms.Compose([transforms.Grayscale(), transforms.Resize(20), transforms.CenterCrop(20)])
    oracle = datasets.ImageFolder(root / "pets" / "test", steps)
    inputs, _ = load(root, channels=1).tensors("test", "cpu")
    assert inputs.shape == (6, 1, 20, 20)
    for (image, _), found in zip(oracle, inputs, strict=True):
        assert np.array_equal(found[0].numpy(), np.asarray(image))


def test_wrong_counts_are_answered_with_the_right_ones(root):
    with pytest.raises(
        UserError, match=r"declared is classes: 4, train: 99; .* holds classes: 3, train: 12: write that"
    ):
        load(root, classes=4, train=99)


def test_a_class_of_the_test_part_alone_is_an_error(root):
    (root / "pets" / "test" / "dog").rename(root / "pets" / "test" / "emu")
    with pytest.raises(UserError, match="class 'emu' has test images, but no training images"):
        load(root)


def test_an_image_outside_the_class_folders_is_an_error(root):
    (root / "pets" / "train" / "cat" / "1.bmp").rename(root / "pets" / "train" / "1.bmp")
    with pytest.raises(UserError, match=r"train/1\.bmp lies in no class folder"):
        load(root)


def test_a_missing_folder_says_what_to_place_where(root):
    with pytest.raises(EnvironmentFault, match=r"birds/\{train,test\}/<class>/ below the data root"):
        load(root, folder="birds")


def test_a_damaged_image_is_named(root):
    picture = next((root / "pets").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(IntegrityError, match=f"{picture.parent.name}/{picture.name} is damaged or no image"):
        load(root)


def test_an_image_that_would_fill_the_memory_is_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(IntegrityError, match="decompression bomb"):
        load(root)


def test_a_dangling_link_is_no_traceback(root):
    (root / "pets" / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(EnvironmentFault, match=r"gone\.png"):
        load(root)


def test_a_declared_digest_is_checked_and_names_both(root):
    right = content_digest(folder_tree(root / "pets"))
    assert load(root, digest=right).size("train") == 12
    with pytest.raises(IntegrityError, match=f"has the digest {right}, declared is {'0' * 32}"):
        load(root, digest="0" * 32)


def test_a_changed_file_is_decoded_again_and_changes_the_fingerprint(root):
    before = load(root)
    picture = sorted((root / "pets" / "test").rglob("*.png"))[0]
    stream = io.BytesIO()
    Image.fromarray(np.full((30, 30, 3), 77, np.uint8)).save(stream, "PNG")
    picture.write_bytes(stream.getvalue())
    after = load(root)
    assert before.fingerprint != after.fingerprint
    assert 77 in after.tensors("test", "cpu")[0].flatten(1).float().mean(1).tolist()


def test_contents_count_in_the_fingerprint_even_where_pixels_are_equal(root):
    before = load(root)
    picture = sorted((root / "pets" / "test").rglob("*.png"))[0]
    picture.write_bytes(picture.read_bytes() + b"trailing")
    assert load(root).fingerprint != before.fingerprint


def test_identity_needs_no_folder_and_follows_the_declared_facts():
    first = describe_task(TASKS.make("image-folder", DECLARED))
    assert first == describe_task(TASKS.make("image-folder", dict(DECLARED)))
    assert first["source"] != describe_task(TASKS.make("image-folder", {**DECLARED, "train": 13}))["source"]
    assert describe_task(TASKS.make("image-folder", {**DECLARED, "digest": "0" * 32}))["source"] == "0" * 32
