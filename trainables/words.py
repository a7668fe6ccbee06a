"""How accuracies, times and numbers of things are told to a person. Of accuracies: the mean over classes, and beside it the share
of all images where the two differ.
"""

from collections.abc import Mapping


def accuracies(metrics: Mapping[str, float | None], part: str, remark: str = "") -> str:
    """The accuracies on a set, for instance `test/acc 0.8040 (mean over classes), test/plain_acc 0.9120 (all images)`.

    Args:
        metrics: with `<part>/acc`, and `<part>/plain_acc` unless an older version measured them.
        part: `val` or `test`.
        remark: follows the name of the first.
    """
    balanced, plain = metrics[f"{part}/acc"], metrics.get(f"{part}/plain_acc")
    text = f"{part}/acc{remark} {balanced:.4f}"
    if plain is None or balanced is None or abs(plain - balanced) < 5e-5:  # all classes have the same number of images
        return text
    return f"{text} (mean over classes), {part}/plain_acc {plain:.4f} (share of all images)"


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are at least two: `90 s`, `2.5 min`; below a second in milliseconds: `180 ms`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    if 0 < seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 1e-3 else "under 1 ms"
    return f"{seconds:.0f} s"


def brief(value: float) -> str:
    """A number in a few letters: as it is if it has a few digits, such as 0.9999, otherwise with three significant digits."""
    whole = f"{value:g}" if float(f"{value:g}") == value else ""
    return whole if 0 < len(whole) <= 6 else f"{value:.3g}"


def plural(number: int, what: str, after: str = "") -> str:
    """A number of things: `1 file`, `2 files`. `after` follows the word that has the plural."""
    return f"{number} {what}{'' if number == 1 else 's'}{after}"
