"""A data module for `validate` and `test` with nothing but benchmarks, which bring rows of their own."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_vlaa.prompts import DEFAULT_SYSTEM_PROMPT, PromptConfig
from lit_vlaa.types import PromptBatch


class NoRows(LightningDataModule):
    """One empty batch a rank: Lightning would pass over an evaluation without any batch, callbacks included."""

    def __init__(self, *, system_prompt: str = DEFAULT_SYSTEM_PROMPT) -> None:
        """Sets what is said to the model ahead of every benchmark's question.

        Args:
            system_prompt: The one that the model was trained with; empty for none.
        """
        super().__init__()
        self.prompt = PromptConfig(system_prompt=system_prompt)

    def setup(self, stage: str) -> None:
        """Refuses training.

        Args:
            stage: What the Trainer begins.

        Raises:
            ValueError: If it is `fit`.
        """
        if stage == "fit":
            raise ValueError("--data datamodules.NoRows is for evaluations alone: fit needs rows, see --data.data_file")

    def val_dataloader(self) -> DataLoader[PromptBatch]:
        """Returns one empty batch."""
        return DataLoader([PromptBatch(())], batch_size=None)  # type: ignore[arg-type]  # a list serves as a data set

    def test_dataloader(self) -> DataLoader[PromptBatch]:
        """Returns one empty batch."""
        return self.val_dataloader()
