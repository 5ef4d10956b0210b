"""``python -m pushsum_opt`` is the command ``pushsum``."""

import sys

from .cli import main

sys.exit(main())
