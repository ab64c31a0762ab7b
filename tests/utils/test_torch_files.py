"""Files of torch.save that are compressed or overlap, and so would take more memory than they have bytes."""

import zipfile

import pytest
import torch

from pggan_fast.training import UserError
from pggan_fast.training.checkpoint import _seal, load_checkpoint
from pggan_fast.utils.torch_files import find_swelling, load_weights_only


@pytest.fixture
def saved(tmp_path):
    """A file that torch.save wrote."""
    path = tmp_path / "saved.pt"
    torch.save({"format": 1, "weight": torch.zeros(100_000)}, path)
    return path


@pytest.fixture
def compressed(saved, tmp_path):
    """The same, compressed, which torch.load reads too."""
    path = tmp_path / "compressed.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert torch.load(path, weights_only=True)["weight"].shape == (100_000,)
    return path


def test_what_torch_saves_is_read(saved):
    assert find_swelling(saved) is None
    assert load_weights_only(saved)["weight"].shape == (100_000,)


def test_compressed_weights_are_refused(compressed):
    with pytest.raises(ValueError, match="compressed or overlap"):
        load_weights_only(compressed)


def test_a_compressed_checkpoint_is_refused(compressed):
    _seal(compressed)
    with pytest.raises(UserError, match="is damaged .*compressed or overlap"):
        load_checkpoint(compressed)


def test_entries_that_share_their_bytes_are_refused(saved, tmp_path):
    """Each entry of the directory claims all of the file."""
    path = tmp_path / "overlapping.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(10_000))
        for index in range(10):
            entry = zipfile.ZipInfo(f"a/data/{index}")
            first = archive.infolist()[0]
            entry.header_offset, entry.file_size, entry.compress_size, entry.CRC = 0, 10_000, 10_000, first.CRC
            archive.filelist.append(entry)
    with pytest.raises(ValueError, match="compressed or overlap"):
        load_weights_only(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_other_files_are_left_to_torch(tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    assert find_swelling(tmp_path / "other.pt") is None


def test_a_file_of_another_kind_is_told_in_words(tmp_path):
    """For a text, torch tells the number of the opcode that its first letter is not."""
    (tmp_path / "weights.pth").write_text("hello")
    with pytest.raises(ValueError, match="reads no weights from it: not a file of torch.save, or a damaged one$"):
        load_weights_only(tmp_path / "weights.pth")
