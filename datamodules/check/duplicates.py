"""Findings that take two rows to see: the same id, question or image twice, in one file or in two.

Of each row some hundred bytes are kept. Images are the same where their files are; one that was saved anew is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from datamodules.check.rows import RowFacts


class Known:
    """What earlier rows, or those of another file, are told by."""

    def __init__(self, file: str = "") -> None:
        """Knows nothing yet.

        Args:
            file: Name of the other file, for messages.
        """
        self.file = file
        self._ids: dict[bytes, int] = {}
        self._rows: dict[bytes, tuple[int, bytes]] = {}
        self._images: dict[bytes, int] = {}

    def add(self, facts: RowFacts) -> None:
        """Adds a row."""
        if facts.id_key:
            self._ids.setdefault(facts.id_key, facts.number)
        if facts.key:
            self._rows.setdefault(facts.key, (facts.number, facts.answer))
        for image in facts.images:
            self._images.setdefault(image, facts.number)

    def repeats(self, facts: RowFacts) -> Iterator[tuple[str, str]]:
        """What a row has in common with an earlier one of its file."""
        if facts.id_key in self._ids:
            yield "duplicate_id", f"{facts.id!r}, first in row {self._ids[facts.id_key]}"
        if facts.key in self._rows:
            row, answer = self._rows[facts.key]
            yield "duplicate_row" if answer == facts.answer else "contradicting_row", f"as in row {row}"
            return
        repeated = sorted({self._images[image] for image in facts.images if image in self._images})
        if repeated:
            yield "repeated_image", f"as in row {repeated[0]}"

    def leaks(self, facts: RowFacts) -> Iterator[tuple[str, str]]:
        """What a row has in common with one of the other file."""
        if facts.key in self._rows:
            yield "leaked_row", f"{self.file}, row {self._rows[facts.key][0]}"
            return
        leaked = sorted({self._images[image] for image in facts.images if image in self._images})
        if leaked:
            yield "leaked_image", f"{self.file}, row {leaked[0]}"
        if facts.id_key in self._ids:
            yield "shared_id", f"{facts.id!r}, {self.file}, row {self._ids[facts.id_key]}"


class Duplicates:
    """Compares the rows of a file, as they come, with each other and with those of other files.

    Args:
        others: What is known of the other files, by name.
    """

    def __init__(self, others: Mapping[str, Known]) -> None:
        self._own = Known()
        self._others = others

    def __call__(self, facts: RowFacts) -> list[tuple[str, str]]:
        """Findings of the next row."""
        found = list(self._own.repeats(facts))
        for other in self._others.values():
            found += other.leaks(facts)
        self._own.add(facts)
        return found
