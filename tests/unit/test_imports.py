"""The import directions of the design, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lit_vlaa", "callbacks", "datamodules")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 350

PURE = ("lit_vlaa.advantages", "lit_vlaa.losses", "lit_vlaa.kl", "lit_vlaa.sequences")
MODELS = ("lit_vlaa.sft", "lit_vlaa.grpo", "lit_vlaa.backbone")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names imported anywhere in a file; those below `if TYPE_CHECKING` do not count."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"__future__"}


def by_name(name: str) -> Path:
    path = ROOT / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():
        pytest.skip(f"{name} is not written yet")
    return path


def own(path: Path) -> set[str]:
    """Modules of this project that a file imports (a name imported from a module counts as the module)."""
    known = {module_name(source) for source in SOURCES}
    found = {name for name in imports(path) if within(name, PACKAGES)}
    return {name if name in known else name.rpartition(".")[0] for name in found}


def test_types_import_torch_only() -> None:
    assert third_party(by_name("lit_vlaa.types")) == {"torch"}


def test_protocols_import_types_only() -> None:
    path = by_name("lit_vlaa.protocols")
    assert third_party(path) == {"torch", "lit_vlaa"}
    assert own(path) == {"lit_vlaa.types"}


@pytest.mark.parametrize("name", PURE)
def test_pure_maths_import_torch_and_types_only(name: str) -> None:
    path = by_name(name)
    assert third_party(path) <= {"torch", "lit_vlaa"}
    assert own(path) <= {"lit_vlaa.types"}


@pytest.mark.parametrize("name", ["lit_vlaa.prompts", "lit_vlaa.answers"])
def test_prompts_and_answers_import_types_only(name: str) -> None:
    assert own(by_name(name)) <= {"lit_vlaa.types"}


def below(package: str) -> list[Path]:
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == package]


@pytest.mark.parametrize("path", below("datamodules"), ids=module_name)
def test_datamodules_import_types_and_prompts_only(path: Path) -> None:
    assert {name for name in own(path) if within(name, ("lit_vlaa", "callbacks"))} <= {
        "lit_vlaa.types",
        "lit_vlaa.protocols",
        "lit_vlaa.prompts",
        "lit_vlaa.checks",
        "lit_vlaa.digests",
        "lit_vlaa.flags",
        "lit_vlaa.hints",
        "lit_vlaa.traces",
        "lit_vlaa.whole_files",
    }


@pytest.mark.parametrize("path", below("callbacks"), ids=module_name)
def test_callbacks_do_not_know_the_modules(path: Path) -> None:
    assert not [name for name in own(path) if within(name, MODELS)]


@pytest.mark.parametrize("path", below("lit_vlaa"), ids=module_name)
def test_the_library_does_not_import_callbacks_or_datamodules_at_its_core(path: Path) -> None:
    name = module_name(path)
    if name == "lit_vlaa" or within(
        name,
        (
            "lit_vlaa.quickstart",
            "lit_vlaa.rewards_check",
            "lit_vlaa.study",
            "lit_vlaa.pipeline",
            "lit_vlaa.selection",
            "lit_vlaa.predict",
        ),
    ):
        pytest.skip("puts the parts together")
    assert not [found for found in own(path) if within(found, ("callbacks", "datamodules"))]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nobody_imports_the_command_line(path: Path) -> None:
    # The quickstart is a list of commands that it runs one after the other.
    if module_name(path) not in {"lit_vlaa.__main__", "lit_vlaa.quickstart"}:
        assert "lit_vlaa.cli" not in own(path)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
