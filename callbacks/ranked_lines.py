"""A JSON Lines file that all ranks write together, in the order of the data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_vlaa.whole_files import replacing


class RankedLines:
    """Each rank appends to a file of its own as it goes; at the end they become one, there whole or not at all.

    Row i of rank r is row `i * ranks + r` of the data, as the data module shares rows out.
    """

    def __init__(self, trainer: Trainer, path: str | None, name: str) -> None:
        """Starts this rank's file.

        Args:
            trainer: Of the run; every rank must come here.
            path: The file to write; None takes `name` in the log folder.
            name: Of the file in the log folder.
        """
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Collective: every rank must ask.
        self.target = folder / name if path is None else Path(path)
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        self._rows: dict[int, int] = {}
        own = self._part(self._rank)
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text("", encoding="utf-8")

    def add(self, rows: Iterable[Mapping[str, Any] | None], loader: int = 0) -> None:
        """Appends this rank's next rows.

        Args:
            rows: Objects that JSON can carry; None leaves out a row that only pads, and keeps the others' places.
            loader: Number of the data loader; the rows of a later one come after all of an earlier one.
        """
        with self._part(self._rank).open("a", encoding="utf-8") as file:
            for row in rows:
                at = self._rows.get(loader, 0)
                self._rows[loader] = at + 1
                if row is not None:
                    place = at * self._ranks + self._rank
                    file.write(json.dumps([loader, place, row], ensure_ascii=False) + "\n")

    def finish(self, trainer: Trainer) -> int | None:
        """Joins the ranks' files; every rank must come here.

        Returns:
            The number of rows, on the first rank.
        """
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return None
        parts = [self._part(rank) for rank in range(self._ranks)]
        rows: list[tuple[int, int, Mapping[str, Any]]] = []
        for part in parts:
            with part.open(encoding="utf-8") as file:
                rows.extend(json.loads(line) for line in file)
        rows.sort(key=lambda row: (row[0], row[1]))
        with replacing(self.target) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for _, _, row in rows)
        for part in parts:
            part.unlink()
        return len(rows)

    def _part(self, rank: int) -> Path:
        return self.target.with_name(f".{self.target.name}.rank{rank}")
