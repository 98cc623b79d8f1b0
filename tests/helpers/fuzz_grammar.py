"""Hostile responses for every kind of reward, made of pieces that its verifier reacts to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from lit_vlaa.types import KINDS, Kind, RewardRequest

_MCQ = "What is x?\nChoices:\nA: 4\nB: 6\nC: 27°\nD: √{3}"
_PROSE = "How does the ratio change?\nA) It increases.\nB) It decreases.\nC) It stays.\nD) None of the above."
_ROWS: dict[Kind, tuple[RewardRequest, ...]] = {
    "digit": tuple(RewardRequest("", "digit", truth) for truth in ("3", "0", "-2", "1,200", "3.5", "twelve")),
    "mcq": (
        RewardRequest("", "mcq", "C", _MCQ),
        RewardRequest("", "mcq", "A)", _PROSE),
        RewardRequest("", "mcq", "B", "Which? A. 4 B. 6 C. 8"),
        RewardRequest("", "mcq", "D", "Which panel shows the peak?"),
    ),
    "math": tuple(
        RewardRequest("", "math", truth)
        for truth in ("y = -5 * sin(-5 * x)", r"\[\boxed{\frac{1}{2}}\]", "3x - y + 13 = 0", "12 cm", "{1, 2}", "x^2+1")
    ),
    "iou": (
        RewardRequest("", "iou", "[0.2, 0.2, 0.6, 0.6]"),
        RewardRequest("", "iou", "[0.2, 0.2, 0.6, 0.6]", box_space="qwen2_vl"),
        RewardRequest("", "iou", "[0, 0, 1, 1]", box_space="qwen2_5_vl", image_size=(420, 588)),
    ),
    "open_ended": (
        RewardRequest("", "open_ended", "A red bus stops at the corner."),
        RewardRequest("", "open_ended", "42"),
        RewardRequest("", "open_ended", "Ein gr\u00fcner Bus <b>h\u00e4lt</b>, \u65e5\u672c\u8a9e \U0001f68c."),
    ),
}


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(text.split("¦"))


_LIKE: dict[Kind, tuple[str, ...]] = {
    "digit": _pieces(
        "3¦three¦-2¦1,200¦3.5¦twelve¦the answer is 3¦= 3¦3 remain¦not 3¦3 or 4¦out of the 4, ¦at least ¦"
        "one hundred and ¦million¦6/2¦(3)¦3e9¦\u0663¦\uff13¦\xbd¦\u216b"
    ),
    "mcq": _pieces(
        "C¦(C)¦C.¦D: 27 deg¦A or B¦not B, so C¦the answer is C¦None of the above¦27\xb0¦It increases.¦A and ¦"
        "A is wrong¦option b¦leaving D¦A, B, ¦\u0410¦\uff23¦C because ¦A: 4\nB: 6\n¦\\sqrt{3}"
    ),
    "math": _pieces(
        "y = 5\\sin(5x)¦\\frac{1}{2}¦x^2+1¦3x-y+13=0¦12 cm¦120 mm¦\\{1,2\\}¦0.5¦50\\%¦\\sqrt{¦9^9^9^9¦(10^9)!¦"
        "\\int_0^1 x¦\\begin{matrix}¦|x+9|¦sum(¦\\sum_{k=1}^{10^9}¦e^{i\\pi}¦x**9**9¦f(x)=¦\u221a2"
    ),
    "iou": _pieces(
        '[0.2, 0.2, 0.6, 0.6]¦(200,200),(600,600)¦[84, 117.6, 252, 352.8]¦{"bbox_2d": [¦nan¦inf¦-0.5¦1e999¦'
        '[0.6, 0.6, 0.2, 0.2]¦[0, 0, 1, 1]¦x1: 0.2, y1: ¦"x2": 0.6¦[[¦]]¦0.2, 0.2¦[1e-9,¦.5¦box ¦not '
    ),
    "open_ended": _pieces(
        "A red bus stops at the corner.¦red bus¦42¦corner¦the ¦a ¦gr\xfcner Bus¦\u65e5\u672c¦\U0001f68c¦b<b>h¦STOPS"
    ),
}
_TAGS = _pieces(
    "<answer>¦</answer>¦<think>¦</think>¦<Answer>¦<answer >¦</ answer>¦&lt;answer&gt;¦<answer¦answer>¦"
    "<|im_end|>¦<|im_start|>assistant\n¦<|endoftext|>¦<|image_pad|>¦<|vision_start|>¦</s>¦<s>¦[INST]¦[/INST]¦"
    "<<SYS>>¦<ImageHere>¦[UNUSED_TOKEN_145]¦<start_of_turn>¦<\uff5cUser\uff5c>¦<0x0A>¦<image>¦{{¦{%"
)
_LATEX = _pieces(
    "\\boxed{¦\\text{¦\\mathrm{¦\\frac{¦}{¦}¦{¦$¦$$¦\\(¦\\)¦\\[¦\\]¦\\left(¦\\right)¦^¦_¦&¦\\\\¦\\¦"
    "\\operatorname{¦\\cdot¦\\times ¦^{\\circ}¦\\begin{cases}¦\\end{cases}¦%"
)
_WORDS = _pieces(
    "the answer is ¦Answer: ¦so ¦or ¦and ¦not ¦is wrong¦because ¦maybe ¦option ¦either ¦total of ¦"
    "of the above¦one ¦twenty-¦hundred ¦\n¦ ¦  ¦\t¦, ¦. ¦; ¦: ¦- ¦# ¦| ¦**¦`¦```json\n¦\"¦'¦~~¦__¦<b>¦</b>¦"
    "&#51;¦import os; os.system('true')¦__import__('os')¦%s%n¦{0.__class__}¦\u2192"
)
_ODD = _pieces(
    "\u200b¦\u200d¦\u202e¦\u2066¦\ufeff¦\xad¦\ufe0f¦\u20e3¦\x00¦\x1b[31m¦\x7f¦\x85¦\u2028¦\u0301¦\u0336¦"
    "\u20e0¦\u0489¦\u05d0¦\u0627¦\ufdfa¦\u0130¦\u1e9e¦\u3164¦\u2800¦\ufffd¦\uffff¦\U000e0041¦\U0010ffff¦"
    "\U0001f1e9\U0001f1ea¦\u0e33¦\u1100\u1161¦\ud7a3¦\u2212¦\u2013¦\u201c¦\xb0"
)
_BAIT = _pieces(
    "1,¦1,111¦,111¦1.¦.1¦ ¦\t¦\n¦a ¦A ¦A, ¦A or ¦(A¦(A)¦A: ¦not ¦not the ¦is ¦is the ¦so it is ¦answer is ¦"
    "answer ¦the answer¦or ¦one ¦one-¦hundred and ¦two thousand ¦3 ¦3+¦3-¦= 3 ¦= ¦(¦((¦()¦[¦[0.1,¦"
    "[0, 0, 1, 1¦(0,0),¦(0,0)¦0.1,¦nan,¦x1:1,¦x1: 1, y1: 1, ¦\"¦'¦$¦$x¦\\(¦\\[¦\\boxed{¦\\boxed{}¦\\text{¦"
    "\\frac{1}{¦\\frac¦sqrt(¦\\sqrt{¦{¦}¦{}¦^¦^{¦_¦|¦||¦-¦--¦+¦*¦**¦/¦!¦%¦<¦<|¦|>¦<a¦[A¦[AA]¦</¦<think>¦"
    "\u0301¦\u200b¦\u0661¦sin(¦sin ¦x^¦x¦xy¦1e¦1e9¦cm ¦5 cm ¦option ¦none of ¦out of ¦remain ¦3 left ¦\u221a¦"
    "\u221a(¦\xb0¦\u2192 "
)
_NUMBERS = (
    *("9" * 5000, "7" * 40, "0." + "0" * 400 + "1", "1" + ",000" * 300),
    *_pieces(
        "1e400¦-1e-400¦0x7f¦1_000¦-0¦+3¦00003¦3.0¦2024-01-03¦3:00¦1.2.3.4¦3!¦2^3^4¦1/0¦0/0¦\u0663\u0664¦\U0001d7db"
    ),
)
_NESTS = (("{", "}"), ("(", ")"), ("\\frac{1}{", "}"), ("\\boxed{", "}"), ("[", "]"), ("$", "$"), ("\\text{", "}"))


def _repeat(rng: random.Random) -> str:
    """What a pattern with nested or adjoining repeats would go through again and again."""
    piece = rng.choice(_BAIT) if rng.random() < 0.8 else rng.choice(_BAIT) + rng.choice(_BAIT)
    most = max(1, 20_000 // len(piece))
    return piece * rng.choice((2, 5, 20, 60, 200, rng.randint(1, max(1, 4000 // len(piece))), most))


def _nest(rng: random.Random, kind: Kind) -> str:
    opening, closing = rng.choice(_NESTS)
    depth = rng.choice((2, 8, 64, 600))
    return opening * depth + rng.choice(_LIKE[kind]) + closing * (depth - rng.randint(0, 1))


def _any_characters(rng: random.Random) -> str:
    codes = (rng.randrange(0x110000) for _ in range(rng.randint(1, 8)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def _odd(rng: random.Random) -> str:
    return rng.choice(_ODD) * rng.choice((1, 1, 3, 50))


def _fragment(rng: random.Random, kind: Kind) -> str:
    make = rng.choices(("like", "other", "piece", "odd", "any", "nest", "repeat"), (30, 3, 39, 10, 7, 4, 7))[0]
    if make in ("like", "other"):
        return rng.choice(_LIKE[kind if make == "like" else rng.choice(KINDS)])
    if make == "piece":
        return rng.choice(rng.choice((_WORDS, _WORDS, _LATEX, _NUMBERS, _TAGS)))
    if make in ("odd", "any"):
        return _odd(rng) if make == "odd" else _any_characters(rng)
    return _nest(rng, kind) if make == "nest" else _repeat(rng)


def _content(rng: random.Random, kind: Kind) -> str:
    length = rng.choice((1, 1, 2, 3, 5, 9))
    if rng.random() < 0.35:  # nothing but pieces of answers: passes the outer checks and reaches the inner ones
        joint = rng.choice(("", " ", ", ", "\n", " + ", "^", " = ", " so ", " not ", " or "))
        return joint.join(rng.choice(_LIKE[kind]) for _ in range(length))
    return "".join(_fragment(rng, kind) for _ in range(length))


def response(rng: random.Random, kind: Kind) -> str:
    """Makes one hostile response: mostly with one answer block, sometimes truncated, doubled or nested."""
    content, form = _content(rng, kind), rng.random()
    if form < 0.8:
        for tag in _TAGS[:4]:
            content = content.replace(tag, "")
        return f"<think>t</think><answer>{content}</answer>"
    if form < 0.88:
        return f"<think>{_fragment(rng, kind)}</think><answer>{content}</answer>{_fragment(rng, kind)}"
    if form < 0.92:
        return f"<think>t</think><answer>{content}"[: rng.randint(0, 400)]
    return "".join(rng.choice((*_TAGS[:4], content, content[:7], " ")) for _ in range(rng.randint(1, 9)))


def requests(kind: Kind, count: int, seed: int) -> Iterator[RewardRequest]:
    """Yields `count` hostile requests of a kind; the same seed gives the same ones."""
    rng = random.Random(f"{kind} {seed}")
    for _ in range(count):
        yield replace(rng.choice(_ROWS[kind]), response=response(rng, kind))
