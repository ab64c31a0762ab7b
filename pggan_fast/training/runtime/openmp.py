"""How long OpenMP's threads wait for each other while spinning, which is what a shared CPU suffers from."""

from __future__ import annotations

import os
import sys

from pggan_fast._startup import SPINS


def spin_briefly() -> None:
    """Start this program anew with a short spin count, unless the environment has settled it already.

    At libgomp's default a thread burns a core for some 15 ms whenever another one is not scheduled:
    with one other busy program on two cores a training step took 8 times as long as with this value,
    which costs 3% on cores of one's own. libgomp reads it once, when torch is
    loaded, hence the new start; the command line has usually settled it before that.
    """
    settled = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
    if settled or not sys.platform.startswith("linux"):
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
