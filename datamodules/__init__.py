"""The data's side of the path: files on disk become records, samples and batches."""

from datamodules.vlaa_thinking import VLAAThinkingDataModule

__all__ = ["VLAAThinkingDataModule"]
