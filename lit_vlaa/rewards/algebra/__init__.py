"""The front end of the math reward: from an answer's text to statements that can be compared, refuted or confirmed.

The path: `readings` (which part of a text is its answer) -> `notation` (one way to write LaTeX, Unicode and program
syntax) -> `layouts`, `intervals`, `statements`, `units` (an answer's form) -> `syntax` (the grammar) -> `expressions`
(trees) -> `comparison`, `refutation`.
"""
