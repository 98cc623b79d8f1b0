"""What `make audit` makes of pip-audit's reports, without a network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("ci_audit", ROOT / ".ci" / "audit.py")
assert _SPEC is not None
assert _SPEC.loader is not None
ci: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ci)

UNREACHABLE = ci.Done(1, "", "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x'): Max retries exceeded")
MIRROR = ci.Done(0, json.dumps({"dependencies": [{"name": "torch", "skip_reason": "not found"}]}), "No known ...")
HOLE = {"id": "GHSA-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.13.1"]}


def report(*vulns: dict[str, Any], skipped: bool = False) -> Any:
    more = [{"name": "odd", "skip_reason": "not found"}] if skipped else []
    entries = [{"name": "torch", "version": "2.13.0", "vulns": list(vulns)}, *more]
    return ci.Done(1 if vulns else 0, json.dumps({"dependencies": entries}), "")


def asking(**answers: Any) -> tuple[Any, list[str]]:
    asked: list[str] = []

    def ask(service: str) -> Any:
        asked.append(service)
        return answers[service]

    return ask, asked


def test_nothing_known() -> None:
    ask, asked = asking(pypi=report())
    assert ci.audit(ask, {}) == (0, ["1 dependencies audited, 0 advisories to act on"])
    assert asked == ["pypi"]


def test_an_advisory_fails_with_its_name() -> None:
    code, lines = ci.audit(asking(pypi=report(HOLE))[0], {})
    assert code == 1
    assert lines[0] == "torch 2.13.0: GHSA-1 CVE-2026-1 (fixed in 2.13.1)"
    unfixed = {**HOLE, "fix_versions": []}
    assert "no release yet" in ci.audit(asking(pypi=report(unfixed))[0], {})[1][0]


@pytest.mark.parametrize("name", ["GHSA-1", "CVE-2026-1"])
def test_what_is_accepted_is_shown_with_its_reason(name: str) -> None:
    code, lines = ci.audit(asking(pypi=report(HOLE))[0], {name: "needs Windows"})
    assert code == 0
    assert lines[0] == "torch 2.13.0: GHSA-1 CVE-2026-1 (accepted: needs Windows)"
    code, lines = ci.audit(asking(pypi=report(HOLE))[0], {"GHSA-2": "needs Windows"})
    assert code == 1
    assert "advisories.txt: GHSA-2 matches nothing any more; remove it" in lines


def test_a_mirror_without_advisories_is_no_clean_bill() -> None:
    """pip-audit itself ends with 0 and "No known vulnerabilities found" there."""
    ask, asked = asking(pypi=MIRROR, osv=report(HOLE))
    assert ci.audit(ask, {})[0] == 1
    assert asked == ["pypi", "osv"]
    code, lines = ci.audit(asking(pypi=MIRROR, osv=UNREACHABLE)[0], {})
    assert code == 0
    (line,) = lines
    assert line.startswith("skipped, nothing was audited: pypi: knows none of the dependencies (a mirror without")
    assert line.endswith("; osv: cannot be reached")


def test_what_a_service_does_not_know_is_named() -> None:
    code, lines = ci.audit(asking(pypi=report(skipped=True))[0], {})
    assert code == 0
    assert lines[0] == "not audited, as the service does not know them: odd"


@pytest.mark.parametrize("done", [(1, "", "ERROR: package x has duplicate requirements"), (0, "[]", ""), (0, "{", "")])
def test_an_audit_that_does_not_work_fails(done: tuple[int, str, str]) -> None:
    with pytest.raises(ci.BrokenError, match="pip-audit ended with"):
        ci.audit(asking(pypi=ci.Done(*done))[0], {})


def test_pins_are_audited_without_local_parts() -> None:
    lines = ["# comment", "torch==2.13.0+cpu", "jinja2==3.1.6  # why", "", 'x==1 ; python_version < "3.12"']
    assert ci.pins(lines) == ["torch==2.13.0", "jinja2==3.1.6", "x==1"]


def test_every_accepted_advisory_has_a_reason() -> None:
    assert ci.accepted(["# none", "GHSA-1  needs Windows", ""]) == {"GHSA-1": "needs Windows"}
    with pytest.raises(ci.BrokenError, match="GHSA-1 has no reason"):
        ci.accepted(["GHSA-1"])
    ci.accepted(ci.ACCEPTED.read_text(encoding="utf-8").splitlines())


def test_files_that_are_audited_together_agree() -> None:
    """pip-audit refuses two versions of one name."""
    ours, tools = (
        dict(pin.split("==") for pin in ci.pins(file.read_text(encoding="utf-8").splitlines())) for file in ci.AUDITED
    )
    assert {name: tools[name] for name in ours.keys() & tools.keys()} == {
        name: ours[name] for name in ours.keys() & tools.keys()
    }


@pytest.mark.parametrize(
    ("install", "code", "said"),
    [
        (ci.Done(1, "", "ERROR: No matching distribution found for pip-audit"), 0, "audit: skipped"),
        (ci.Done(1, "", "ERROR: disk full"), 2, "audit: pip-audit cannot be installed: ERROR: disk full"),
    ],
)
def test_a_tool_that_cannot_be_installed(
    install: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ci, "_install", lambda: install)
    assert ci.main() == code
    assert capsys.readouterr().out.startswith(said)
