"""Reading prepared data: order, mirroring, resuming, and folders that are not what they should be."""

import json

import numpy as np
import pytest
import torch

from pggan_fast.data.batches import Batches
from pggan_fast.data.dataset import DatasetWriter, PreparedData
from pggan_fast.utils.errors import UserError

COUNT = 10


@pytest.fixture
def folder(tmp_path):
    """Ten images: image i has value i in its left half and 100 + i in its right half."""
    with DatasetWriter(tmp_path / "data", resolution=8, channels=1, classes=["even", "odd"]) as writer:
        for index in range(COUNT):
            image = np.full((1, 8, 8), index, np.uint8)
            image[:, :, 4:] += 100
            writer.add(image, index % 2, f"{index}.png")
        writer.commit()
    return tmp_path / "data"


def draw(batches, sizes, resolution=8):
    images, labels = zip(*(batches.next(size, resolution) for size in sizes), strict=True)
    return torch.cat(images), torch.cat(labels)


def identity(images):
    """Which image each one is, and whether it is mirrored."""
    left, right = images[:, 0, 0, 0].int(), images[:, 0, 0, -1].int()
    return torch.minimum(left, right), left > right


def test_every_epoch_shows_every_image_once_in_another_order(folder):
    images, labels = draw(Batches(PreparedData(folder), seed=0), [5] * 6)
    assert images.dtype == torch.uint8 and images.shape == (30, 1, 8, 8)
    assert labels.dtype == torch.int64
    which, _ = identity(images)
    epochs = which.view(3, COUNT).tolist()
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert torch.equal(labels, which % 2)


def test_a_batch_may_be_larger_than_the_data(folder):
    images, _ = draw(Batches(PreparedData(folder), seed=0), [35])
    which, _ = identity(images)
    assert sorted(which[:30].tolist()) == sorted([*range(COUNT)] * 3)
    assert len(set(which[30:].tolist())) == 5


def test_about_half_are_mirrored_and_mirrored_right(folder):
    data = PreparedData(folder)
    images, _ = draw(Batches(data, seed=3), [1000])
    which, mirrored = identity(images)
    assert 400 < mirrored.sum() < 600  # p = 0.5: 6 standard deviations
    for image, index, flip in zip(images, which, mirrored, strict=True):
        original = torch.from_numpy(np.array(data.images(8)[index]))
        assert torch.equal(image, original.flip(-1) if flip else original)
    unmirrored, _ = draw(Batches(data, seed=3, mirror=False), [1000])
    assert not identity(unmirrored)[1].any()
    assert torch.equal(identity(unmirrored)[0], which)


def test_order_does_not_depend_on_batch_sizes_or_resolution(folder):
    data = PreparedData(folder)
    one = identity(draw(Batches(data, seed=7), [40])[0])
    batches = Batches(data, seed=7)
    many = identity(draw(batches, [1, 7, 13, 4, 15], resolution=4)[0])
    assert torch.equal(one[0], many[0]) and torch.equal(one[1], many[1])
    assert batches.position == 40
    other = identity(draw(Batches(data, seed=8), [40])[0])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("stop", [0, 3, 10, 17])
def test_resumes_from_its_state(folder, stop):
    data = PreparedData(folder)
    straight = Batches(data, seed=5)
    draw(straight, [1] * stop) if stop else None
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = Batches(data, seed=0)
    resumed.load_state_dict(state)
    for expected, found in zip(draw(straight, [6, 6]), draw(resumed, [6, 6]), strict=True):
        assert torch.equal(expected, found)


def test_reads_only_the_resolution_it_is_asked_for(folder):
    (folder / "images_8.npy").unlink()
    images, _ = Batches(PreparedData(folder), seed=0).next(4, 4)
    assert images.shape == (4, 1, 4, 4)
    with pytest.raises(UserError, match="cannot read images_8.npy"):
        Batches(PreparedData(folder), seed=0).next(4, 8)


def test_a_batch_can_be_written_to(folder):
    images, _ = Batches(PreparedData(folder), seed=0).next(4, 8)
    images.zero_()  # a copy: the arrays on disk are mapped read-only
    assert PreparedData(folder).images(8).any()


def broken(folder):
    with pytest.raises(UserError) as error:
        PreparedData(folder).images(8)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_are_no_prepared_data(folder, tmp_path):
    assert "no such folder" in broken(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    assert "no prepared folder (no dataset.json)" in broken(tmp_path / "photos")
    manifest = json.loads((folder / "dataset.json").read_text())

    (folder / "dataset.json").write_text(json.dumps({**manifest, "count": 11}))
    assert "labels.npy holds int64 [10]" in broken(folder)
    (folder / "dataset.json").write_text(json.dumps({**manifest, "channels": 3}))
    assert "images_8.npy holds uint8 [10, 1, 8, 8]" in broken(folder)
    (folder / "dataset.json").write_text(json.dumps({**manifest, "format": "other 9"}))
    assert "has format 'other 9'" in broken(folder)
    (folder / "dataset.json").write_text('{"format"')
    assert "dataset.json is damaged" in broken(folder)
    del manifest["classes"]
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert "dataset.json is damaged" in broken(folder)


def test_arrays_with_pickled_objects_are_refused(folder):
    np.save(folder / "images_8.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot read images_8.npy" in broken(folder)


def test_data_without_images(tmp_path):
    with DatasetWriter(tmp_path / "none", resolution=4, channels=1, classes=[]) as writer:
        writer.commit()
    with pytest.raises(UserError, match="holds no images"):
        Batches(PreparedData(tmp_path / "none"), seed=0)
