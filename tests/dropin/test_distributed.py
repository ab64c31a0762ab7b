"""Accelerated models in DistributedDataParallel and FSDP, two processes over gloo: what the original does there."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.dropin.helpers import EXACT

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what each process found, by wrapper and network."""
    folder = tmp_path_factory.mktemp("dropin")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "tests.dropin.distributed_job", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *job], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["pggan_generator", "pggan_discriminator", "stackgan"])
@pytest.mark.parametrize("how", ["ddp", "fsdp2", "fsdp1"])
def test_two_processes_train_alike(found, how, name):
    """Outputs, gradients (a gradient penalty's too, under DDP) and weights of two steps of Adam, in fp64."""
    for process in found:
        assert process[how][name]["difference"] <= EXACT
        assert process[how][name]["fused calls"] > 0


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "fsdp1"])
def test_wrapped_models_can_be_restored(found, how):
    for process in found:
        for results in process[how].values():
            assert results["later calls"] == 0
            assert results["restored"] <= EXACT
