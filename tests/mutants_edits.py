"""Realistic single mistakes in a Python source, each as the text that stands there and the text that takes its place.

Text that only people read (docstrings, annotations, messages of errors), `__all__` and decorators are left alone.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
PAIRS = (("min", "max"), ("any", "all"), ("minimum", "maximum"), ("floor", "ceil"), ("argmin", "argmax"))
SWAPPED = {
    **{one: other for pair in PAIRS for one, other in (pair, pair[::-1])},
    "mean": "sum",
    "sorted": "list",
    "reversed": "list",
}
SPOKEN = ("fix", "file", "what", "longer", "smaller", "instead", "help")
"""Keyword arguments that hold words for people."""


class Edit(NamedTuple):
    """One mistake: what stands at ``[start, end)`` of the source, in characters, and what is put there."""

    line: int
    start: int
    end: int
    before: str
    after: str
    kind: str

    def apply(self, source: str) -> str:
        """The mutant's source."""
        return source[: self.start] + self.after + source[self.end :]


class _Finder(ast.NodeVisitor):
    """Walks what runs and collects edits."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = source.splitlines()
        self.edits: list[Edit] = []

    def position(self, line: int, column: int) -> int:
        """Of a character, where ast counts bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def put(self, node: ast.expr | ast.stmt, after: ast.expr | str, kind: str) -> None:
        start, end = self.position(node.lineno, node.col_offset), self.position(node.end_lineno, node.end_col_offset)
        before = self.source[start:end]
        if isinstance(after, ast.expr):
            after = ast.unparse(after)
            if isinstance(node, (ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Tuple)) and not after.startswith(
                "("
            ):
                after = f"({after})"
        if "\n" in before and isinstance(node, ast.stmt):  # the lines below keep their numbers
            after += "\n" * before.count("\n")
        if after.strip() != before:
            self.edits.append(Edit(node.lineno, start, end, before, after, kind))

    def changed(self, node: ast.expr, kind: str, **fields: object) -> None:
        self.put(node, type(node)(**({name: getattr(node, name) for name in node._fields} | fields)), kind)

    # what is left alone

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        for statement in ast.walk(node):
            if isinstance(statement, ast.Return) and statement.value is not None:
                self.answer(statement, ast.unparse(node.returns) if node.returns else "")

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if not node.orelse and not isinstance(node.test, ast.UnaryOp):
            self.put(node.test, "False", "condition never holds")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if ast.unparse(node.targets[0]) == "__all__":
            return
        if not isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            self.put(node, "pass", "statement deleted")
        self.visit(node.value)

    # what is changed

    def answer(self, node: ast.Return, kind: str) -> None:
        """What a function gives back, by its annotation."""
        value = node.value
        assert value is not None
        if kind == "bool" and not isinstance(value, (ast.Constant, ast.Compare, ast.UnaryOp)):
            self.put(value, f"(not ({ast.unparse(value)}))", "return value")
        elif kind == "float" and not isinstance(value, ast.Constant):
            self.put(value, f"(2 * ({ast.unparse(value)}))", "return value")
        elif kind == "int" and not isinstance(value, ast.Constant):
            self.put(value, f"(1 + ({ast.unparse(value)}))", "return value")
        elif isinstance(value, ast.Tuple) and len(value.elts) == 2 and not any(isinstance(e, ast.Starred) for e in value.elts):
            self.put(value, ast.Tuple(value.elts[::-1], ast.Load()), "return values swapped")
        elif kind.endswith("| None") and not isinstance(value, ast.Constant):
            self.put(value, "None", "return value")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self.put(node, "pass", "statement deleted")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.put(node, "pass", "statement deleted")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.put(node, "pass", "statement deleted")

    def visit_Break(self, node: ast.Break) -> None:
        self.put(node, "pass", "statement deleted")

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            ops = list(node.ops)
            ops[index] = COMPARISONS[type(operator)]()
            self.changed(node, "comparison", ops=ops)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.changed(node, "and/or", op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        self.changed(node, "operand dropped", values=node.values[:-1]) if len(node.values) > 2 else self.put(
            node, node.values[0], "operand dropped"
        )
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(_is_sequence(side) for side in (node.left, node.right))
        if type(node.op) in ARITHMETIC and not texts:
            self.changed(node, "arithmetic", op=ARITHMETIC[type(node.op)]())
        elif texts:
            self.put(node, node.left, "operand dropped")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            self.put(node, ast.UnaryOp(ast.USub(), ast.Constant(node.operand.value + 1)), "constant")
            return
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.put(node, node.operand, "sign or not removed")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.changed(node, "branches swapped", body=node.orelse, orelse=node.body)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
        if name.endswith(("Error", "Warning")):
            return
        if name in SWAPPED and (name != "sorted" or not node.keywords):
            func: ast.expr = ast.Name(SWAPPED[name], ast.Load())
            if isinstance(node.func, ast.Attribute):
                func = ast.Attribute(node.func.value, SWAPPED[name], ast.Load())
            if not (isinstance(node.func, ast.Attribute) and SWAPPED[name] == "list"):
                self.put(node.func, func, "function swapped")
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in SPOKEN:
                self.changed(node, "argument dropped", keywords=[other for other in node.keywords if other is not keyword])
        for index in range(len(node.args) - 1):
            pair = node.args[index : index + 2]
            if _alike(*pair) and name not in ("isinstance", "issubclass", "getattr", "zip"):
                swapped = [*node.args[:index], pair[1], pair[0], *node.args[index + 2 :]]
                self.changed(node, "arguments swapped", args=swapped)
        self.visit(node.func)
        for value in (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg not in SPOKEN)):
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                self.visit(value)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self.put(condition, "True", "filter dropped")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in ("Literal", "Annotated"):
            return
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            self.put(node.slice, ast.Constant(node.slice.value + "_"), "key")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.put(node, ast.Constant(not value), "flag")
        elif isinstance(value, int):
            for other in (
                (2 * value, value // 2) if value > 16 and value & (value + 1) and value & (value - 1) else (value + 1, value - 1)
            ):
                if other >= 0:
                    self.put(node, ast.Constant(other), "constant")
        elif isinstance(value, float):
            self.put(node, ast.Constant(value * 10 if value else 1.0), "constant")
            if value:
                self.put(node, ast.Constant(value / 10), "constant")

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self.put(key, ast.Constant(key.value + "_"), "key")
            elif key is not None:
                self.visit(key)
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                self.visit(value)


def _is_sequence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, bytes))
    return isinstance(node, (ast.JoinedStr, ast.List, ast.Set, ast.Dict, ast.Tuple))


def _alike(first: ast.expr, second: ast.expr) -> bool:
    """Two values that somebody might confuse: two variables, or two fields of one object."""
    if isinstance(first, ast.Attribute) and isinstance(second, ast.Attribute):
        return ast.dump(first.value) == ast.dump(second.value)
    return all(isinstance(value, ast.Name) and not value.id.startswith("_") for value in (first, second))


def edits(source: str) -> list[Edit]:
    """Every mistake, in the order of the source. A few do not compile."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.edits))


def compiles(source: str) -> bool:
    """Whether this is Python."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True
