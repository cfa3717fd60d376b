"""The paper imports no wing, and a wing only what stands below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ldm_mini"
FLOORS = ("", "scenes editions", "show", "measure released", "checks", "training teaching", "__main__")  # "": the paper
FLOOR = {wing: i for i, wings in enumerate(FLOORS) for wing in wings.split(" ")}


def wing_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else "__main__" if path.stem == "__main__" else ""


def imports(path: Path) -> set[str]:
    """The wings that a file imports, anywhere in it."""
    found, depth = set(), len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            words = (node.module or "").split(".") if node.module else [alias.name for alias in node.names]
            found |= {wing_of(path)} if node.level < depth else {word if word in FLOOR else "" for word in
                      words[:1 if node.module else None]}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = wing_of(path)
    bad = {wing for wing in imports(path) if wing != own and FLOOR[wing] >= FLOOR[own]}
    assert not bad, f"{path.name} of {own or 'the paper'} imports {bad}"
