"""Mutants: small faults put into a source file, one at a time, by its syntax tree.

Operators swapped, constants moved by one, conditions negated, statements deleted, arguments swapped
or left out, reductions replaced. Left alone: docstrings, annotations, and what only makes up the
text of an error.
"""

import ast
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.MatMult: "+",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
    ast.RShift: "<<",
}
# The neighbor and the opposite.
COMPARISONS = {
    ast.Lt: ("<=", ">"),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<"),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
NAMES = {
    first: second
    for pair in (
        ("min", "max"),
        ("minimum", "maximum"),
        ("argmin", "argmax"),
        ("pmin", "pmax"),
        ("any", "all"),
        ("sum", "mean"),
        ("logical_and", "logical_or"),
        ("isfinite", "isnan"),
        ("floor", "ceil"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("exp", "expm1"),
        ("log", "log1p"),
    )
    for first, second in (pair, pair[::-1])
}
ERRORS = {"ValueError", "TypeError", "RuntimeError", "OSError", "AttributeError", "warn"}


class Mutant(NamedTuple):
    kind: str
    name: str  # stays the same while other lines move
    line: int
    start: int  # bytes of the source that are replaced
    end: int
    new: str

    def applied(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.new.encode() + raw[self.end :]).decode()


class _Finder:
    def __init__(self, source: str):
        self.raw = source.encode()
        starts = [0]
        for line in self.raw.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self.starts = starts
        self.inside: list[str] = []
        self.seen: dict[str, int] = {}

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def replaced(self, kind: str, node: ast.AST, new: str) -> Mutant:
        return self.between(kind, *self.span(node), node.lineno, new)

    def between(self, kind: str, start: int, end: int, line: int, new: str) -> Mutant:
        old = " ".join(self.raw[start:end].decode().split())
        name = f"{'.'.join(self.inside) or 'module'}: {old} => {' '.join(new.split())}"
        number = self.seen[name] = self.seen.get(name, 0) + 1
        return Mutant(kind, name + (f" #{number}" if number > 1 else ""), line, start, end, new)

    def walk(self, node: ast.AST) -> Iterator[Mutant]:
        own = getattr(self, type(node).__name__, None)
        if own is not None:
            yield from own(node)
        else:
            yield from self.children(node)

    def children(self, node: ast.AST) -> Iterator[Mutant]:
        for child in ast.iter_child_nodes(node):
            yield from self.walk(child)

    def body(self, nodes: list[ast.stmt]) -> Iterator[Mutant]:
        for node in nodes:
            yield from self.walk(node)

    # --- left alone

    def JoinedStr(self, node: ast.JoinedStr) -> Iterator[Mutant]:  # noqa: N802
        yield from ()

    Import = ImportFrom = Global = Nonlocal = JoinedStr

    def AnnAssign(self, node: ast.AnnAssign) -> Iterator[Mutant]:  # noqa: N802
        if node.value is not None:
            yield from self.walk(node.value)

    def Assign(self, node: ast.Assign) -> Iterator[Mutant]:  # noqa: N802
        aliases = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
        if self.inside or not (aliases or isinstance(node.value, ast.Subscript)):
            yield from self.walk(node.value)

    # --- definitions

    def FunctionDef(self, node: ast.FunctionDef) -> Iterator[Mutant]:  # noqa: N802
        for decorator in node.decorator_list:
            yield from self.walk(decorator)
        self.inside.append(node.name)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                yield from self.walk(default)
        yield from self.body(node.body)
        self.inside.pop()

    def ClassDef(self, node: ast.ClassDef) -> Iterator[Mutant]:  # noqa: N802
        for decorator in node.decorator_list:
            yield from self.walk(decorator)
        self.inside.append(node.name)
        yield from self.body(node.body)
        self.inside.pop()

    # --- statements

    def Expr(self, node: ast.Expr) -> Iterator[Mutant]:  # noqa: N802
        if isinstance(node.value, ast.Constant):  # a docstring, or `...`
            return
        if not isinstance(node.value, ast.Yield | ast.YieldFrom):
            yield self.replaced("deletion", node, "pass")
        yield from self.walk(node.value)

    def Raise(self, node: ast.Raise) -> Iterator[Mutant]:  # noqa: N802
        yield self.replaced("deletion", node, "pass")

    def AugAssign(self, node: ast.AugAssign) -> Iterator[Mutant]:  # noqa: N802
        yield self.replaced("deletion", node, "pass")
        yield from self.walk(node.value)

    def Assert(self, node: ast.Assert) -> Iterator[Mutant]:  # noqa: N802
        yield self.replaced("deletion", node, "pass")

    def If(self, node: ast.If) -> Iterator[Mutant]:  # noqa: N802
        if self.text(node.test) == "TYPE_CHECKING":
            return
        yield self.replaced("condition", node.test, f"not ({self.text(node.test)})")
        yield from self.children(node)

    # --- expressions

    def IfExp(self, node: ast.IfExp) -> Iterator[Mutant]:  # noqa: N802
        yield self.replaced("condition", node.test, f"(not ({self.text(node.test)}))")
        yield from self.children(node)

    def Compare(self, node: ast.Compare) -> Iterator[Mutant]:  # noqa: N802
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            start, end = self.span(left)[1], self.span(right)[0]
            old = self.raw[start:end].decode()
            sign = {"NotIn": "not in", "IsNot": "is not"}.get(type(op).__name__, old.strip("() \n"))
            for new in COMPARISONS[type(op)]:
                whole = f"{self.text(left)}{old.replace(sign, new)}{self.text(right)}"
                span = self.span(left)[0], self.span(right)[1]
                yield self.between("comparison", *span, node.lineno, whole)
            left = right
        yield from self.children(node)

    def BinOp(self, node: ast.BinOp) -> Iterator[Mutant]:  # noqa: N802
        words = (ast.JoinedStr,)
        texts = [
            isinstance(side, words)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        ]
        if any(texts):
            return
        new = OPERATORS.get(type(node.op))
        if new is not None:
            whole = f"(({self.text(node.left)}) {new} ({self.text(node.right)}))"
            yield self.replaced("arithmetic", node, whole)
        yield from self.children(node)

    def BoolOp(self, node: ast.BoolOp) -> Iterator[Mutant]:  # noqa: N802
        new = " or " if isinstance(node.op, ast.And) else " and "
        yield self.replaced(
            "condition", node, f"({new.join(f'({self.text(v)})' for v in node.values)})"
        )
        yield from self.children(node)

    def UnaryOp(self, node: ast.UnaryOp) -> Iterator[Mutant]:  # noqa: N802
        if not isinstance(node.op, ast.UAdd):
            kind = "condition" if isinstance(node.op, ast.Not) else "arithmetic"
            yield self.replaced(kind, node, f"({self.text(node.operand)})")
        yield from self.children(node)

    def Constant(self, node: ast.Constant) -> Iterator[Mutant]:  # noqa: N802
        value = node.value
        if isinstance(value, bool):
            yield self.replaced("constant", node, str(not value))
        elif isinstance(value, int):
            yield self.replaced("constant", node, f"{value + 1}")
            yield self.replaced("constant", node, f"({value - 1})")
        elif isinstance(value, float):
            yield self.replaced("constant", node, repr(2 * value if value else 1.0))

    def Call(self, node: ast.Call) -> Iterator[Mutant]:  # noqa: N802
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        if name in ERRORS:
            return
        if name in NAMES:
            start, end = self.span(function)
            yield self.between("function", end - len(name), end, node.lineno, NAMES[name])
        for first, second in zip(node.args, node.args[1:], strict=False):
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                start, end = self.span(first)[0], self.span(second)[1]
                between = self.raw[self.span(first)[1] : self.span(second)[0]].decode()
                swapped = f"{self.text(second)}{between}{self.text(first)}"
                if self.text(first) != self.text(second):
                    yield self.between("argument", start, end, node.lineno, swapped)
        for keyword in node.keywords:
            if keyword.arg is not None:
                yield self.without(keyword)
        yield from self.children(node)

    def without(self, keyword: ast.keyword) -> Mutant:
        """The call without this argument, and without the comma after it."""
        start, end = self.span(keyword)
        rest = self.raw[end:]
        blank = len(rest) - len(rest.lstrip())
        if rest[blank : blank + 1] == b",":
            end += blank + 1
        return self.between("argument", start, end, keyword.lineno, "")


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a file, in the order of the file; a few are no Python: see `differs`."""
    return list(_Finder(source).body(ast.parse(source).body))


def differs(mutant: Mutant, source: str) -> bool:
    """Whether the mutant is Python, and another program."""
    try:
        return ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def sample(sources: dict[str, str], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """`count` (name of the source, mutant): of each kind as many, as far as they go.

    Seeded, and in an order of its own for each mutant: a longer sample begins with the shorter one,
    and a change of the sources moves only the mutants it touches.
    """

    def place(entry: tuple[str, Mutant]) -> str:
        return hashlib.sha256(f"{seed} {entry[0]} {entry[1].name}".encode()).hexdigest()

    kinds: dict[str, list[tuple[str, Mutant]]] = {}
    for module, source in sources.items():
        for mutant in mutants_of(source):
            kinds.setdefault(mutant.kind, []).append((module, mutant))
    for entries in kinds.values():
        entries.sort(key=place, reverse=True)
    chosen: list[tuple[str, Mutant]] = []
    while len(chosen) < count and any(kinds.values()):
        for kind in sorted(kinds):
            while kinds[kind]:
                module, mutant = kinds[kind].pop()
                if differs(mutant, sources[module]):
                    chosen.append((module, mutant))
                    break
    return chosen[:count]
