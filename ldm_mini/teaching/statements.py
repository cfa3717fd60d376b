"""Which statements of a notebook an exercise stands on: its imports, helpers and constants, and nothing else."""

import ast
import symtable
from dataclasses import dataclass
from functools import lru_cache

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Statement:
    """A statement of a cell that gives names to things."""

    node: ast.stmt
    cell: int
    binds: frozenset
    uses: frozenset  # names that must be there, now or when it is called


def statements(codes) -> list[Statement]:
    """The naming statements of cells of code, in order, without those that Python cannot read."""
    found = []
    for number, code in enumerate(codes):
        for node in parse(code).body:
            try:
                found += [Statement(node, number, bound(node), used(node))] if bound(node) else []
            except UNREADABLE:
                pass
    return found


@lru_cache(maxsize=10_000)
def parse(code: str) -> ast.Module:
    """A cell of code, without what IPython reads (%, !, ?); empty if it does not parse."""
    lines = ["pass" if line.startswith(("%", "!", "?")) else line for line in code.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except UNREADABLE:
        return ast.Module([], [])


@lru_cache(maxsize=10_000)
def bound(node: ast.stmt) -> frozenset:
    """The names that an import, a definition or an assignment binds."""
    if isinstance(node, DEFINITIONS):
        return frozenset([node.name])
    if isinstance(node, IMPORTS):
        return frozenset((alias.asname or alias.name.split(".")[0]) for alias in node.names)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return frozenset(part.id for target in targets for part in ast.walk(target)
                     if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))


@lru_cache(maxsize=10_000)
def used(node: ast.AST) -> frozenset:
    """The global names that a statement, or a function in it, looks up."""
    def lookups(table, top=False):
        names = {symbol.get_name() for symbol in table.get_symbols()
                 if symbol.is_referenced() and (top or symbol.is_global())}
        return names.union(*map(lookups, table.get_children()))

    return frozenset(lookups(symtable.symtable(ast.unparse(node), "cell", "exec"), top=True))


def needed(names, above: list[Statement]) -> list[Statement]:
    """Those of `above` that give these names their last meaning, and what these need in turn; in order."""
    names, chosen = set(names), []
    for statement in reversed(above):
        if statement.binds & names:
            names = names - statement.binds | statement.uses
            chosen.append(statement)
    return chosen[::-1]
