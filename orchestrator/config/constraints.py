"""Relations between settings, such as `method.hidden_width <= 4 * optim.batch_size`.

The text of a relation is parsed into a syntax tree. It is never executed as Python code.
"""

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
    """A parsed relation."""

    comparison: ast.Compare
    names: frozenset[str]
    """Dotted names of the settings in the relation."""

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether a trial with these settings satisfies the relation.

        A relation with a setting that the trial lacks is satisfied. A relation that divides by zero is not.

        Args:
            settings: the trial's settings by dotted name.
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
    """Parses `text` into a relation.

    Raises:
        ValueError: when `text` is not a relation, mentions no setting, or holds a part that is neither a setting, a number,
            + - * / nor a comparison. The message names that part.
    """
    try:
        tree: ast.AST = ast.parse(text.strip(), mode="eval").body
        names = _names_of_comparison(tree)
    except (SyntaxError, RecursionError, MemoryError):  # the last two come from deeply nested text
        raise ValueError(f"{text!r} is not a relation; {_ALLOWED}") from None
    except _NotAllowed as part:
        raise ValueError(f"{text!r} holds {ast.unparse(part.node)!r}; {_ALLOWED}") from None
    if not names:
        raise ValueError(f"{text!r} mentions no setting; {_ALLOWED}")
    assert isinstance(tree, ast.Compare)  # _names_of_comparison accepts nothing else
    return Constraint(tree, names)


_ALLOWED = (
    "allowed: settings and numbers with + - * /, compared by < <= > >= == or !=, "
    "as in method.hidden_width <= 4 * optim.batch_size"
)


class _NotAllowed(Exception):
    """A part of the text that a relation may not hold."""

    def __init__(self, node: ast.AST) -> None:
        self.node = node


def _names_of_comparison(node: ast.AST) -> frozenset[str]:
    """Dotted names of the settings in a comparison.

    Raises:
        _NotAllowed: when `node` is no comparison, or holds a part that is not allowed.
    """
    if not isinstance(node, ast.Compare) or not all(type(relation) in RELATIONS for relation in node.ops):
        raise _NotAllowed(node)
    return frozenset().union(*(_names_of_term(term) for term in (node.left, *node.comparators)))


def _names_of_term(node: ast.AST) -> frozenset[str]:
    """Dotted names of the settings in one side of a comparison.

    Raises:
        _NotAllowed: when a part is neither a number, a setting nor arithmetic.
    """
    if name := _dotted(node):
        return frozenset([name])
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):  # isinstance would also accept True
        return frozenset()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _names_of_term(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return _names_of_term(node.left) | _names_of_term(node.right)
    raise _NotAllowed(node)


def _dotted(node: ast.AST) -> str | None:
    """The dotted name that a node stands for, such as `optim.batch_size`; None when the node is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    above = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{above}.{node.attr}" if above and isinstance(node, ast.Attribute) else None


def _value(node: ast.AST, settings: Mapping[str, Any]) -> Any:
    """The value of one side of a comparison. `_names_of_term` has already checked the parts."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, settings)
    if isinstance(node, ast.BinOp):
        return ARITHMETIC[type(node.op)](_value(node.left, settings), _value(node.right, settings))
    return settings[_dotted(node) or ""]
