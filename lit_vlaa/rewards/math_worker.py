"""A process that runs Math-Verify for `workers.MathPool`; it dies rather than grow or hang.

Started as a script, so that neither the package nor torch is imported. Speaks JSON lines: in `[form, truth, answer]`,
out one verdict. A `tree` is what `Expression.wire` writes; SymPy objects are built from it directly, because
Math-Verify's own parser takes some hundred times longer than its comparison, and without delimiters reads `y = 2x` as
the number 2. Anything else is LaTeX without delimiters.
"""

from __future__ import annotations

import json
import operator
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

OUT_OF_MEMORY = 71
"""Exit code of a process that hit its address-space limit."""

MAX_EXPANDED_POWER = 12
"""Sums to a higher power are not multiplied out."""


def _die_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def _builder() -> Callable[[Any, bool], Any]:
    """Returns the function that makes a SymPy object of nested lists; decimals exact or as floating-point numbers."""
    import sympy  # noqa: PLC0415

    third = sympy.Rational(1, 3)
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
    names = {"ln": "log", "abs": "Abs", "fact": "factorial", "ceil": "ceiling"}
    names |= {f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan")}

    def power(base: Any, exponent: Any) -> Any:
        if exponent.is_Rational and exponent.q == 3 and base.is_number and base.is_negative:
            return (-1) ** exponent.p * (-base) ** exponent  # the real root, as school mathematics has it
        return base**exponent

    operations: dict[str, Callable[..., Any]] = {
        "add": operator.add,
        "mul": operator.mul,
        "div": operator.truediv,
        "neg": operator.neg,
        "pow": power,
        "log10": lambda value: sympy.log(value, 10),
        "eq": lambda left, right: sympy.Eq(left, right, evaluate=False),
    }

    def build(node: Any, exact: bool) -> Any:
        head, *rest = node
        if head == "num":
            return sympy.Rational(rest[0]) if exact or rest[0].isdigit() else sympy.Float(rest[0])
        if head == "sym":
            return constants.get(rest[0]) or sympy.Symbol(rest[0], real=True)
        parts = [build(part, exact) for part in rest]
        operation = operations.get(head) or getattr(sympy, names.get(head, head))
        return operation(*parts)

    assert power(sympy.Integer(-8), third) == -2  # noqa: S101 - a change of SymPy's meaning must not go unnoticed
    return build


def _expandable(node: Any) -> bool:
    """False when multiplying out could take long: a high power of something that is no number or name."""
    head, *rest = node
    if head in {"num", "sym"}:
        return True
    if head == "pow" and rest[0][0] not in {"num", "sym"}:
        low = rest[1][0] == "num" and rest[1][1].isdigit() and int(rest[1][1]) <= MAX_EXPANDED_POWER
        if not low and rest[1][0] != "div":
            return False
    return all(_expandable(part) for part in rest)


def _free(node: Any) -> bool:
    """True when the tree holds a variable."""
    head, *rest = node
    return rest[0] not in {"pi", "e", "i"} if head == "sym" else head != "num" and any(map(_free, rest))


def _load() -> Callable[[str, str, str], str]:
    """Imports Math-Verify (about a second) and returns the comparison."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig  # noqa: PLC0415
    from math_verify import LatexExtractionConfig, parse, verify  # noqa: PLC0415
    from sympy import expand, nan, zoo  # noqa: PLC0415

    build = _builder()
    # Units are handled in front of the pool, and Math-Verify's own timeouts need signals.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="all", equations=False
    )
    extraction = [LatexExtractionConfig(normalization_config=normalization)]

    @lru_cache(maxsize=256)
    def read(latex: str) -> Any:
        return parse(f"${latex}$", extraction, fallback_mode="no_fallback", parsing_timeout=0)

    def proven(truth: Any, answer: Any) -> bool:
        """Cheap exact proofs ahead of Math-Verify's simplification."""
        first, second = build(truth, True), build(answer, True)
        if any(side.has(nan, zoo) for side in (first, second)):
            return False
        if first == second:
            return True
        cheap = truth[0] != "eq" and _expandable(truth) and _expandable(answer)
        return cheap and expand(first - second) == 0

    def compare(form: str, truth: str, answer: str) -> str:
        if form == "tree":
            trees = json.loads(truth), json.loads(answer)
            if proven(*trees):
                return "equal"
            # Exact decimals in formulas; alone they are rounded numbers, which Math-Verify compares as such.
            gold, given = (build(tree, any(map(_free, trees))) for tree in trees)
        else:
            gold, given = read(truth), read(answer)
            if not gold:
                return "unparsable_gt"
            if not given:
                return "different"
        return "equal" if verify(gold, given, timeout_seconds=0, raise_on_error=True) else "different"

    x = '["sym","x"]'
    compare("tree", f'["sin",{x}]', f'["mul",["num","2"],["cos",{x}]]')  # the first simplification is slow
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
            verdict = compare(*json.loads(line))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except Exception:  # noqa: BLE001 - the text is hostile, and any error of the library is one answer's alone
            verdict = "error"
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
