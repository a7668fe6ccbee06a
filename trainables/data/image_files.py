"""Image files that a person names: which files these are, and how each becomes the pixels that a trained classifier sees."""

import io
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from trainables.data import ImageSet
from trainables.data.decode import channels_first, decoded, middle
from trainables.data.framing import Framing, framed
from trainables.data.image_folder import ENDINGS, NO_ENDING
from trainables.data.source import EncodedImages, Source, UnreadableImage, Vectors
from trainables.files import shown

FILE_WHITE = 255
"""The largest value of a pixel in an image file."""


class Transform(NamedTuple):
    """Decodes and resizes an image file as the evaluation in training does."""

    shape: tuple[int, int, int]
    """Of the result, (C, H, W). Images become grey with C = 1, and colour with C = 3."""
    streamed: bool
    """Whether the training read its images with `data.loading: stream`, which sees a little less of an image."""
    white: int
    """The largest value of a pixel in training; see Source."""
    framing: Framing | None = None
    """What is seen of an image that is streamed; None as `framed` says."""

    def __call__(self, file: str | os.PathLike[str] | bytes) -> Tensor:
        """The pixels (C, H, W), uint8, of an image file or of the content of one.

        Raises:
            UnreadableImage: when the image cannot be read; the message names the file.
        """
        try:
            encoded = file if isinstance(file, bytes) else Path(file).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"{shown(file)}: cannot be read: {error.strerror}") from error
        try:
            image = decoded(lambda: encoded, grey=self.shape[0] == 1)
        except UnreadableImage as error:
            raise UnreadableImage(f"{shown(file)}: {error}") from error
        return torch.from_numpy(self._counted(channels_first(self._resized(image)), image))

    def words(self) -> str:
        """What happens to an image, in words."""
        channels, height, width = self.shape
        seen = f"the middle {height}x{width} pixels"
        if self.streamed:
            less = "a little less than all of the short side" if self.framing is None else self.framing.words()
            seen += f", {less},"
        counted = f", and count up to {self.white} in place of {FILE_WHITE}" if self.white != FILE_WHITE else ""
        return f"images become {'grey' if channels == 1 else 'colour'}, are resized to {seen} at the model's scale{counted}"

    def _resized(self, image: Image.Image) -> Image.Image:
        _, height, width = self.shape
        if self.streamed:
            return framed(image, height, self.framing)
        if height == width:
            return middle(image, height, height)
        if image.size == (width, height):
            return image
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)  # the training had images of this size alone

    def _counted(self, pixels: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
        """Pixels that count up to `white`. An image without a value above `white` counts so already."""
        largest = np.max(image.getextrema())
        if largest <= self.white:
            return pixels
        return np.round(pixels * (self.white / FILE_WHITE)).astype(np.uint8)


class Found(NamedTuple):
    """Image files."""

    files: list[Path]
    left_out: list[Path]
    """Files in folders whose endings are not those of images."""


def find_images(places: Sequence[Path], extra_endings: Collection[str] = ()) -> Found:
    """The files among `places`, and those in the folders among them and below, in the order of their names.

    In a folder, files count as images by their endings. Names that begin with a dot are left out, and links are followed.

    Args:
        places: files and folders that exist.
        extra_endings: endings of image files beside ENDINGS, in lower case, as `data.extra_endings` has them.

    Raises:
        ValueError: when a folder cannot be read, or holds no image.
    """
    endings = {*ENDINGS, *extra_endings}
    found = Found([], [])
    for place in places:
        if not place.is_dir():
            found.files.append(place)
            continue
        before = len(found.files)
        for file in _files(place, set()):
            # A broken link is named as unreadable. To read from a pipe would wait for its writer.
            is_image = (file.suffix.lower() or NO_ENDING) in endings and (file.is_file() or not file.exists())
            (found.files if is_image else found.left_out).append(file)
        if len(found.files) == before:
            raise ValueError(f"{shown(place)}: the folder holds no image; allowed: files ending with {' '.join(sorted(endings))}")
    return found


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """The files of a folder and of the folders below it. A link to a folder that holds the link is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{shown(folder)}: cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry, above | {real})
        else:
            yield entry


def save_images(source: Source, part: ImageSet, folder: Path) -> list[Path]:
    """Writes the images of a set as files, `folder`/<class>/<id>.<ending>, and returns the files in the order of the set.

    Encoded images stay as they are. Decoded images become PNG files that count up to FILE_WHITE, so that people can see them;
    `Transform` gives the same pixels back.

    Raises:
        FileExistsError: when the folder exists.
        ValueError: when an image is missing, or the source has vectors.
    """
    if isinstance(source.images, Vectors):
        raise ValueError("the model's validation set are feature vectors, of which there are no image files; name image files")
    folder.mkdir(parents=True)
    images = source.images
    held = images.hold(part.ids) if isinstance(images, EncodedImages) else None
    files = []
    for image, label in zip(part.ids.tolist(), part.labels.tolist(), strict=True):
        place = folder / source.class_names[label].replace(os.sep, "_")
        place.mkdir(exist_ok=True)
        if held is None:
            assert isinstance(images, np.ndarray)
            pixels = np.round(images[image] * (FILE_WHITE / source.white)).astype(np.uint8)
            file = place / f"{image:06}.png"
            Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file)
        else:
            encoded = held.read(image)
            file = place / f"{image:06}.{str(Image.open(io.BytesIO(encoded)).format).lower()}"
            file.write_bytes(encoded)
        files.append(file)
    return files
