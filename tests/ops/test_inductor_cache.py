"""Inductor's keys tell versions of the ops apart, and keep a tag of the user's own."""

import os
import subprocess
import sys

import torch.compiler.config
from torch._inductor.codecache import FxGraphHashDetails

from pggan_fast.ops.inductor_cache import PACKAGE, fingerprint, tag_compiled_graphs


def test_every_change_of_a_defining_file_changes_the_fingerprint(tmp_path):
    (tmp_path / "ops").mkdir()
    path = tmp_path / "ops" / "a.py"
    path.write_text("x = 1\n")
    found = [fingerprint(tmp_path)]
    os.utime(path, ns=(1, 1))
    found.append(fingerprint(tmp_path))
    path.write_text("x = 10\n")
    found.append(fingerprint(tmp_path))
    (tmp_path / "reference.py").write_text("")
    found.append(fingerprint(tmp_path))
    (tmp_path / "README.md").write_text("defines nothing")
    assert len(set(found)) == 4 and fingerprint(tmp_path) == found[-1]


def test_the_tag_is_a_part_of_inductors_keys():
    tag = f"pggan_fast:{fingerprint(PACKAGE)}"
    assert tag in torch.compiler.config.cache_key_tag.split()
    tag_compiled_graphs()
    assert torch.compiler.config.cache_key_tag.split().count(tag) == 1
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    assert FxGraphHashDetails(graph, [], {}, []).cache_key_tag == torch.compiler.config.cache_key_tag


def test_a_tag_of_the_users_stays():
    done = subprocess.run(
        [sys.executable, "-c", "import pggan_fast, torch; print(torch.compiler.config.cache_key_tag)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCH_COMPILE_CACHE_KEY_TAG": "mine"},
    )
    assert done.stdout.split() == ["mine", f"pggan_fast:{fingerprint(PACKAGE)}"]
