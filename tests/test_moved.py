"""Old module names give the modules that took their place."""

import importlib

import pytest

from pggan_fast._moved import NEW_NAMES


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_name_gives_the_same_module(old: str) -> None:
    new = importlib.import_module(f"pggan_fast.{NEW_NAMES[old]}")
    with pytest.warns(DeprecationWarning, match=f"pggan_fast.{old} is now pggan_fast.{NEW_NAMES[old]}"):
        module = importlib.import_module(f"pggan_fast.{old}")
    assert module is new
    assert module.__spec__.name == new.__name__ == f"pggan_fast.{NEW_NAMES[old]}"


def test_parts_of_a_package_that_moved_are_not_loaded_twice() -> None:
    with pytest.warns(DeprecationWarning):
        old = importlib.import_module("pggan_fast.training.sources.tfrecords")
    assert old is importlib.import_module("pggan_fast.data.sources.tfrecords")


def test_other_names_stay_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pggan_fast.training.nothing")
