"""One colour and one mark an arm, in every picture and table; told apart by colour-blind eyes too.

After Okabe and Ito; darkened where names in these colours would be hard to read on a white page (WCAG's 4.5 to 1).
"""

from __future__ import annotations

from collections.abc import Sequence

_LIGHT = ("#5f6b77", "#0072b2", "#c05400", "#00805f", "#a8508a", "#8f6a00", "#5b5fc7", "#7a3b10")
_DARK = ("#a9b4bf", "#56b4e9", "#ff9a52", "#3fd0a4", "#e59cc8", "#e8c34a", "#8fd3ff", "#d69a72")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")


def colours(arms: Sequence[str], *, dark: bool) -> dict[str, str]:
    """A colour for each arm, by its place; from the ninth arm on they repeat, told apart by `marks`."""
    shades = _DARK if dark else _LIGHT
    return {arm: shades[place % len(shades)] for place, arm in enumerate(arms)}


def marks(arms: Sequence[str]) -> dict[str, str]:
    """A marker of matplotlib's for each arm."""
    return {arm: _MARKS[(place + place // len(_LIGHT)) % len(_MARKS)] for place, arm in enumerate(arms)}
