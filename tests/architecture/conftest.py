"""Fixtures of the architecture tests: the source tree, parsed but not imported."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lightwam"


@dataclass(frozen=True)
class Module:
    """One file of src/lightwam."""

    name: str
    """dotted, without the leading "lightwam."; a package has the name of its folder, the root is "" """
    path: Path
    tree: ast.Module

    def location(self, node: ast.AST) -> str:
        """Return path and line of `node`."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Repository:
    """The repository."""

    root: Path
    modules: dict[str, Module]

    def documents(self) -> list[Path]:
        """Return every Markdown page."""
        return sorted(path for place in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in self.root.glob(place))

    def templates(self) -> list[Path]:
        """Markdown that lightwam fills in and that a person then reads."""
        return sorted((self.root / "src").rglob("templates/*.md"))

    def make_targets(self) -> set[str]:
        """Return the targets of the Makefile."""
        lines = (self.root / "Makefile").read_text().splitlines()
        heads = [line.split(":")[0] for line in lines if ":" in line and not line.startswith(("\t", "#", ".", " "))]
        return {word for head in heads for word in head.split()}


def parse(path: Path) -> Module:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


@pytest.fixture(scope="session")
def repository() -> Repository:
    modules = [parse(path) for path in sorted(SOURCE.rglob("*.py"))]
    return Repository(ROOT, {module.name: module for module in modules})
