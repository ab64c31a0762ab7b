"""Killed at random moments a run resumes bit for bit. `make test-kill` does it more often."""

import json
import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has imported torch")
def test_six_kills():
    command = [sys.executable, "-m", "tests.training.kill", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 6
    assert any(moment > 0 for moment in found["newest checkpoint at each kill"])
