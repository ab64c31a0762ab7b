"""Fixtures of the tests of drop-in acceleration."""

import pytest

from pggan_fast.dropin import fused, rewrite


@pytest.fixture(autouse=True)
def small_tensors_count(monkeypatch):
    """Take activations in place and factors of weights however small, as in use only large ones: networks are small."""
    monkeypatch.setattr(fused, "IN_PLACE_FROM", 0)
    monkeypatch.setattr(rewrite, "SCALE_FROM", 0)
