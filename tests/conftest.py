"""Fixtures that any test may use."""

from collections.abc import Iterator

import pytest
import torch

from tests.ops.implementations import IMPLEMENTATIONS, Implementation


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request) -> Iterator[Implementation]:
    """Each way to compute an op in turn; one that cannot run here is skipped with its reason."""
    implementation = IMPLEMENTATIONS[request.param]
    if (reason := implementation.missing()) is not None:
        pytest.skip(f"{request.param}: {reason}")
    with implementation.active():
        yield implementation


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN (integers: the largest value), so that an element that no kernel wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back the number of threads that a test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
