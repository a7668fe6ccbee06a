"""Relations between settings, such as `method.hidden_width <= 4 * optim.batch_size`: taken apart, never run as a program."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
RELATIONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Constraint(NamedTuple):
    """A relation that has been read."""

    comparison: ast.Compare
    names: frozenset[str]
    """The settings that it mentions, by dotted name."""

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether these settings, by dotted name, keep it. One that it mentions and a trial lacks leaves nothing to keep; a
        division by zero does not keep it.
        """
        if not self.names <= settings.keys():
            return True
        try:
            terms = [_value(term, settings) for term in (self.comparison.left, *self.comparison.comparators)]
        except ArithmeticError:
            return False
        relations = [RELATIONS[type(relation)] for relation in self.comparison.ops]
        return all(relation(a, b) for relation, a, b in zip(relations, terms, terms[1:], strict=False))


def parse_constraint(text: str) -> Constraint:
    """The relation that `text` states.

    Raises:
        ValueError: naming what is neither a setting, a number, + - * / nor a comparison.
    """
    try:
        tree: ast.AST = ast.parse(text.strip(), mode="eval").body
        names = _names_of_comparison(tree)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not a relation; {_ALLOWED}") from None
    except _Foreign as foreign:
        raise ValueError(f"{text!r} holds {ast.unparse(foreign.node)!r}; {_ALLOWED}") from None
    if not names:
        raise ValueError(f"{text!r} mentions no setting; {_ALLOWED}")
    assert isinstance(tree, ast.Compare)
    return Constraint(tree, names)


_ALLOWED = (
    "allowed: settings and numbers with + - * /, compared by < <= > >= == or !=, "
    "as in method.hidden_width <= 4 * optim.batch_size"
)


class _Foreign(Exception):
    """A part of a text that is no part of a relation."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node


def _names_of_comparison(node: ast.AST) -> frozenset[str]:
    """The settings of a comparison whose parts are all known."""
    if not isinstance(node, ast.Compare) or not all(type(relation) in RELATIONS for relation in node.ops):
        raise _Foreign(node)
    return frozenset().union(*(_names_of_term(term) for term in (node.left, *node.comparators)))


def _names_of_term(node: ast.AST) -> frozenset[str]:
    """The settings of one side, whose parts must all be numbers, settings or arithmetic."""
    if name := _dotted(node):
        return frozenset([name])
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return frozenset()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _names_of_term(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return _names_of_term(node.left) | _names_of_term(node.right)
    raise _Foreign(node)


def _dotted(node: ast.AST) -> str | None:
    """`optim.batch_size` from its parts, or None when it is anything else."""
    if isinstance(node, ast.Name):
        return node.id
    above = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{above}.{node.attr}" if above and isinstance(node, ast.Attribute) else None


def _value(node: ast.AST, settings: Mapping[str, Any]) -> Any:
    """The number that one side stands for; `_names_of_term` has seen that it is made of nothing else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, settings)
    if isinstance(node, ast.BinOp):
        return ARITHMETIC[type(node.op)](_value(node.left, settings), _value(node.right, settings))
    return settings[_dotted(node) or ""]
