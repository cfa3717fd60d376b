"""One-token mutants of a Python file: every place where one operator, number, name or pair of arguments can change.

A mutant is a `Change`: the file with the bytes from `start` to `end` replaced. What only speaks to people (docstrings,
annotations, messages of errors and warnings) is left alone.
"""

import ast
import re
from dataclasses import dataclass

BINARY = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Mod: ("%", "//"),
          ast.FloorDiv: ("//", "%"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")}
COMPARE = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
           ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
           ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")}
BOOLEAN = {ast.And: ("and", "or"), ast.Or: ("or", "and")}
SIGN = {ast.USub: "", ast.Not: "", ast.Invert: ""}
NAMES = {"no_grad": "enable_grad", "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum",
         "any": "all", "all": "any", "sum": "mean", "mean": "sum", "sin": "cos", "cos": "sin", "zeros": "ones",
         "ones": "zeros", "zeros_like": "ones_like", "ones_like": "zeros_like", "argmin": "argmax", "floor": "ceil"}
DIMENSIONS = {"dim", "dims", "axis", "unsqueeze", "squeeze", "transpose", "flatten", "unflatten", "unbind", "chunk",
              "permute", "movedim", "flip", "roll"}
# of these the order of two arguments says nothing, or makes only nonsense
UNSWAPPED = {"isinstance", "getattr", "hasattr", "setattr", "min", "max", "minimum", "maximum", "equal", "mse_loss",
             "l1_loss", "register_buffer", "zip", "warn"}


@dataclass(frozen=True)
class Change:
    """Replace the bytes start..end of `file` (a path inside the package) by `new`. `line` counts from 1; `function` is
    the first line of the innermost function around it, decorators included, 0 outside of all."""

    file: str
    line: int
    function: int
    kind: str
    start: int
    end: int
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        """The mutant; it is Python still, or the finder is wrong."""
        mutant = source[:self.start] + self.new.encode() + source[self.end:]
        ast.parse(mutant)
        return mutant


class Finder(ast.NodeVisitor):
    """Collects the changes of one file in `found`."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.found = file, source, []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.function, self.default, self.dimension = [0], False, False
        self.visit(ast.parse(source))

    def span(self, node) -> tuple[int, int]:
        return (self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset)

    def add(self, kind: str, node, start: int, end: int, new: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        self.found.append(Change(self.file, line, self.function[-1], kind, start, end,
                                 self.source[start:end].decode(), new))

    def between(self, kind: str, left, right, old: str, new: str) -> None:
        """`old` stands somewhere between two neighbours, among blanks and brackets."""
        start, end = self.span(left)[1], self.span(right)[0]
        place = re.match(rb"(?:#[^\n]*|[\s()\\])*(" + re.escape(old).encode() + rb")", self.source[start:end])
        self.add(kind, left, start + place.start(1), start + place.end(1), new)

    # what is left alone
    def visit_Raise(self, node): ...
    def visit_Assert(self, node): ...
    def visit_JoinedStr(self, node): ...

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.default = True                                 # a field's default
            self.visit(node.value)
            self.default = False

    # where we are
    def visit_FunctionDef(self, node):
        self.function.append(min([node.lineno, *(d.lineno for d in node.decorator_list)]))
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.default = True
        for value in [*node.args.defaults, *node.args.kw_defaults]:
            if value is not None:
                self.visit(value)
        self.default = False
        for statement in node.body:
            self.visit(statement)
        self.function.pop()

    # what is changed
    def visit_BinOp(self, node):
        if type(node.op) in BINARY:
            self.between("arithmetic", node.left, node.right, *BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in BINARY:
            old, new = BINARY[type(node.op)]
            self.between("arithmetic", node.target, node.value, old + "=", new + "=")
        self.visit(node.value)

    def visit_Compare(self, node):
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between("comparison", left, right, *COMPARE[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        self.between("comparison", node.values[0], node.values[1], *BOOLEAN[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if type(node.op) in SIGN:
            start = self.span(node)[0]
            self.add("sign", node, start, start + len({ast.Not: "not"}.get(type(node.op), "-")), SIGN[type(node.op)])
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            new = str(not value)
        elif isinstance(value, int):
            new = str(value + 1)
        elif isinstance(value, float):
            new = repr(value * 2 if value else 1.0)
        else:
            return
        kind = "default" if self.default else "dimension" if self.dimension else "constant"
        self.add(kind, node, *self.span(node), new)

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "warn":
            return
        if name == "detach":
            self.add("gradient", node, self.span(node)[1] - len(".detach()"), self.span(node)[1], "")
        elif name in NAMES:
            end = self.span(node.func)[1]
            self.add("gradient" if name == "no_grad" else "name", node, end - len(name), end, NAMES[name])
        if len(node.args) > 1 and name not in UNSWAPPED and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            (a, b), (c, d) = map(self.span, node.args[:2])
            first, middle, second = self.source[a:b], self.source[b:c], self.source[c:d]
            if first != second:
                self.add("arguments", node, a, d, (second + middle + first).decode())
        self.visit(node.func)
        for argument in [*node.args, *(k for k in node.keywords if k.arg != "strict")]:
            before = self.dimension
            self.dimension = (argument.arg in DIMENSIONS if isinstance(argument, ast.keyword) else name in DIMENSIONS)
            self.visit(argument.value if isinstance(argument, ast.keyword) else argument)
            self.dimension = before
