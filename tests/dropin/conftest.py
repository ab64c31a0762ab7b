"""Fixtures of the tests of drop-in acceleration."""

import pytest

from pggan_fast.dropin import fused


@pytest.fixture(autouse=True)
def small_activations_count(monkeypatch):
    """Take activations in place however small they are, as in use only large ones: tests use small networks."""
    monkeypatch.setattr(fused, "IN_PLACE_FROM", 0)
