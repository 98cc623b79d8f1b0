"""The data's side of the path: files on disk become records, samples and batches."""

from datamodules.no_rows import NoRows
from datamodules.vlaa_thinking import VLAAThinkingDataModule

__all__ = ["NoRows", "VLAAThinkingDataModule"]
