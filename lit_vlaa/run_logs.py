"""A run's TensorBoard events and `metrics.csv`: a disk that takes no more of them ends the run in good order.

What cannot be written is noted and what was half written is cut off again, so that both files stay readable; all ranks
hear of it at the next batch (`check_logs`), where a checkpoint can be saved.
"""

from __future__ import annotations

import csv
import os
import shutil
import socket
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter as _FabricWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.stopping import stop_run
from lit_vlaa.whole_files import replacing


class Trouble:
    """What was wrong with the first log file that could not be written."""

    def __init__(self) -> None:
        self.said = ""

    def note(self, path: str | Path, error: OSError) -> None:
        """Keeps the first one.

        Args:
            path: The file.
            error: What the system said.
        """
        if not self.said:
            free = shutil.disk_usage(next(parent for parent in Path(path).absolute().parents if parent.is_dir())).free
            why = error.strerror or str(error)
            self.said = f"{path} could not be written ({why}; {free / 2**30:.3g} GiB are free there); make room"


class EventLogger(TensorBoardLogger):
    """Writes events as they come, without a thread whose errors nobody hears.

    Args:
        root: The folder of all runs.
        version: The run's, as for `TensorBoardLogger`.
        trouble: Where to note what cannot be written.
    """

    def __init__(self, root: str | Path, version: int | str | None, trouble: Trouble) -> None:
        super().__init__(root, name="", version=version)
        self.trouble = trouble

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of summaries."""
        if self._experiment is None:
            self._experiment = _Board(self.log_dir, self.trouble)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Writes `hparams.yaml` where there is none."""
        try:
            super().save()
        except OSError as error:
            self.trouble.note(Path(self.log_dir, self.NAME_HPARAMS_FILE), error)


class RowLogger(CSVLogger):
    """Brings every row to the disk at once, so that a run that goes on after a crash leaves no gap.

    Args:
        root: The folder of all runs.
        version: The run's, as for `CSVLogger`.
        trouble: Where to note what cannot be written.
    """

    def __init__(self, root: str | Path, version: int | str | None, trouble: Trouble) -> None:
        super().__init__(root, name="", version=version, flush_logs_every_n_steps=1)
        self.trouble = trouble

    @property
    @rank_zero_experiment
    def experiment(self) -> _FabricWriter:
        """The writer of rows."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir, self.trouble)
        return self._experiment


def check_logs(trainer: Trainer) -> None:
    """Ends a run whose logs cannot be written, with a checkpoint if it trains; every rank must call it.

    Raises:
        RunStoppedError: With the file, the reason and how to go on.
    """
    own = [logger for logger in trainer.loggers if isinstance(logger, EventLogger | RowLogger)]
    said = next((logger.trouble.said for logger in own if logger.trouble.said), "")
    if not own or not trainer.strategy.reduce_boolean_decision(bool(said), all=False):
        return
    reason = said or "the logs of the first rank could not be written"
    if trainer.state.fn == "fit":
        stop_run(trainer, reason, {})
    raise RunStoppedError(f"{reason}, and run the command again")


class _Rows(ExperimentWriter):
    def __init__(self, folder: str, trouble: Trouble) -> None:
        super().__init__(folder)
        self._trouble = trouble
        self._whole = 0
        """Bytes of the file that hold whole rows."""

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        if self._trouble.said:
            self.metrics = []
            return
        try:
            self._whole = path.stat().st_size if path.exists() else 0
            super().save()
        except OSError as error:
            self._trouble.note(path, error)
            self.metrics = []
            with suppress(OSError):
                os.truncate(path, self._whole)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Writes the file anew, in place of the old one only when all of it is there."""
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as old, replacing(path) as part:
            with part.open("w", newline="", encoding="utf-8") as new:
                writer = csv.DictWriter(new, fieldnames=fieldnames)
                writer.writeheader()
                writer.writerows(csv.DictReader(old))
            size = part.stat().st_size
        self._whole = size


class _Board(SummaryWriter):
    def __init__(self, folder: str, trouble: Trouble) -> None:
        self._trouble = trouble
        self.file_writer: Any
        self.all_writers: Any
        super().__init__(folder)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None or self.all_writers is None:
            self.file_writer = _Writer(self.log_dir, self._trouble)
            self.all_writers = {self.log_dir: self.file_writer}
        writer: FileWriter = self.file_writer
        return writer


class _Writer(FileWriter):
    def __init__(self, folder: str, trouble: Trouble) -> None:
        self.event_writer = _EventFile(Path(folder), trouble)


class _EventFile:
    """A file of events in TensorBoard's form, which is whole after each of them."""

    opened = 0
    """How many there were in this process, for their names."""

    def __init__(self, folder: Path, trouble: Trouble) -> None:
        start = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / f"{start}.{_EventFile.opened}"
        _EventFile.opened += 1
        self._trouble = trouble
        self._records = RecordWriter(self)
        self._file: FileIO | None = None
        self._whole = 0
        self._head = Event(wall_time=time.time(), file_version="brain.Event:2")
        """The first event, written ahead of the second: a run that fails while it is set up leaves no file."""

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def add_event(self, event: Any) -> None:
        if self._trouble.said:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for each in (event,) if self._whole else (self._head, event):
                self._records.write(each.SerializeToString())
        except OSError as error:
            self._trouble.note(self.path, error)
            with suppress(OSError):
                os.truncate(self.path, self._whole)

    def write(self, record: bytes) -> None:
        """Appends a record; what `RecordWriter` calls."""
        self._file = self._file or self.path.open("ab", buffering=0)
        rest = memoryview(record)
        while rest:  # an almost full disk takes a part of it, and says so by the count alone
            rest = rest[self._file.write(rest) :]
        self._whole += len(record)

    def flush(self) -> None:
        """All is written already."""

    def close(self) -> None:
        """Closes the file; another event opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reopen(self) -> None:
        """The next event opens the file."""
