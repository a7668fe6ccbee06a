import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.source import FileImages, Source
from trainables.data.thumbnails import thumbnails


def opened(uri: str, form: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == f"data:image/{form};base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_files_become_small_jpegs_and_what_cannot_be_read_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), (200, 20, 20)).save(tmp_path / "a.png")
    Image.new("L", (20, 10), 90).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    names = [b"a.png", b"b.jpg", b"c.jpg"]
    source = Source(FileImages(tmp_path, np.array(names)), np.zeros(3, np.int64), ("x",), {"train": np.arange(3)})
    large, small, broken = thumbnails(source, np.arange(3), grey=False)
    assert opened(large, "jpeg").size == (96, 48)
    assert opened(large, "jpeg").getpixel((3, 3)) == pytest.approx((200, 20, 20), abs=6)
    assert opened(small, "jpeg").size == (20, 10)
    assert broken == ""
    assert opened(thumbnails(source, np.arange(1), grey=True)[0], "jpeg").mode == "L"
    assert thumbnails(source, np.arange(0), grey=False) == []


def test_decoded_images_are_shown_with_their_whole_range() -> None:
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    pixels[1] = 16
    source = Source(pixels, np.zeros(2, np.int64), ("x",), {"train": np.arange(2)}, white=16)
    dark, white = (np.asarray(opened(uri, "png")) for uri in thumbnails(source, np.arange(2), grey=False))
    assert (dark == 0).all()
    assert (white == 255).all()
