"""The entry point `python -m nld_train.train`; the command itself is in `nld_train.commands.train`.

The worker processes that torch starts for saving import this module again, so nothing but the standard library is
imported at the top.
"""

from __future__ import annotations

import sys

from nld_train.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
