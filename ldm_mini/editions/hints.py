"""Two hints for each exercise, made from its solution: what that is built of, and its outline."""

import ast

from .source import STUB, Exercise

EVERYDAY = {"dict", "enumerate", "float", "getattr", "int", "isinstance", "len", "list", "max", "min", "print", "range",
            "reversed", "set", "sorted", "sum", "super", "tuple", "zip"}  # not worth a hint
MODULES = {"torch", "F", "nn", "math"}  # their functions explain themselves
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
         ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.Invert: "~"}
PLAIN = (ast.Name, ast.Constant, ast.Attribute)


def hint(task: Exercise) -> str:
    """How long the course's version is, and what it is made of in the order in which that is written."""
    steps, names = [step for _, part in _parts(task) for step in part], _Names(task)
    lines = [line for line in task.answer.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    calls = [word for word in _in_order(steps, names.called) if word not in names.own - names.inputs]
    uses = [f"uses, in this order, {_listed(calls)}"] if calls else []
    if not calls or not outline(task):
        uses.append(f"puts together {_listed(_in_order(steps, names.input))}")
        uses[-1] += f" with {_listed(signs)}" if (signs := _in_order(steps, _sign)) else ""
    asked = next((word for word in calls if word.partition(".")[0] in MODULES), None)
    return (f"The course's version takes {'one line' if len(lines) == 1 else f'{len(lines)} lines'}. It "
            + ", and ".join(uses) + "."
            + (f" To see what `{asked}` does, run `{asked}?` in a cell of your own." if asked else ""))


def outline(task: Exercise) -> str:
    """The course's version, `...` for what it computes and beside that what it is made of; "" if it is one step."""
    parts, names = _parts(task), _Names(task)
    if sum(isinstance(node, ast.stmt) for _, part in parts for step in part for node in ast.walk(step)) < 2:
        return ""
    return "\n".join(line for head, part in parts for line in [head, *_block(part, names)])


class _Names:
    """What the names of an exercise stand for: its inputs, its own variables, or something from outside."""

    def __init__(self, task: Exercise):
        self.inputs = {node.arg for node in ast.walk(ast.parse(task.stub)) if isinstance(node, ast.arg)}
        nodes = list(ast.walk(ast.parse(task.solution)))
        self.own = {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        self.own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}

    def input(self, node) -> str:
        return node.id if isinstance(node, ast.Name) and node.id in self.inputs - {"self"} else ""

    def called(self, node) -> str:
        """What a node calls: `torch.where`, `.softmax` of some tensor, `@`, a function that is an input; or ""."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return "@"
        function = getattr(node, "func", None)
        if isinstance(function, ast.Name):
            return "" if function.id in EVERYDAY else function.id
        if not isinstance(function, ast.Attribute):
            return ""
        root = function.value
        while isinstance(root, ast.Attribute):
            root = root.value
        outside = isinstance(root, ast.Name) and root.id not in self.own - {"self"}
        return ast.unparse(function) if outside else f".{function.attr}"


def _parts(task: Exercise) -> list[tuple[str, list]]:
    """What stands in the place of each stub: the head of its function, and the statements."""
    found = []

    def look(stubs, body, head):
        raising = [i for i, node in enumerate(stubs) if isinstance(node, ast.Raise) and ast.unparse(node) == _STUB]
        if raising:
            found.append((head, body[raising[0]:len(body) - len(stubs) + raising[-1] + 1]))
        for i, node in enumerate(stubs):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                partner = body[i if not raising or i < raising[0] else i - len(stubs)]
                inside = isinstance(node, ast.FunctionDef)
                look(node.body, partner.body, f"def {node.name}({ast.unparse(node.args)}):" if inside else "")

    look(ast.parse(task.stub).body, ast.parse(task.solution).body, "")
    return found


_STUB = ast.unparse(ast.parse(STUB))


def _in_order(nodes, word_of) -> list[str]:
    """The words of all that is in some nodes, as they are read, each once."""
    found = [(_place(node), word_of(node)) for top in nodes for node in ast.walk(top) if word_of(node)]
    return list(dict.fromkeys(word for _, word in sorted(found)))


def _place(node) -> tuple[int, int]:
    """Where a word is written: `.round` of `x.round()` and `+` of `a + b` behind what they take."""
    first = getattr(node, "func", None) or getattr(node, "left", None) or getattr(node, "target", None)
    return (first.end_lineno, first.end_col_offset) if first else (node.lineno, node.col_offset)


def _sign(node) -> str:
    return SIGNS.get(type(getattr(node, "op", None)), "")


def _listed(words) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _block(body, names) -> list[str]:
    return ["    " + line for node in body for line in _step(node, names)]


def _step(node, names) -> list[str]:
    """The lines of one statement."""
    def line(text, *made_of):
        parts = [part for part in made_of if part]
        words = _in_order(parts, names.called) or _in_order(parts, _sign)
        return text + (f"  # {', '.join(words)}" if words else "")

    if isinstance(node, ast.For):
        lines = [line(f"for {_target(node.target)} in {_blank(node.iter)}:", node.iter), *_block(node.body, names)]
    elif isinstance(node, (ast.If, ast.While)):
        word = "if" if isinstance(node, ast.If) else "while"
        lines = [line(f"{word} {_blank(node.test)}:", node.test), *_block(node.body, names)]
    elif isinstance(node, ast.With):
        lines = [f"with {', '.join(map(ast.unparse, node.items))}:", *_block(node.body, names)]
    elif isinstance(node, ast.FunctionDef):
        lines = [f"def {node.name}({ast.unparse(node.args)}):", *_block(node.body, names)]
    elif isinstance(node, ast.Assign):
        lines = [line(f"{' = '.join(map(_target, node.targets))} = {_blank(node.value)}", node.value)]
    elif isinstance(node, ast.AugAssign):
        lines = [line(f"{_target(node.target)} {_sign(node)}= {_blank(node.value)}", node.value)]
    elif isinstance(node, ast.Return):
        lines = [line(f"return {_blank(node.value)}", node.value)]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _plain(node.value.func):
        inside = [*node.value.args, *(keyword.value for keyword in node.value.keywords)]
        lines = [line(f"{ast.unparse(node.value.func)}({'...' if inside else ''})", *inside)]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield):
        lines = [line(f"yield {_blank(node.value.value)}", node.value)]
    elif isinstance(node, (ast.Pass, ast.Break, ast.Continue)):
        lines = [ast.unparse(node)]
    else:
        lines = [line("...", node)]
    return lines + (["else:", *_block(node.orelse, names)] if getattr(node, "orelse", None) else [])


def _plain(node) -> bool:
    """A name, a number, or an attribute of these."""
    return isinstance(node, PLAIN) and (not isinstance(node, ast.Attribute) or _plain(node.value))


def _target(node) -> str:
    """What is assigned to; which part of it is left out."""
    if isinstance(node, ast.Subscript):
        return f"{ast.unparse(node.value)}[...]"
    return ", ".join(map(ast.unparse, node.elts)) if isinstance(node, ast.Tuple) else ast.unparse(node)


def _blank(node) -> str:
    """An expression with what it computes left out."""
    if node is None or _plain(node):
        return ast.unparse(node) if node else ""
    if isinstance(node, ast.Tuple):
        return ", ".join(map(_blank, node.elts))
    if isinstance(node, (ast.List, ast.Dict)):
        return ast.unparse(node) if len(ast.unparse(node)) == 2 else "..."
    if isinstance(node, ast.Lambda):
        return f"lambda {ast.unparse(node.args)}: ..."
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EVERYDAY:
        return f"{node.func.id}(...)"
    return "..."
