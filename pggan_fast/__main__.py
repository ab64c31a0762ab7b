"""`python -m pggan_fast`."""

import sys

from pggan_fast.cli import main

sys.exit(main())
