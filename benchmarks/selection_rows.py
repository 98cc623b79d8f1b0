"""Rows in the size of the release with likelihoods that need no model, to measure `lit-vlaa data select` alone.

    python -m benchmarks.selection_rows 100000 FOLDER

writes FOLDER/rows.json (4 KB a row, one image for all), and likelihoods under two models for the command that it shows.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

from datamodules.sources import SOURCES
from lit_vlaa.selection.rows import digest_of
from lit_vlaa.selection.run import read, scorers
from lit_vlaa.selection.tool import flags

_WORDS = ("angle", "side", "therefore", "we", "check", "what", "remains", "again", "degrees")


def main(words: list[str]) -> int:
    """Writes rows and likelihoods."""
    count, folder = int(words[0]), Path(words[1])
    for source in SOURCES.values():
        picture = folder / "images" / source.folders[0] / "0.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (84, 84)).save(picture)
    rng = random.Random(0)
    folders = [source.folders[0] for source in SOURCES.values()]
    with (folder / "rows.json").open("w", encoding="utf-8") as stream:
        for row in range(count):
            trace = " ".join(rng.choices(_WORDS, k=800))
            answer = f"<think>{trace}</think><answer>{row}</answer>"
            line = {"image": f"{folders[row % len(folders)]}/0.png", "question": f"How many? {row}", "answer": answer}
            stream.write(json.dumps(line) + "\n")
    command = [f"--data-file={folder / 'rows.json'}", f"--image-root={folder / 'images'}", f"--output-dir={folder}"]
    # The second is one by its name alone: its weights are never read.
    (folder / "second.ckpt").touch()
    command += ["--models", "tiny", str(folder / "second.ckpt"), "--keep", str(count // 4), str(count // 20)]
    given, rest = flags().read_some(command)
    for _, likelihoods in scorers(given, read(given, rest), digest_of(given.data_file)):
        with likelihoods.open("1-of-1-rank0") as file:
            file.append([{"row": row + 1, "nll": rng.uniform(100, 2000), "tokens": 800} for row in range(count)])
    sys.stdout.write(f"lit-vlaa data select {' '.join(command)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
