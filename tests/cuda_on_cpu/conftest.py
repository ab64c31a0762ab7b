"""These tests are slow to build and to run: `make test-kernels` sets the variable, and `make test` collects none."""

import os

import pytest

from tests.cuda_on_cpu import build

collect_ignore_glob = [] if os.environ.get("PGGAN_FAST_TEST_KERNELS") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def compiler() -> None:
    if (reason := build.missing()) is not None:
        pytest.skip(reason)
