"""Which weights a job began from.

A job's identity is that of its configuration, data and seed. A stage that is trained again, on a GPU say, ends with
other weights under the same identity: jobs that began from the earlier ones must not be set beside those that begin
from the later ones. So each training job notes a hash of the weights that it left, each job those that it began from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_vlaa.checks import UsageError
from lit_vlaa.study.job_files import write_json
from lit_vlaa.study.plan import Job, Plan

BEGUN = ".begun.json"
"""Beside `done.json`: what the job began from, noted before it runs."""
FROM, WEIGHTS = "from", "weights_sha256"
"""Keys of `done.json`."""

_SAMPLES = 256
"""Numbers of a tensor that count; training changes nearly all of them."""


def weights_sha256(path: Path) -> str:
    """A hash of a checkpoint's weights, of large tensors of a sample; of a sharded folder of its files' checksums."""
    import torch  # noqa: PLC0415  # slow to import

    from lit_vlaa.checkpoints import header, is_sharded_checkpoint  # noqa: PLC0415

    total, content = hashlib.sha256(), header(path)
    if is_sharded_checkpoint(path):
        total.update(json.dumps(content.get("parts"), sort_keys=True).encode())
        return total.hexdigest()
    tensors = {name: value for name, value in content.get("state_dict", {}).items() if isinstance(value, torch.Tensor)}
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].contiguous()
        total.update(sample.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def origins(folder: Path, job: Job) -> dict[str, str]:
    """Hashes of the weights that the jobs which this one needs have left, as far as they left any."""
    found = {name: done(folder / "jobs" / name).get(WEIGHTS) for name in job.after}
    return {name: weights for name, weights in found.items() if isinstance(weights, str)}


def note_begin(folder: Path, job: Job) -> None:
    """Notes what a job begins from.

    Raises:
        UsageError: If it was begun from something else, and would go on with what that has left.
    """
    place = folder / "jobs" / job.id
    weights = origins(folder, job)
    now = {"config_sha256": job.config_sha256, FROM: weights}
    known = _object(place / BEGUN)
    if known and known != now:
        earlier = known.get(FROM)
        changed = [n for n in job.after if not isinstance(earlier, dict) or earlier.get(n) != weights.get(n)]
        what = f"another result of {', '.join(changed)}" if changed else "another configuration"
        raise UsageError([f"job {job.id} was begun from {what}; remove {place} to run it from its beginning"])
    if not known:
        write_json(place / BEGUN, now)


def refuse_mixed(folder: Path, plan: Plan) -> None:
    """Refuses a study whose jobs began from weights that are no longer there.

    Raises:
        UsageError: If there is one; names the jobs to run again.
    """
    if problems := list(mixed(folder, {job.id: job.after for job in plan.jobs})):
        raise UsageError(problems)


def mixed(folder: Path, after: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Jobs that have ended and began from other weights than those there now, one line each.

    Args:
        folder: The study's.
        after: For each job those that it needs.
    """
    jobs = {name: done(folder / "jobs" / name) for name in after}
    for name, needs in after.items():
        began = jobs[name].get(FROM)
        if not isinstance(began, dict):
            continue
        for need in needs:
            now = jobs[need].get(WEIGHTS) if need in jobs else None
            if isinstance(now, str) and began.get(need) not in {None, now}:
                yield (
                    f"job {name} began from other weights of {need} than are there now: arms would differ in what they "
                    f"began from; remove {folder / 'jobs' / name} and run the study again"
                )


def done(place: Path) -> dict[str, Any]:
    """What a job noted at its end; nothing where it has not ended."""
    return _object(place / "done.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
