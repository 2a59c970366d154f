"""The source tree as the house tests read it: parsed, never imported."""

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
    """dotted, without the leading "lightwam."; a package is called by its folder, the root is "" """
    path: Path
    tree: ast.Module

    def place(self, node: ast.AST) -> str:
        """Where `node` stands, for a message."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class House:
    """The repository."""

    root: Path
    modules: dict[str, Module]

    def documents(self) -> list[Path]:
        """Every page that a person reads."""
        return sorted(path for path in (*self.root.glob("*.md"), *self.root.glob("docs/**/*.md")))

    def templates(self) -> list[Path]:
        """Markdown that lightwam fills in and that a person then reads."""
        return sorted((self.root / "src").rglob("templates/*.md"))

    def make_targets(self) -> set[str]:
        """The targets of the Makefile."""
        lines = (self.root / "Makefile").read_text().splitlines()
        heads = [line.split(":")[0] for line in lines if ":" in line and not line.startswith(("\t", "#", ".", " "))]
        return {word for head in heads for word in head.split()}


def parse(path: Path) -> Module:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


@pytest.fixture(scope="session")
def house() -> House:
    modules = [parse(path) for path in sorted(SOURCE.rglob("*.py"))]
    return House(ROOT, {module.name: module for module in modules})
