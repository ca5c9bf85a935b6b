"""Imports run one way; this reads them all."""

import ast
from pathlib import Path

import pytest

import bayesmem

ROOT = Path(bayesmem.__file__).parent
BELOW = {
    "types": set(),
    "ops": {"types"},
    "design": {"types"},
    "theory": {"design", "types"},
    "tasks": {"types"},
    "report": {"types"},
    "layers": {"design", "ops", "types"},
    "models": {"layers", "design", "ops", "types"},
    "train": {"models", "types"},
    "experiments": {"train", "tasks", "theory", "report", "models", "layers", "design", "ops", "types"},
    "commands": {"experiments", "train", "report", "tasks", "models"},
    "cli": {"commands", "experiments", "report", "tasks", "design"},
    "__init__": {"layers", "design", "ops", "types"},
}


def imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[1] for name in names if name.startswith("bayesmem.")}


# A design offers its own filter and layer: these two imports point up, inside functions.
CONVENIENCE = {"design/model.py": {"layers"}}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    place = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = BELOW[place] | CONVENIENCE.get(path.relative_to(ROOT).as_posix(), set())
    assert imported(path) - {place} <= allowed
