r"""Rewrites the many spellings of mathematics (LaTeX, Unicode, program syntax) into one with few symbols.

What remains is ASCII with `\frac`, `\sqrt`, names of functions and Greek letters, and single signs for relations,
sets and degrees. Nothing is interpreted here, and every pattern is linear in the text.
"""

from __future__ import annotations

import re

from lit_vlaa.answers import ascii_digits, unstyled

_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥",
    "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "approx": "=", "pm": "±", "dfrac": r"\frac",
    "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom", "lvert": "|", "rvert": "|",
    "vert": "|", "mid": "|", "degree": "°", "lbrace": "⦃", "rbrace": "⦄", "langle": "(", "rangle": ")",
    "lfloor": r"\floor(", "rfloor": ")", "lceil": r"\ceil(", "rceil": ")", "in": "∈", "notin": "∉", "cup": "∪",
    "cap": "∩", "emptyset": "∅", "varnothing": "∅", "arctg": r"\arctan", "lg": r"\log_{10}", "colon": ":",
    "left": "", "right": "", "displaystyle": "", "quad": " ", "qquad": " ", "limits": "",
    "angle": "∠", "triangle": "△", "bigl": "", "bigr": "", "big": "", "Big": "",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)\s?")
_SPACING = re.compile(r"\\[,;:! ]|~|&")
_SIGNS = str.maketrans(
    {
        "×": "*", "·": "*", "⋅": "*", "∗": "*", "∙": "*", "÷": "/", "⁄": "/", "≈": "=", "≦": "≤", "≧": "≥", "∶": ":",
        "⟨": "(", "⟩": ")", "º": "°", "˚": "°", "′": "'", "’": "'", "（": "(", "）": ")", "，": ",",
        "＝": "=", "€": " ", "£": " ", "¥": " ",
        "π": r"\pi ", "∞": r"\infty ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
        "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ",
    }
)  # fmt: skip
_SYMBOLS = (
    (r"\{", "⦃"), (r"\}", "⦄"), (r"\%", "%"), (r"\$", " "), (r"\|", "|"), ("$", " "), ("**", "^"), ("<=", "≤"),
    (">=", "≥"), ("!=", "≠"), ("==", "="), ("^{°}", "°"), (r"^{\circ}", "°"), (r"^ {\circ}", "°"), (r"^\circ", "°"),
)  # fmt: skip
_VULGAR = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅙": "1/6", "⅛": "1/8"}
_VULGAR_RUN = re.compile(rf"(?:(?<![\w.])(\d{{1,9}})\s?)?([{''.join(_VULGAR)}])")
_MIXED = re.compile(r"(?<![\w.)}^])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\w.^(!])")
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT = re.compile(r"([√∛])\s?(?:(\d+(?:\.\d+)?)|)")
_GROUPED = re.compile(r"(?<=\d)(?:\{,\}|\\,|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))")
_TIMES_TEN = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)")
_MODULE = re.compile(r"\b(?:math|np|numpy|sympy|sp|Math)\.(?=[A-Za-z])")
_SEGMENT = re.compile(r"\\overline\s?\{\s?([A-Z]{2})\s?\}")
_LOOSE = re.compile(r"(?<![\w.]) | (?![\w.])")


def _vulgar(match: re.Match[str]) -> str:
    fraction = _VULGAR[match.group(2)]
    return f"({match.group(1)}+{fraction})" if match.group(1) else f"({fraction})"


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = match.groups()
    return f"({whole}+{above}/{below})" if int(above) < int(below) else match.group()


def plain_syntax(text: str) -> str:
    r"""Rewrites spacing, synonyms and Unicode so that few symbols remain; keeps `\frac`, `\sqrt` and names."""
    text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[char] for char in run.group()) + "}", text)
    text = _GROUPED.sub("", _VULGAR_RUN.sub(_vulgar, ascii_digits(text)))
    text = _ROOT.sub(
        lambda m: (r"\sqrt[3]" if m.group(1) == "∛" else r"\sqrt") + (f"{{{m.group(2)}}}" if m.group(2) else " "), text
    )
    text = unstyled(text.translate(_SIGNS))
    for old, new in _SYMBOLS[:5]:
        text = text.replace(old, new)
    text = _SEGMENT.sub(r" \1", text)
    text = _COMMAND.sub(lambda m: _COMMANDS[m.group(1)] if m.group(1) in _COMMANDS else m.group(), text)
    text = _SPACING.sub(" ", text)
    for old, new in _SYMBOLS[5:]:
        text = text.replace(old, new)
    text = _TIMES_TEN.sub("*", _MODULE.sub("", re.sub(r"\binfinity\b", r"\\infty ", text)))
    text = re.sub(r"\s+", " ", text).strip(" ,;:").rstrip(" .,;:")
    return _MIXED.sub(_mixed, text)


def compact(text: str) -> str:
    """Returns the plain syntax without the spaces that separate nothing; equal strings are equal mathematics."""
    return _LOOSE.sub("", plain_syntax(text))
