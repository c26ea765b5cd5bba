"""The changes that can be made to a module: one operator, bound, constant, condition, argument or statement each.

Left alone is what no test should hold: the words of messages and documentation, annotations, decorators, and ``strict``
of ``zip``, which guards against mistakes made elsewhere.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
FUNCTIONS = {"min": "max", "any": "all"}
METHODS = FUNCTIONS | {
    "floor": "ceil",
    "amin": "amax",
    "argmin": "argmax",
    "minimum": "maximum",
    "clamp_min": "clamp_max",
    "zeros": "ones",
    "sum": "mean",
    "startswith": "endswith",
}
"""Functions and methods with an opposite that takes the same arguments."""
FUNCTIONS |= {new: old for old, new in FUNCTIONS.items()}
METHODS |= {new: old for old, new in METHODS.items()}
NOT_SWAPPED = ("isinstance", "issubclass", "getattr", "setattr", "hasattr", "min", "max")
"""Functions whose arguments have no other order, or no order at all."""


@dataclass(frozen=True)
class Change:
    """One change of one module.

    Attributes:
        module: path of the file, relative to the root.
        line: where the changed code begins, from 1.
        last: where it ends.
        statement: first and last line of the statement around it, of a block's head where it is one.
        kind: of change.
        start, stop: the bytes of the file that ``text`` takes the place of.
        before, after: the changed lines, in one line each; they name a change in the list of equivalent ones.
        imported: whether the import of the module runs the line (a constant, a default) rather than a call.
    """

    module: str
    line: int
    last: int
    statement: tuple[int, int]
    kind: str
    start: int
    stop: int
    text: str
    before: str
    after: str
    imported: bool = False

    def apply(self, source: bytes) -> bytes:
        """The file's content with this change."""
        return source[: self.start] + self.text.encode() + source[self.stop :]


def sample(found: list[Change], count: int, seed: int) -> list[Change]:
    """At most ``count`` of the changes, drawn by a seed: first the places, then one change for each."""
    places: dict[tuple[str, int, int], list[Change]] = {}
    for change in found:
        places.setdefault((change.module, change.start, change.stop), []).append(change)
    draw = random.Random(seed)
    chosen = draw.sample(list(places.values()), min(count, len(places)))
    return sorted((draw.choice(one) for one in chosen), key=lambda change: (change.module, change.start))


def changes(module: str, source: bytes) -> list[Change]:
    """All changes of a module, in the order of their places; of equal results one is kept."""
    begin = [0]
    for row in source.splitlines(keepends=True):
        begin.append(begin[-1] + len(row))
    rows = source.decode().splitlines()
    found: dict[tuple[int, int, str], Change] = {}
    tree = ast.parse(source)
    bodies = [
        (node.body[0].lineno, node.end_lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node, kind, text, span in _find(tree, (1, 1)):
        start = begin[node.lineno - 1] + node.col_offset
        stop = begin[node.end_lineno - 1] + node.end_col_offset
        around = (
            source[begin[node.lineno - 1] : start].decode(),
            source[stop : begin[node.end_lineno]].decode(),
        )
        before = " ".join(" ".join(rows[node.lineno - 1 : node.end_lineno]).split())
        after = " ".join((around[0] + text + around[1]).split())
        imported = not any(first <= node.lineno <= last for first, last in bodies)
        last = node.end_lineno
        change = Change(module, node.lineno, last, span, kind, start, stop, text, before, after, imported)
        found.setdefault((start, stop, text), change)
    return sorted(found.values(), key=lambda change: (change.start, change.stop, change.kind, change.text))


_ATOMS = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Slice)
_FIELDS = ("annotation", "returns", "decorator_list", "type_params")
"""Parts of a statement that are left alone."""


def _find(node: ast.AST, span: tuple[int, int]) -> Iterator[tuple[ast.AST, str, str, tuple[int, int]]]:
    """Yield ``(place, kind, text, statement)``: what may stand in the place of a node, in and below this one."""
    # Positions inside f-strings are wrong before Python 3.12; nearly all of them are words of messages.
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        span = node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
    for place, kind, new in _instead(node):
        text = ast.unparse(ast.fix_missing_locations(new))
        bare = not isinstance(new, ast.expr) or isinstance(new, _ATOMS)
        yield place, kind, text if bare else f"({text})", span
    if isinstance(node, ast.Raise):
        return
    for name, value in ast.iter_fields(node):
        if name not in _FIELDS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _find(child, span)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _has_an_order(call: ast.Call) -> bool:
    """Whether the first two arguments of a call can be swapped."""
    if isinstance(call.func, ast.Name) and call.func.id in NOT_SWAPPED:
        return False
    first = call.args[:2]
    same = len({ast.dump(argument) for argument in first}) < 2
    return not same and not any(isinstance(argument, ast.Starred) for argument in first)


def _instead(node: ast.AST) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    """Yield ``(place, kind, new)``: what may stand in the place of this node, or of its condition."""
    match node:
        case ast.Compare():
            for i, old in enumerate(node.ops):
                for new in COMPARISONS[type(old)]:
                    yield node, "comparison", _with(node, ops=[*node.ops[:i], new(), *node.ops[i + 1 :]])
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield node, "operator", _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield node, "and, or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node, "unary operator", node.operand
        case ast.Constant(value=bool()):
            yield node, "constant", ast.Constant(not node.value)
        case ast.Constant(value=float()):
            yield node, "constant", ast.Constant(node.value * 2 or 1.0)
            yield node, "constant", ast.Constant(node.value / 2 or -1.0)
        case ast.Constant(value=int()):
            yield node, "constant", ast.Constant(node.value + 1)
            yield node, "constant", ast.Constant(node.value - 1)
        case ast.Name(ctx=ast.Load()) if node.id in FUNCTIONS:
            yield node, "name", _with(node, id=FUNCTIONS[node.id])
        case ast.Attribute(ctx=ast.Load()) if node.attr in METHODS:
            yield node, "name", _with(node, attr=METHODS[node.attr])
        case ast.Call() if _has_an_order(node):
            yield node, "arguments", _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
        case ast.Slice():
            for bound in ("lower", "upper"):
                if getattr(node, bound) is not None:
                    yield node, "bound", _with(node, **{bound: None})
        case ast.AugAssign():
            if type(node.op) in OPERATORS:
                yield node, "operator", _with(node, op=OPERATORS[type(node.op)]())
            yield node, "statement", ast.Pass()
        case (
            ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Expr(value=ast.Call()) | ast.Raise()
        ):
            yield node, "statement", ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield node, "result", ast.Return(ast.Constant(None))
        case ast.Continue() | ast.Break():
            yield node, "statement", ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
        case ast.If() | ast.While() | ast.IfExp() | ast.comprehension():
            for test in node.ifs if isinstance(node, ast.comprehension) else [node.test]:
                # A comparison or a negation has its opposite among its own changes.
                if not isinstance(test, ast.Compare | ast.UnaryOp):
                    yield test, "condition", ast.UnaryOp(ast.Not(), test)
