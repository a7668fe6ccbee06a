"""Small pictures of images, for people, as data URIs."""

import base64
import io

import numpy as np
from PIL import Image

from trainables.data.decode import open_image
from trainables.data.source import EncodedImages, Ids, Source, Vectors

MOST_PIXELS = 96
"""Pixels of the longer side, at most."""


def thumbnails(source: Source, ids: Ids, grey: bool) -> list[str | None]:
    """The images `ids` as data URIs; empty texts for images that cannot be read, None for vectors. `grey`: how encoded images are
    decoded.
    """
    images = source.images
    if isinstance(images, Vectors):
        return [None] * len(ids)
    if not isinstance(images, EncodedImages):
        pixels = np.round(images[ids] * (255 / source.white)).astype(np.uint8)
        return [_uri(Image.fromarray(one[0] if len(one) == 1 else one.transpose(1, 2, 0)), "PNG") for one in pixels]
    held = images.hold(ids) if len(ids) else images
    found: list[str | None] = []
    for image in ids.tolist():
        try:
            picture = open_image(held, image, grey)
        except ValueError:
            found.append("")
        else:
            found.append(_uri(picture, "JPEG"))
    return found


def _uri(picture: Image.Image, form: str) -> str:
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    content = io.BytesIO()
    picture.save(content, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
