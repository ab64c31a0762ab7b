"""These tests are slow to build and to run: `make test-kernels` sets the variable, and `make test` collects none."""

import os

import pytest

from tests.cuda_on_cpu import build, nvcc

collect_ignore_glob = [] if os.environ.get("PGGAN_FAST_TEST_KERNELS") else ["test_*.py"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """nvcc, which takes longest, compiles while the tests before its own run: started by one process of them."""
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if first and nvcc.NVCC and any("cuda_on_cpu/test_nvcc" in item.nodeid for item in session.items):
        nvcc.binaries()


@pytest.fixture(scope="session", autouse=True)
def compiler() -> None:
    if (reason := build.missing()) is not None:
        pytest.skip(reason)
