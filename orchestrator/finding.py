"""A line of the doctor's report. Only the standard library is imported here."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the report. `level` is ok, note or problem; a problem has a cure."""

    level: str
    subject: str
    text: str
    cure: str = ""
