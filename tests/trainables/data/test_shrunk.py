"""With `data.shrink`, training images are decoded once for a machine; nothing but their crops changes."""

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import v2

from trainables.classifier_config import SmallCNNConfig
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data import shrunk
from trainables.data.decode import channels_first, open_image
from trainables.data.large_augment import crop_box, num_draws, uniform
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import Request, training_order, training_requests
from trainables.data.shrunk import shrunk_images
from trainables.data.source import EncodedImages
from trainables.data_config import ImageFolderConfig
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

CPU = torch.device("cpu")


@pytest.fixture
def decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each image is decoded to be shrunk. The cache is a folder of the test's own."""
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path / "cache"))
    found: Counter[int] = Counter()

    def counting(images: EncodedImages, image: int, grey: bool) -> Any:
        found[image] += 1
        return open_image(images, image, grey)

    monkeypatch.setattr(shrunk, "open_image", counting)
    return found


def config(root: Path, **settings: Any) -> ImageFolderConfig:
    """Photographs of 12 x 9, 9 x 12 and 10 x 10 pixels, seen as 7 x 7 pixels: with a short side of 8 if they are not cropped."""
    if not root.exists():
        miniatures.own_images(root, endings=(".png",))
    given = {**dict.fromkeys(("meta_per_class", "val_per_class", "test_per_class"), 1), "augment": ["resized_crop"]}
    return ImageFolderConfig.model_validate({"root": str(root), "image_size": 7, **given, **settings})


def loaded(root: Path, readers: int = 0, seed: int = 0, **settings: Any) -> LoadedData:
    return load_data(config(root, **settings), seed, CPU, readers)


def plain(data: LoadedData, part: str) -> torch.Tensor:
    return next(iter(getattr(data, part).batches([Request(torch.arange(len(getattr(data, part))))]))).images


def augmented(data: LoadedData, epoch: int = 1) -> list[torch.Tensor]:
    order = training_order(torch.from_numpy(data.data.train.labels), 4, 0, epoch)
    return [batch.images for batch in data.train.batches(training_requests(order, 0, epoch * len(order), True))]


def test_a_shrunk_image_is_what_torchvision_s_resize_gives_and_a_small_one_stays_as_it_is(
    tmp_path: Path, decodes: Counter[int]
) -> None:
    data = loaded(tmp_path / "pets")
    images, ids = data.data.source.images, data.data.train.ids
    assert isinstance(images, EncodedImages)
    for side in (4, 9, 50):
        found = shrunk_images(images, ids, side, grey=False)
        for image in ids.tolist():
            whole = open_image(images, image, grey=False)
            expected = v2.Resize(side)(whole) if side < min(whole.size) else whole
            assert (np.array(found.open(image)) == np.array(expected)).all()
    grey = shrunk_images(images, ids, 4, grey=True).open(int(ids[0]))
    assert (grey.mode, min(grey.size)) == ("L", 4)


def test_crops_are_those_of_the_shrunk_images(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", shrink=8)
    images = data.data.source.images
    assert isinstance(images, EncodedImages)
    ((pixels, *_),) = data.train.batches([Request(torch.tensor([5]), (17,))])
    whole = open_image(images, int(data.data.train.ids[5]), grey=False)
    small = torch.from_numpy(channels_first(v2.Resize(8)(whole)))
    (draws,) = uniform(np.random.SeedSequence(17).generate_state(1, np.uint64), num_draws(["resized_crop"])).tolist()
    expected = v2.functional.resized_crop(small, *crop_box(draws, *small.shape[1:]), size=[7, 7], antialias=True)
    assert torch.equal(pixels, data.format.normalisation(expected[None]))


def test_only_crops_of_training_images_change(tmp_path: Path, decodes: Counter[int]) -> None:
    without, with_shrink = loaded(tmp_path / "pets"), loaded(tmp_path / "pets", shrink=8)
    assert without.data.sha256 == with_shrink.data.sha256
    for part in ("meta", "val", "train"):  # 8 is the short side to which images without crops are resized
        assert torch.equal(plain(without, part), plain(with_shrink, part))
    assert not any(map(torch.equal, augmented(without), augmented(with_shrink)))
    # As large as the images: nothing changes at all.
    assert all(map(torch.equal, augmented(without), augmented(loaded(tmp_path / "pets", shrink=12))))


def test_training_images_are_decoded_once_for_all_epochs_and_trials(tmp_path: Path, decodes: Counter[int]) -> None:
    first = loaded(tmp_path / "pets", shrink=8, split_seed=3)
    for epoch in (1, 2):
        augmented(first, epoch)
    again = loaded(tmp_path / "pets", shrink=8, split_seed=3)
    assert all(map(torch.equal, augmented(first), augmented(again)))
    assert decodes == dict.fromkeys(first.data.train.ids.tolist(), 1)


@pytest.mark.slow
def test_readers_share_the_shrunk_images(tmp_path: Path, decodes: Counter[int]) -> None:
    alone, read = loaded(tmp_path / "pets", shrink=8), loaded(tmp_path / "pets", readers=2, shrink=8)
    assert all(map(torch.equal, augmented(alone), augmented(read)))


def test_a_file_that_has_changed_is_shrunk_again(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", shrink=8)
    before, file = augmented(data), Path(data.data.source.images.place(int(data.data.train.ids[0])))  # type: ignore[union-attr]
    content = Path(data.data.source.images.place(int(data.data.train.ids[1]))).read_bytes()  # type: ignore[union-attr]
    time.sleep(0.01)
    file.write_bytes(content)
    assert not all(map(torch.equal, before, augmented(loaded(tmp_path / "pets", shrink=8))))
    assert set(decodes.values()) == {2}


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_kept(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets")
    file = Path(data.data.source.images.place(int(data.data.train.ids[4])))  # type: ignore[union-attr]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"^data.root: {file}: not an image that can be read"):
        loaded(tmp_path / "pets", shrink=8)
    assert not list((tmp_path / "cache").glob("*/*.part*"))


def test_a_damaged_copy_ends_the_trial_and_says_which_file_to_remove(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", shrink=8)
    (part,) = (tmp_path / "cache").glob("*/*.part")
    with part.open("r+b") as file:
        file.seek(20)
        file.write(b"damage")
    with pytest.raises(ValueError, match=f"the copy in {part} is damaged; remove this file, and it is made again"):
        augmented(data)
    part.unlink()
    augmented(loaded(tmp_path / "pets", shrink=8))


def test_a_cache_that_cannot_be_written_is_refused_with_a_cure(
    tmp_path: Path, decodes: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path / "file"))
    expected = rf"^data.shrink is 8, but the shrunk images .* cannot be kept in {tmp_path}/file/.*: .*allowed: .*TAILTUNE_CACHE"
    with pytest.raises(ValueError, match=expected):
        loaded(tmp_path / "pets", shrink=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink": 100, "image_size": 224}, "shrink is 100, but image_size is 224, .* at least 224, for example 256"),
        ({"shrink": 8, "loading": "memory", "augment": []}, "shrink is 8, but loading is memory, .* loading stream, or leave"),
    ],
)
def test_a_shrink_without_effect_or_below_the_image_size_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(tmp_path / "pets", **settings)


def test_a_trial_without_shrink_has_the_record_that_it_had_before() -> None:
    assert "shrink" not in ImageFolderConfig(root="/pets").model_dump()
    assert ImageFolderConfig(root="/pets", shrink=256).model_dump()["shrink"] == 256


@pytest.mark.slow
def test_a_trial_goes_on_bit_for_bit_from_shrunk_images(tmp_path: Path, decodes: Counter[int]) -> None:
    def run(epochs: int, folder: Path | None = None) -> TrialRun:
        trial = TrialConfig(
            epochs=3,
            device="cpu",
            data=config(tmp_path / "pets", shrink=8),
            classifier=SmallCNNConfig(),
            method=DifficultyNetConfig(hidden_width=8),
            optim=OptimConfig(batch_size=6),
            compute=ComputeConfig(readers=0),
            read_test=True,
        )
        found = TrialRun()
        if folder is None:
            found.start(trial)
        else:
            found.load(folder, trial)
        while found.epoch < epochs:
            found.run_epoch()
        return found

    whole, half = run(3), run(1)
    half.save(tmp_path / "saved")
    for file in (tmp_path / "cache").glob("*/*.part"):
        file.unlink()  # as on another machine
    resumed = run(3, tmp_path / "saved")
    ours, theirs = whole.classifier.state_dict(), resumed.classifier.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    reports = [re.sub(r"'time/\w+': [^,}]+", "", repr(some.report)) for some in (whole, resumed)]
    assert reports[0] == reports[1]
