"""A process that runs Math-Verify for `workers.MathPool`; it dies rather than grow or hang.

Started as a script, so that neither the package nor torch is imported. Speaks JSON lines: in `[truth, answer]` (LaTeX
without delimiters), out one verdict. Without delimiters Math-Verify would read `y = 2x` as the number 2.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable


def _die_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def _load() -> Callable[[str, str], str]:
    """Imports Math-Verify (about a second) and returns the comparison."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig  # noqa: PLC0415
    from math_verify import LatexExtractionConfig, parse, verify  # noqa: PLC0415

    # Units are handled in front of the pool, and Math-Verify's own timeouts need signals.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="all", equations=False
    )
    extraction = [LatexExtractionConfig(normalization_config=normalization)]

    def compare(truth: str, answer: str) -> str:
        gold = parse(f"${truth}$", extraction, fallback_mode="no_fallback", parsing_timeout=0)
        if not gold:
            return "unparsable_gt"
        given = parse(f"${answer}$", extraction, fallback_mode="no_fallback", parsing_timeout=0)
        if not given:
            return "different"
        equal = verify(gold, given, timeout_seconds=0, raise_on_error=True)
        return "equal" if equal else "different"

    compare("1", "2")
    return compare


def main() -> None:
    """Serves requests from standard input until it closes; the one argument is the address-space limit in bytes."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not reach the parent as a verdict
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    compare = _load()
    replies.write('"ready"\n')
    replies.flush()
    for line in sys.stdin:
        try:
            truth, answer = json.loads(line)
            verdict = compare(truth, answer)
        except MemoryError:
            os._exit(1)
        except Exception:  # noqa: BLE001 - the text is hostile, and any error of the library is one answer's alone
            verdict = "error"
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
