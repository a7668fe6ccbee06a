"""A folder of own images as people have them: six classes with a long tail, and each kind of dirt once."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageDraw

CLASSES = {"ant": 60, "bee [red]": 40, "crow": 28, "dog": 16, "élan": 9, "fox": 6}
UNREADABLE = (
    *("ant/empty.jpg", "ant/dangling.jpg", "ant/truncated.jpg", "bee [red]/truncated.png", "bee [red]/truncated.webp"),
    *("crow/a_text.jpg", "crow/a_page.jpg", "dog/flipped_bytes.png", "dog/sixteen_bits.png"),
)
"""Files that end like images and cannot be read."""
NOT_READ = ("ant/Thumbs.db", "bee [red]/labels.csv", "crow/scan.heic", "dog/no_ending")


def picture(label: int, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A drawing whose shapes and colours tell the class, at places of its own."""
    rng = np.random.default_rng([label, number])
    image = Image.fromarray(rng.integers(0, 50, (size[1], size[0], 3), dtype=np.uint8))
    draw, colour = ImageDraw.Draw(image), tuple(60 + 60 * ((label >> bit) & 1) + 60 * (bit == label % 3) for bit in range(3))
    for _ in range(5):
        x, y = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        shape = draw.ellipse if label % 2 else draw.rectangle
        shape((x, y, x + 4 + label, y + 10), fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def dirty_folder(root: Path, times: int = 1) -> Path:
    """Makes `root/images`, with `times` as many images as CLASSES says, and `root/elsewhere`, to which links lead."""
    images = root / "images"
    for label, (name, number) in enumerate(CLASSES.items()):
        (images / name).mkdir(parents=True)
        for i in range(number * times):
            (images / name / f"{i:04}.jpg").write_bytes(encoded(picture(label, i), quality=92))
    _files_that_cannot_be_read(images)
    _other_files(images)
    _unusual_images(images)
    _copies(images)
    _folders(images, root / "elsewhere")
    return images


def _files_that_cannot_be_read(images: Path) -> None:
    (images / "ant/empty.jpg").write_bytes(b"")
    (images / "ant/dangling.jpg").symlink_to(images / "ant/gone.jpg")
    whole = encoded(picture(0, 9001))
    (images / "ant/truncated.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    for kind in ("png", "webp"):
        whole = encoded(picture(1, 9002), kind.upper())
        (images / f"bee [red]/truncated.{kind}").write_bytes(whole[: len(whole) // 2])
    (images / "crow/a_text.jpg").write_text("to do: take a picture")
    (images / "crow/a_page.jpg").write_text("<!doctype html><title>404</title>")
    whole = encoded(picture(3, 9003), "PNG")
    middle = whole.index(b"IDAT") + 20
    (images / "dog/flipped_bytes.png").write_bytes(
        whole[:middle] + bytes(255 - b for b in whole[middle : middle + 9]) + whole[middle + 9 :]
    )
    deep = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30
    (images / "dog/sixteen_bits.png").write_bytes(encoded(Image.fromarray(deep), "PNG"))


def _other_files(images: Path) -> None:
    for name in NOT_READ:
        (images / name).write_bytes(b"something else")
    (images / "dog/no_ending").write_bytes(encoded(picture(3, 9010)))
    (images / "dog/.hidden.jpg").write_bytes(b"hidden")
    (images / ".DS_Store").write_bytes(b"")
    (images / "notes.txt").write_text("where these images come from")
    (images / "stray.jpg").write_bytes(encoded(picture(0, 9011)))


def _unusual_images(images: Path) -> None:
    ant, crow = images / "ant", images / "crow"
    (ant / "UPPER.JPG").write_bytes(encoded(picture(0, 9020)))
    (ant / "photo.jfif").write_bytes(encoded(picture(0, 9021)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (ant / "turned.jpg").write_bytes(encoded(picture(0, 9022), exif=exif))
    broken = (
        encoded(picture(0, 9023), exif=exif)
        .replace(b"Exif\x00\x00MM", b"Exif\x00\x00QQ")
        .replace(b"Exif\x00\x00II", b"Exif\x00\x00QQ")
    )
    (ant / "damaged_exif.jpg").write_bytes(broken)
    (ant / "one_pixel.png").write_bytes(encoded(picture(0, 9024).resize((1, 1)), "PNG"))
    (ant / "long.png").write_bytes(encoded(picture(0, 9025, (400, 14)), "PNG"))
    (crow / "cmyk.jpg").write_bytes(encoded(picture(2, 9026).convert("CMYK")))
    (crow / "grey.jpg").write_bytes(encoded(picture(2, 9027).convert("L")))
    (crow / "ink.png").write_bytes(encoded(picture(2, 9028).convert("1"), "PNG"))
    see_through = picture(2, 9029)
    see_through.putalpha(100)
    (crow / "alpha.png").write_bytes(encoded(see_through, "PNG"))
    (crow / "palette.png").write_bytes(encoded(picture(2, 9030).convert("P"), "PNG", transparency=0))
    frames = [picture(2, 9031 + i).convert("P") for i in range(3)]
    (crow / "moving.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    for number, name in enumerate(("with space.jpg", "new\nline.jpg", "=1+1.jpg", "ключ.jpg", '"quoted".jpg', "#number.jpg")):
        (images / "bee [red]" / name).write_bytes(encoded(picture(1, 9040 + number)))
    with open(os.fsencode(images / "bee [red]") + b"/caf\xe9.jpg", "wb") as file:
        file.write(encoded(picture(1, 9060)))


def _copies(images: Path) -> None:
    shutil.copy(images / "ant/0000.jpg", images / "ant/copy.jpg")
    shutil.copy(images / "crow/0001.jpg", images / "dog/also_a_crow.jpg")
    with Image.open(images / "ant/0002.jpg") as image:
        (images / "ant/other_format.png").write_bytes(encoded(image.convert("RGB"), "PNG"))
    large = picture(1, 9070).resize((240, 200))
    (images / "bee [red]/large.jpg").write_bytes(encoded(large, quality=95))
    (images / "bee [red]/smaller.jpg").write_bytes(encoded(large.resize((120, 100)), quality=80))
    (images / "crow/linked.jpg").symlink_to(images / "crow/0003.jpg")


def _folders(images: Path, elsewhere: Path) -> None:
    (images / "__MACOSX/ant").mkdir(parents=True)
    (images / "__MACOSX/ant/._0000.jpg").write_bytes(b"")
    (images / "nothing").mkdir()
    (images / "only_texts").mkdir()
    (images / "only_texts/readme.txt").write_text("")
    for name in ("rare", "Fox"):
        (images / name).mkdir()
        for i in range(3):
            (images / name / f"{i}.jpg").write_bytes(encoded(picture(6 if name == "rare" else 5, 100 + i)))
    (images / "ant/more/deeper").mkdir(parents=True)
    (images / "ant/more/deeper/0.jpg").write_bytes(encoded(picture(0, 9080)))
    (elsewhere / "dogs").mkdir(parents=True)
    (elsewhere / "dogs/0.jpg").write_bytes(encoded(picture(3, 9081)))
    (images / "dog/linked_folder").symlink_to(elsewhere / "dogs")
