"""`python -m lit_vlaa` is `lit-vlaa`."""

from __future__ import annotations

import sys

from lit_vlaa.cli import main

if __name__ == "__main__":
    sys.exit(main())
