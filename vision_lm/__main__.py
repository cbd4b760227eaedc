"""`python -m vision_lm`: the same as the command `vision-lm`."""

from __future__ import annotations

import sys

from vision_lm.cli import main

sys.exit(main())
