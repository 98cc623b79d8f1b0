"""Looks for published advisories on the pinned dependencies, by pip-audit in an environment of its own.

An advisory that `.ci/advisories.txt` does not accept fails, with its name. Where no advisory service can be reached the
audit is skipped, with the reasons.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-audit"
TOOL = ROOT / ".ci" / "audit-constraints.txt"
AUDITED = (ROOT / "constraints.txt", TOOL)
ACCEPTED = ROOT / ".ci" / "advisories.txt"
SERVICES = ("pypi", "osv")
"""Asked in this order until one answers; a mirror of the package index may know no advisories."""

OFFLINE = re.compile(
    r"Connection ?Error|ConnectTimeout|ReadTimeout|NameResolution|Max retries|Could not connect|timed out|"
    r"NewConnectionError|ProxyError|SSLError|Temporary failure|Errno -[235]|HTTPError|No matching distribution|"
    r"Could not find a version",
    re.IGNORECASE,
)
"""What pip and pip-audit say where they cannot reach a server."""

OK, FOUND, BROKEN = 0, 1, 2


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Ask = Callable[[str], Done]
"""Runs pip-audit against a service."""


class BrokenError(Exception):
    """The audit itself does not work; the message says why."""


def pins(lines: Iterable[str]) -> list[str]:
    """`name==version` of each line, without the local part (`+cpu`), of which no advisory speaks.

    Args:
        lines: Of a file of constraints.
    """
    wanted = [line.partition("#")[0].split(";")[0].strip() for line in lines]
    return [re.sub(r"\+[\w.]+$", "", line) for line in wanted if line]


def accepted(lines: Iterable[str]) -> dict[str, str]:
    """Advisories that are accepted, with the reasons.

    Args:
        lines: An identifier and a reason each; `#` begins a comment.

    Raises:
        BrokenError: If one has no reason.
    """
    found: dict[str, str] = {}
    for line in lines:
        words = line.partition("#")[0].split(maxsplit=1)
        if len(words) == 1:
            raise BrokenError(f"{ACCEPTED.name}: {words[0]} has no reason behind it")
        if words:
            found[words[0]] = words[1].strip()
    return found


def judge(report: Any, allowed: Mapping[str, str]) -> tuple[int, list[str]] | None:
    """What a report comes to.

    Args:
        report: What pip-audit wrote as JSON.
        allowed: As `accepted` returns it.

    Returns:
        The exit code and lines to print; None where the service knew none of the dependencies.
    """
    dependencies = report["dependencies"]
    known = [entry for entry in dependencies if "skip_reason" not in entry]
    if not known:
        return None
    lines, used, bad = [], set(), 0
    for entry in known:
        for advisory in entry["vulns"]:
            names = [advisory["id"], *advisory.get("aliases", ())]
            reasons = [name for name in names if name in allowed]
            used.update(reasons)
            bad += not reasons
            fixed = ", ".join(advisory.get("fix_versions") or ()) or "no release yet"
            verdict = f"accepted: {allowed[reasons[0]]}" if reasons else f"fixed in {fixed}"
            lines.append(f"{entry['name']} {entry['version']}: {' '.join(names)} ({verdict})")
    skipped = sorted(entry["name"] for entry in dependencies if "skip_reason" in entry)
    if skipped:
        lines.append(f"not audited, as the service does not know them: {', '.join(skipped)}")
    lines += [f"{ACCEPTED.name}: {name} matches nothing any more; remove it" for name in sorted(allowed.keys() - used)]
    lines.append(f"{len(known)} dependencies audited, {bad} advisories to act on")
    return (FOUND if bad else OK), lines


def audit(ask: Ask, allowed: Mapping[str, str], services: Sequence[str] = SERVICES) -> tuple[int, list[str]]:
    """Asks one service after the other until one answers.

    Args:
        ask: Asks a service.
        allowed: As `accepted` returns it.
        services: Which.

    Returns:
        The exit code and lines to print.

    Raises:
        BrokenError: If pip-audit fails for another reason than the network.
    """
    silent = []
    for service in services:
        done = ask(service)
        try:
            verdict = judge(json.loads(done.out), allowed)
        except (ValueError, KeyError, TypeError) as error:
            if not OFFLINE.search(done.err):
                said = done.err.strip().splitlines() or [f"no report, but {done.out[:80]!r}"]
                raise BrokenError(f"pip-audit ended with {done.code}: {said[-1][:300]}") from error
            silent.append(f"{service}: cannot be reached")
        else:
            if verdict is not None:
                return verdict
            silent.append(f"{service}: knows none of the dependencies (a mirror without advisories)")
    return OK, [f"skipped, nothing was audited: {'; '.join(silent)}"]


def _run(*words: str | Path, timeout: float) -> Done:
    try:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Done(1, "", f"timed out after {timeout:g} s")
    return Done(done.returncode, done.stdout, done.stderr)


def _install() -> Done:
    """Puts pip-audit into its environment, unless it is there as pinned."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == TOOL.read_text(encoding="utf-8"):
        return Done(0, "", "")
    venv.create(ENVIRONMENT, with_pip=True)
    done = _run(
        *(python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps", "-r", TOOL),
        timeout=300,
    )
    if done.code == 0:
        stamp.write_text(TOOL.read_text(encoding="utf-8"), encoding="utf-8")
    return done


def _audit() -> tuple[int, list[str]]:
    allowed = accepted(ACCEPTED.read_text(encoding="utf-8").splitlines())
    done = _install()
    if done.code:
        if OFFLINE.search(done.err):
            return OK, ["skipped, nothing was audited: pip-audit cannot be installed, as no package index answers"]
        raise BrokenError(f"pip-audit cannot be installed: {done.err.strip().splitlines()[-1][:300]}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "audited.txt")
        lines = [line for path in AUDITED for line in pins(path.read_text(encoding="utf-8").splitlines())]
        file.write_text("\n".join(sorted(set(lines))), encoding="utf-8")
        flags = ("--no-deps", "--disable-pip", "--format", "json", "--desc", "off", "--aliases", "on")
        tool = (ENVIRONMENT / "bin" / "pip-audit", "--progress-spinner", "off", "--requirement", file, *flags)
        return audit(lambda service: _run(*tool, "--vulnerability-service", service, timeout=300), allowed)


def main() -> int:
    """Installs, asks, prints.

    Returns:
        0 without an advisory to act on, 1 with one, 2 if the audit does not work.
    """
    try:
        code, said = _audit()
    except BrokenError as error:
        code, said = BROKEN, [str(error)]
    sys.stdout.writelines(f"audit: {line}\n" for line in said)
    return code


if __name__ == "__main__":
    sys.exit(main())
