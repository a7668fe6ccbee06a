"""Finds the images that cannot be read, by decoding all of them once. The result is kept until a file changes."""

import functools
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import PIL

from trainables.data.cache import cache_folder
from trainables.data.decode import open_image
from trainables.data.source import EncodedImages, Ids, UnreadableImage


def unreadable(images: EncodedImages, ids: Ids) -> dict[int, str]:
    """The images among `ids` that cannot be read, each with the reason, in the order of `ids`."""
    # What Pillow can read is a property of its version, too.
    key = hashlib.sha256(images.stamp(ids) + ids.astype("<i8").tobytes() + PIL.__version__.encode()).hexdigest()
    file = cache_folder() / f"unreadable-{key[:32]}.json"
    try:
        found = json.loads(file.read_bytes())
        return {int(image): str(reason) for image, reason in found.items()}
    except (OSError, ValueError, AttributeError):
        pass
    result = dict(_decode_all(images, ids))
    with suppress(OSError):  # the cache only saves time
        _keep(file, json.dumps(result))
    return result


def _decode_all(images: EncodedImages, ids: Ids) -> Iterator[tuple[int, str]]:
    with ThreadPoolExecutor() as threads:  # decoding releases Python's lock
        for group, held in images.groups(ids):
            faults = threads.map(functools.partial(_fault, held), group.tolist())
            yield from ((image, fault) for image, fault in zip(group.tolist(), faults, strict=True) if fault)


def _fault(images: EncodedImages, image: int) -> str:
    try:
        open_image(images, image, grey=False)
    except UnreadableImage as error:
        return str(error)
    return ""


def _keep(file: Path, text: str) -> None:
    """Writes the file whole or not at all, also where several processes do so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.write_text(text, encoding="ascii")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
