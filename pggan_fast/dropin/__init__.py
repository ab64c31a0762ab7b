"""Other people's GANs, faster without changing them."""

from pggan_fast.dropin.api import accelerate, explain, restore
from pggan_fast.dropin.report import Explanation

__all__ = ["Explanation", "accelerate", "explain", "restore"]
