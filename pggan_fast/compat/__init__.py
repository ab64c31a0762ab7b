"""Other codebases' op modules, answered by our ops: `pggan_fast.compat.install("stylegan3")` before they are imported,
or after. Their extensions are then never compiled.
"""

from pggan_fast.compat.hook import install, uninstall

__all__ = ["install", "uninstall"]
