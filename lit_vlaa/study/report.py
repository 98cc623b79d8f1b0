"""`lit-vlaa study report`: a study's folder as one HTML page, as Markdown with pictures, and as numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags
from lit_vlaa.whole_files import replacing

FOLDER = "report"
"""Of the report, in the study's folder."""


def write_report(folder: Path, output_dir: Path | None = None) -> Path:
    """Writes `report.html`, `report.md` with its pictures, and `report.json`; the same folder gives the same bytes.

    Args:
        folder: Of a study, ended or not.
        output_dir: Where to write; None takes `report` in the study's folder.

    Returns:
        The HTML page.

    Raises:
        ValueError: If the folder holds no study, or something in it cannot be read.
    """
    # What needs numpy, matplotlib and PyTorch's types is imported here, so that `--help` answers at once.
    from lit_vlaa.study import html, markdown  # noqa: PLC0415
    from lit_vlaa.study.findings import as_json, find  # noqa: PLC0415
    from lit_vlaa.study.results import read_study  # noqa: PLC0415
    from lit_vlaa.study.sections import compose  # noqa: PLC0415

    findings = find(read_study(folder))
    document = compose(findings)
    target = folder / FOLDER if output_dir is None else output_dir
    numbers = json.dumps(html.json_safe(as_json(findings)), indent=1, ensure_ascii=False, allow_nan=False)
    contents: dict[Path, bytes] = {
        target / "report.html": html.page(document).encode(),
        target / "report.md": markdown.page(document).encode(),
        target / "report.json": f"{numbers}\n".encode(),
        **{target / markdown.PICTURES / name: content for name, content in markdown.files(document).items()},
    }
    for path, content in contents.items():
        with replacing(path) as part:
            part.write_bytes(content)
    return target / "report.html"


def run(words: Sequence[str]) -> int:
    """Makes a study's report again.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If an argument cannot work.
    """
    parser = Flags(
        prog="lit-vlaa study report",
        description="Writes the report of a study, ended or not, from its folder: scores with intervals, verdicts on "
        "the paper's claims, curves, traces side by side. The same folder gives the same bytes.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the output_dir of `lit-vlaa study run`")
    parser.add_argument("--output-dir", type=Path, help="where to write; default: the folder `report` in FOLDER")
    given = parser.read(words)
    try:
        page = write_report(given.folder, given.output_dir)
    except (ValueError, OSError) as error:
        raise UsageError([str(error)]) from error
    sys.stdout.write(f"report: {page}\n")
    return 0
