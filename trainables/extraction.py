"""Images -> feature vectors of a frozen backbone, as .parquet files that the source `features` reads.

Files are written one after another, each whole or not at all, so that an extraction that was interrupted goes on. Each names the
file that follows, so that a missing one is noticed.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data import ImageSet, LongTailedData, build_data, open_source
from trainables.data.feature_files import BACKBONE, NAME, SEEN, VIEWS
from trainables.data.loaded import as_expected, open_store
from trainables.data.loader import ImageFormat, ImageStore, LoadedSet, Request
from trainables.data.source import FOLLOWED_BY, PARTS, EncodedImages, Ids, Source, Vectors, image_name
from trainables.data_config import EncodedConfig
from trainables.engine.numerics import numerics
from trainables.export_model import read_model
from trainables.files import replace_text, sync
from trainables.frozen import write_frozen
from trainables.machine import choose_device, num_cores
from trainables.model_folder import MODEL
from trainables.models import Classifier, build_classifier, expected_input
from trainables.seeds import derive_seed

PLAN = "features.json"
"""What is in the folder: written before the first file of vectors."""
SHARD_ROWS, GROUP_ROWS = 8192, 1024
"""Images in a file, and in a row group."""
MOST_IMAGES, PIXELS_AT_ONCE = 64, 2**24
"""Images and pixel values in a batch. On a CPU, larger batches leave its caches and are slower."""
Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class Extraction:
    """What is computed, and from what."""

    config: TrialConfig
    source: Source
    classifier: Classifier
    format: ImageFormat
    seen: NDArray[np.bool_] | None
    """Whether the backbone was trained on the image, (N,); None if that is not known."""
    views: int
    """How many vectors of augmented copies each image has beside its own."""
    precision: Precision

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of images and convolutions."""
        return torch.channels_last if self.config.compute.channels_last else torch.contiguous_format

    @property
    def num_images(self) -> int:
        """Images of the source that belong to a part."""
        return sum(len(ids) for ids in self.source.parts.values())

    def identity(self) -> dict[str, Any]:
        """What distinguishes these vectors from others: digests of the backbone, of what happens to an image before, and of the
        images.
        """
        backbone = hashlib.sha256()
        for name, tensor in self.classifier.backbone.state_dict().items():
            backbone.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        data = self.config.data
        # What decides the pixels: neither the place of the images nor their split.
        chosen = {key: value for key, value in data.origin().items() if key not in ("root", "download")}
        before = [self.format.shape, self.format.normalisation, self.source.white, chosen]
        if self.format.framing is not None:
            before.append(self.format.framing)
        augment = data.augment if self.views else []
        images, every = hashlib.sha256(self.source.labels.tobytes()), np.arange(len(self.source.labels))
        encoded = self.source.images
        if isinstance(encoded, EncodedImages):
            images.update(encoded.identity(every))
        elif isinstance(encoded, np.ndarray):
            images.update(encoded.tobytes())
        return {
            "num_features": self.classifier.num_features,
            "backbone": backbone.hexdigest(),
            "preprocessing": hashlib.sha256(json.dumps(before).encode()).hexdigest(),
            "images": images.hexdigest(),
            "views": [self.views, augment, self.config.seed if self.views else 0],
            "precision": self.precision,
        }


def plan_extraction(config: TrialConfig, model: Path | None, views: int, precision: Precision) -> Extraction:
    """Opens the source and the backbone.

    Args:
        config: its `data` say which images, and its `classifier` which backbone, unless there is a `model`.
        model: folder of an exported model, whose backbone is taken.
        views: as Extraction.
        precision: of the vectors in the files.

    Raises:
        ValueError: when the source is incomplete or has no images, the backbone's weights are random, or the model takes other
            images.
    """
    source = open_source(config.data)
    if isinstance(source.images, Vectors):
        raise ValueError("data.source is features, which are vectors already; allowed: a source of images")
    if views and not config.data.augment:
        raise ValueError(f"--views is {views}, but data.augment is empty, so that all views would be equal; allowed: --views 0")
    data = build_data(config.data, config.seed, source)
    if model is not None:
        return _of_model(config, data, model, views, precision)
    if config.classifier.starts_random():
        raise ValueError(
            f"classifier: the backbone of {config.classifier.name} has random weights, and so its vectors say little; allowed: "
            "--model RESULTS/NAME/best, which takes the backbone of an exported model, or a classifier with weights"
        )
    shape = data.image_shape(config.data)
    classifier = build_classifier(config.classifier, shape, len(source.class_names), config.seed)
    expected = expected_input(config.classifier)
    if expected is None:
        form = _format_of_training(config, data)
    else:
        form = as_expected(expected, shape, source.white, config.data.streamed())
    return Extraction(config, source, classifier, form, None, views, precision)


def _format_of_training(config: TrialConfig, data: LongTailedData) -> ImageFormat:
    """The format of the images in a trial of the same settings."""
    store = open_store(config.data, data.source, torch.device("cpu"), 0)
    store.hold(data.train.ids)
    return store.format(data.train.ids)


def _of_model(config: TrialConfig, data: LongTailedData, folder: Path, views: int, precision: Precision) -> Extraction:
    """The backbone of an exported model, with the images that it was trained on marked if they are of the same source."""
    classifier, trained, metadata = read_model(folder / MODEL)
    if trained.data.source == "features":
        raise ValueError(f"{folder} is a model of feature vectors; allowed: a model that was trained on images")
    shape, white = tuple(json.loads(metadata["image_shape"])), int(metadata.get("white", 255))
    source = data.source
    channels = data.image_shape(config.data)[0]
    if white != source.white or shape[0] != channels:
        raise ValueError(
            f"{folder} takes images of {shape[0]} channels that count up to {white}; those of data.source {config.data.source} "
            f"have {channels} and count up to {source.white}; allowed: a model of images of the same kind"
        )
    if isinstance(config.data, EncodedConfig) and config.data.image_size not in (shape[1], None):
        raise ValueError(
            f"data.image_size is {config.data.image_size}, but {folder} was trained on images of {shape[1]}; allowed: "
            f"data.image_size={shape[1]}"
        )
    seen = None
    if trained.data.origin() == config.data.origin():
        before = build_data(trained.data, trained.seed, source)
        if before.sha256 == metadata["split_sha256"]:
            seen = np.zeros(len(source.labels), np.bool_)
            seen[before.train.ids] = True
    form = ImageFormat.of(metadata)
    described = config.model_copy(update={"classifier": trained.classifier, "plugins": trained.plugins})
    return Extraction(described, source, classifier, form, seen, views, precision)


class Shard(NamedTuple):
    """A file of vectors."""

    name: str
    ids: Ids
    followed_by: str


def shards_of(source: Source) -> list[Shard]:
    """The files of an extraction, part by part; the last one names the first."""
    pieces = []
    for part in [part for part in PARTS if part in source.parts]:
        ids = source.parts[part]
        label = part if len(source.parts) > 1 else "images"
        for number, first in enumerate(range(0, len(ids), SHARD_ROWS)):
            pieces.append((f"{label}-{number:05}.parquet", ids[first : first + SHARD_ROWS]))
    following = [name for name, _ in pieces[1:]] + [pieces[0][0]]
    return [Shard(name, ids, after) for (name, ids), after in zip(pieces, following, strict=True)]


def prepare_folder(extraction: Extraction, out: Path) -> list[Shard]:
    """Makes the folder, or finds out what is left to do there. Returns the files that are missing.

    Raises:
        ConfigError: when the folder holds something else.
    """
    identity = json.loads(json.dumps(extraction.identity()))
    shards = shards_of(extraction.source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            there = json.loads((out / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"command line: --out is {out}, which exists and holds no vectors; nothing was changed; choose a new folder"
            ) from error
        if other := [key for key, value in identity.items() if there.get(key) != value]:
            raise ConfigError(
                f"command line: --out is {out}, which holds other vectors ({', '.join(other)} differ); nothing was changed; "
                "choose a new folder"
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(out / PLAN, json.dumps(identity, indent=1))
    if not (out / BACKBONE).exists():
        partial = out / f".{BACKBONE}.partial"
        write_frozen(partial, extraction.classifier, extraction.config, extraction.format, extraction.source.white)
        partial.rename(out / BACKBONE)
    return [shard for shard in shards if not (out / shard.name).exists()]


def extract(extraction: Extraction, shards: list[Shard], out: Path, on_images: Callable[[int], None]) -> None:
    """Computes and writes the files. `on_images` is called with the number of images that a batch had.

    Raises:
        ValueError: when an image cannot be read, or a number does not fit into float16.
        OSError: when a file cannot be written.
    """
    config, source = extraction.config, extraction.source
    device = choose_device(config.device)
    torch.set_num_threads(num_cores())
    extraction.classifier.to(device).to(memory_format=extraction.memory_format).eval()
    store = None if isinstance(config.data, EncodedConfig) else open_store(config.data, source, device, 0)
    readers = max(config.compute.readers, num_cores())
    for shard in shards:
        # A store keeps what it has decoded, so that each file of encoded images has one of its own.
        images = store or open_store(config.data, source, device, readers)
        images.hold(shard.ids)
        part = ImageSet(shard.ids, source.labels[shard.ids])
        with numerics(config.compute, device):
            own = _features(extraction, images.load(part, extraction.format), None, on_images)
            views = list(_views(extraction, images, part, on_images))
        _write(extraction, shard, own, views, out)


def _views(extraction: Extraction, store: ImageStore, part: ImageSet, on_images: Callable[[int], None]) -> Iterator[Tensor]:
    """Features (N, D) of augmented copies of the images, view by view."""
    augmented = store.load(part, extraction.format, extraction.config.data.augment) if extraction.views else None
    for view in range(extraction.views):
        assert augmented is not None
        seed = derive_seed(extraction.config.seed, "views", view)
        yield _features(extraction, augmented, derive_seed(seed, "augment", int(part.ids[0])), on_images)


@torch.no_grad()
def _features(extraction: Extraction, images: LoadedSet, seed: int | None, on_images: Callable[[int], None]) -> Tensor:
    """Features (N, D) on the CPU, float32; of augmented images if there is a seed."""
    size = max(1, min(MOST_IMAGES, PIXELS_AT_ONCE // math.prod(images.shape)))
    batches = enumerate(torch.split(torch.arange(len(images)), size))
    requests = [Request(some, () if seed is None else (derive_seed(seed, "augment", number),)) for number, some in batches]
    rows = []
    for batch in images.batches(requests):
        pixels = batch.images.contiguous(memory_format=extraction.memory_format)
        rows.append(extraction.classifier.backbone(pixels).float().cpu())
        on_images(len(rows[-1]))
    return torch.cat(rows)


def _write(extraction: Extraction, shard: Shard, own: Tensor, views: list[Tensor], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = extraction.source
    columns: dict[str, Any] = {"features": _column(extraction, own), "label": pa.array(source.labels[shard.ids])}
    if views:
        columns[VIEWS] = _column(extraction, torch.cat(views, 1))
    columns[NAME] = pa.array([image_name(source.images, image) for image in shard.ids.tolist()])
    if extraction.seen is not None:
        columns[SEEN] = pa.array(extraction.seen[shard.ids])
    table = pa.table(columns).replace_schema_metadata(
        {"class_names": json.dumps([name.encode(errors="backslashreplace").decode() for name in source.class_names])}
    )
    partial = out / f".{shard.name}.partial"
    options: dict[str, Any] = {"compression": "none", "use_dictionary": ["label"], "write_page_checksum": True}
    with pq.ParquetWriter(partial, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=GROUP_ROWS)
        writer.add_key_value_metadata({FOLLOWED_BY: shard.followed_by})
    sync(partial)
    partial.rename(out / shard.name)
    sync(out)


def _column(extraction: Extraction, features: Tensor) -> Any:
    """Vectors (N, D) as a column of lists.

    Raises:
        ValueError: when a number is not finite in the precision of the files.
    """
    import pyarrow as pa

    values = features.numpy().astype(extraction.precision)
    if not np.isfinite(values).all():
        cure = "--precision float32" if np.isfinite(features.numpy()).all() else "a backbone whose output is finite"
        raise ValueError(f"a feature is not finite in {extraction.precision}; allowed: {cure}")
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
