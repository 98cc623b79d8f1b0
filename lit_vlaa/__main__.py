"""`python -m lit_vlaa` is `lit-vlaa`."""

from __future__ import annotations

import os
import sys

from lit_vlaa.cli import main

if __name__ == "__main__":
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        sys.exit(record(main)())  # torchrun and `lit_vlaa.hosts` tell then what a process crashed of
    sys.exit(main())
