"""Running a step that asks a model: many rows at a time, out in the order in which they came in."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.endpoints.completions import Endpoint, EndpointLostError, RefusedError, UnansweredError, UnmadeError
from lit_vlaa.endpoints.reply_cache import ReplyCache
from lit_vlaa.event_loop import run_apart
from lit_vlaa.pipeline.config import AskConfig, BuildConfig
from lit_vlaa.pipeline.interrupts import InterruptedBuildError, watching
from lit_vlaa.pipeline.prompt_files import PromptFile
from lit_vlaa.pipeline.rows import Reject, Row, StepWriter
from lit_vlaa.pipeline.steps import Asking, Work
from lit_vlaa.rewards.scorers.wire import printable

AHEAD = 16
"""Rows begun, for each that may be asked about at a time; a slow one holds up what comes after these."""

Outcome = Row | Reject | UnansweredError


def ask_rows(
    step: str,
    rows: Iterable[Row],
    writer: StepWriter,
    *,
    config: BuildConfig,
    prompt: PromptFile,
    image_root: Path,
    cache: ReplyCache,
    share: float,
    tick: Callable[[], object],
) -> Mapping[str, tuple[int, int, bool]]:
    """Runs one of the steps 2 to 5 over all rows.

    Args:
        step: Its name.
        rows: In order.
        writer: Takes the outcomes, in the same order.
        config: The build.
        prompt: The step's.
        image_root: Root of the images, resolved.
        cache: Replies on disk.
        share: Part of the rate limit that this process may use.
        tick: Called after each row.

    Returns:
        Tokens in and out of each reply, and whether they are estimates, by question.

    Raises:
        RunStoppedError: If the endpoint is lost, too many rows are without a reply, or none of the first rows passes.
            What was answered is on disk.
        InterruptedBuildError: If a signal told it to stop; what had been sent then is answered and on disk.
        ValueError: If the key is missing.
    """
    settings = config.asking()[step]
    unanswered = 0
    first_unanswered = ""
    counted: Mapping[str, tuple[int, int, bool]] = {}

    async def work() -> None:
        nonlocal unanswered, first_unanswered, counted
        endpoint = Endpoint(settings.endpoint, option=f"{step}.endpoint.base_url", cache=cache, share=share)
        asking = Asking(config, prompt, image_root, endpoint)
        todo: dict[str, Work] = {
            "caption": asking.caption,
            "distil": asking.distil,
            "rewrite": asking.rewrite,
            "verify": asking.verify,
        }
        async with endpoint.open():
            window = AHEAD * settings.endpoint.concurrency
            try:
                async for row, outcome in in_order(rows, todo[step], window=window, stop=interrupts.future()):
                    if isinstance(outcome, Row):
                        writer.keep(outcome)
                        if outcome.verified_by:
                            writer.notes[f"right by {outcome.verified_by}"] += 1
                    else:
                        if isinstance(outcome, UnansweredError):
                            unanswered += 1
                            first_unanswered = first_unanswered or f"{row.id}: {outcome}"
                            outcome = Reject("no reply came", str(outcome))  # noqa: PLW2901
                        writer.reject(outcome, number=row.number, name=row.id, origin=row.origin)
                        _stop_if_nothing_passes(step, settings, writer, outcome)
                    tick()
            except StoppedError:
                sys.stderr.write("\nwaiting for the replies to what has been sent; once more to drop them\n")
                await endpoint.drain()
                raise InterruptedBuildError(interrupts.signum) from None
        writer.usage, counted = endpoint.usage, endpoint.counted

    with watching() as interrupts:
        try:
            run_apart(work)
        except EndpointLostError as error:
            raise RunStoppedError(
                f"step {step}: {error}; run the same command again, nothing is asked twice"
            ) from error
    if unanswered > settings.max_unanswered * writer.rows_in:
        raise RunStoppedError(
            f"step {step}: no reply for {unanswered} of {writer.rows_in} rows (first: {first_unanswered}); run the "
            f"same command again, nothing that was answered is asked twice; or allow for them by {step}.max_unanswered"
        )
    return counted


def _stop_if_nothing_passes(step: str, settings: AskConfig, writer: StepWriter, last: Reject) -> None:
    """A wrong option or prompt is told by the first rows, and not paid for by all."""
    if writer.rows_out or writer.rows_in != settings.stop_after:
        return
    most = max(writer.rejected, key=lambda reason: writer.rejected[reason])
    raise RunStoppedError(
        f"step {step}: none of the first {writer.rows_in} rows passed (most often: {most}; the last: {last.reason}: "
        f"{printable(last.detail)}); set options, prompt or model right, or go on by {step}.stop_after: null"
    )


class StoppedError(Exception):
    """Rows that are not worked on because of `stop`."""


async def in_order(
    rows: Iterable[Row], work: Work, *, window: int, stop: asyncio.Future[None] | None = None
) -> AsyncIterator[tuple[Row, Outcome]]:
    """Begins `window` rows, and a further one for each that is handed out.

    Args:
        rows: In order; taken when their turn comes.
        work: A coroutine function of a row.
        window: Rows that are begun and not handed out yet.
        stop: Ends it when it is done.

    Yields:
        Each row with its outcome, in order.

    Raises:
        EndpointLostError: As soon as one row meets it, whichever that is.
        StoppedError: If `stop` is done.
    """
    coming = iter(rows)
    begun: deque[tuple[Row, asyncio.Task[Outcome]]] = deque()
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(task: asyncio.Task[Outcome]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not lost.done():
            lost.set_exception(error)

    try:
        while True:
            while len(begun) < window and (row := next(coming, None)) is not None:
                task = asyncio.create_task(_outcome(work, row))
                task.add_done_callback(ended)
                begun.append((row, task))
            if not begun:
                return
            row, task = begun[0]
            ends = (task, lost) if stop is None else (task, lost, stop)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stop is not None and stop.done():
                raise StoppedError
            if lost.done():
                lost.result()
            begun.popleft()
            yield row, task.result()
    finally:
        for _, task in begun:
            task.cancel()
        await asyncio.gather(*(task for _, task in begun), return_exceptions=True)
        if lost.done():
            lost.exception()
        else:
            lost.cancel()


async def _outcome(work: Work, row: Row) -> Outcome:
    try:
        return await work(row)
    except UnansweredError as error:
        return error
    except UnmadeError as error:
        return Reject("the request could not be made", str(error))
    except RefusedError as error:
        return Reject("the endpoint refused the request", str(error))
