"""What submitted code may say.

A check runs a learner's function in its own process, and Python hides nothing there: code that reaches a frame, a
module's attributes or `gc` reaches the judge. So it is read before it runs. It may compute; names that lead out of
computing are refused, and what a reader cannot decide is decided when it runs: attributes are set only on the
submission's own objects, and attributes got by a computed name are tested then. The limits of a process do the rest
(`sandbox.py`). Against somebody who knows an unknown way round CPython this is a fence, not a wall.
"""

import ast
import builtins
import re
import types
from copy import deepcopy

IMPORTS = {"abc", "collections", "contextlib", "copy", "dataclasses", "einops", "functools", "itertools", "ldm_mini",
           "math", "numpy", "random", "statistics", "time", "torch", "torchvision", "typing", "warnings"}
DUNDERS = {"__all__", "__call__", "__contains__", "__doc__", "__enter__", "__exit__", "__getitem__", "__init__",
           "__iter__", "__len__", "__name__", "__next__", "__post_init__", "__repr__", "__setitem__"}
# Ways out of computing: to the interpreter, to files and processes, to what torch lets one replace for everybody, to
# what evaluates a text (of an annotation, say) or finds an attribute by a text, to weights that were shipped.
REFUSED = set("""
    Formatter ForwardRef Path attrgetter backend_registration builtins checking checks collect_env compile copyreg
    cpp_extension ctypes ctypeslib distributed editions f2py f_back f_builtins f_code f_globals f_locals from_file
    from_pretrained frombuffer fromfile fx gc generate_methods_for_privateuse1_backend get_ipython get_type_hints
    gi_code gi_frame globals hub importlib input inspect io jit library load load_autoencoder load_library
    load_or_train load_safetensors load_weights loadtxt locals make_dataclass memmap methodcaller multiprocessing open
    ops os overrides package pathlib pickle pty read_array read_weights register_module_backward_hook
    register_module_buffer_registration_hook register_module_forward_hook register_module_forward_pre_hook
    register_module_full_backward_hook register_module_full_backward_pre_hook register_module_module_registration_hook
    register_module_parameter_registration_hook save savetxt savez serialization set_default_device set_default_dtype
    set_default_tensor_type set_module shutil signal singledispatch singledispatchmethod socket string subprocess sys
    tb_frame tb_next teaching tempfile testing threading tofile traceback tracemalloc types update_wrapper urllib vars
    wraps
""".split())
FORMATS = ("format", "format_map")
NOT_GIVEN = {"__import__", "breakpoint", "compile", "copyright", "credits", "delattr", "eval", "exec", "exit",
             "getattr", "globals", "help", "input", "license", "locals", "memoryview", "open", "quit", "setattr",
             "type", "vars"}


class Refused(Exception):
    """Submitted code that is not run; the message says what it uses."""


def may_reach(name: str) -> bool:
    """May code import this name, or take this attribute of a thing that is not its own?"""
    # a metaclass that is called makes classes with any special method
    meta = name.endswith(("Meta", "EnumType"))
    return may_say(name) and name not in REFUSED and not meta and (not name.startswith("_") or name in DUNDERS)


def may_say(name: str) -> bool:
    """May code use this name for something of its own?"""
    ours = name.startswith("__") and name.endswith("__") or name in ("_own", "_settable", "_plain")
    return name in DUNDERS or not ours


def gated(tree: ast.AST) -> ast.AST:
    """Submitted code, made ready to run with `given_builtins`: a copy. Raises Refused."""
    return ast.fix_missing_locations(_Gate().visit(deepcopy(tree)))


class _Gate(ast.NodeTransformer):
    def generic_visit(self, node):
        # names of variables, arguments, functions, caught exceptions, patterns
        for field in ("id", "name", "arg", "rest", "asname"):
            self._test(may_say, getattr(node, field, None), node)
        for name in getattr(node, "names", None) or []:
            self._test(may_say, name if isinstance(name, str) else None, node)  # global, nonlocal
        return super().generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            for part in alias.name.split("."):
                self._test(may_reach, part, node)
        return self.generic_visit(node)

    def visit_ImportFrom(self, node):
        if node.level:
            raise Refused(f"line {node.lineno} imports from where it stands, which graded code may not")
        for part in (node.module or "").split(".") + [alias.name for alias in node.names]:
            self._test(may_reach, part, node)
        return self.generic_visit(node)

    def visit_Attribute(self, node):
        self.generic_visit(node)
        guard = "_settable" if not isinstance(node.ctx, ast.Load) else None
        if not may_reach(node.attr):
            self._test(may_say, node.attr, node)
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                self._refuse(node.attr, node)
            guard = "_own"
        if node.attr in FORMATS:
            guard = "_plain"
        if guard:
            node.value = ast.Call(ast.Name(guard, ast.Load()), [node.value], [])
        return node

    def visit_ClassDef(self, node):
        if any(keyword.arg == "metaclass" for keyword in node.keywords):
            self._refuse("a metaclass", node)
        return self.generic_visit(node)

    def visit_MatchClass(self, node):
        return self._refuse("a class pattern", node)

    def _test(self, allowed, name, node):
        if isinstance(name, str) and not allowed(name):
            self._refuse(name, node)

    @staticmethod
    def _refuse(what, node):
        raise Refused(f"line {getattr(node, 'lineno', '?')} uses {what}, which graded code may not")


def given_builtins(module_name: str) -> dict:
    """The builtins for code that passed the gate, whose own classes say that they are of `module_name`."""
    def is_own(thing):
        return module_name in (getattr(type(thing), "__module__", ""), getattr(thing, "__module__", ""))

    def own(thing):
        return thing if is_own(thing) else refuse(f"the inside of {type(thing).__name__}")

    def settable(thing):
        """The thing itself, if it is the submission's to change."""
        shared = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
        return thing if is_own(thing) or not isinstance(thing, shared) else refuse(f"an attribute of {thing!r:.80}")

    def plain(thing):
        """A text that is filled with values, not with what lies within them: "{0.shape}" could be any attribute."""
        reaches = isinstance(thing, type) or isinstance(thing, str) and re.search(r"\{[^{}:!]*[.\[]", thing)
        return thing if not reaches else refuse("a format that looks into its values")

    def refuse(what):
        raise Refused(f"uses {what}, which graded code may not")

    def tested(thing, name):
        if type(name) is not str or not may_say(name):
            refuse(name)
        if name in FORMATS:
            plain(thing)
        return name if may_reach(name) or own(thing) is thing else None

    def type_of(thing):
        found = type(thing)
        return found if not issubclass(found, type) else refuse("the type of a type")

    def imported(name, globals=None, locals=None, fromlist=(), level=0):
        if level or name.split(".")[0] not in IMPORTS or not all(map(may_reach, name.split("."))):
            raise ImportError(f"graded code may not import {name}")
        return __import__(name, globals, locals, fromlist, level)

    given = {name: value for name, value in vars(builtins).items() if name not in NOT_GIVEN}
    return {**given, "_own": own, "_settable": settable, "_plain": plain, "type": type_of, "__import__": imported,
            "getattr": lambda thing, name, *default: getattr(thing, tested(thing, name), *default),
            "setattr": lambda thing, name, value: setattr(settable(thing), tested(thing, name), value)}
