"""Files that hold their own SHA-256, computed with zeros in its place: each shows by itself whether it was changed."""

import hashlib
import re

ZEROS = "0" * 64
"""Stands where the digest will be."""


def seal(content: bytes, before: bytes) -> bytes:
    """`content` with its digest in place of the zeros that follow `before`."""
    place = content.index(before + ZEROS.encode()) + len(before)
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + len(ZEROS) :]


def is_whole(content: bytes, before: bytes) -> bool | None:
    """Whether `content` is what was sealed; None when it holds no digest after `before`."""
    found = re.search(re.escape(before) + rb"([0-9a-f]{64})", content)
    if found is None:
        return None
    unsealed = content[: found.start(1)] + ZEROS.encode() + content[found.end(1) :]
    return hashlib.sha256(unsealed).hexdigest().encode() == found[1]
