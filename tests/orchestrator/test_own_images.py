"""The road of a person with a dirty folder: one look of the doctor, the commands that it prints, one sweep, a model."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import dirty_folder
import pytest

from orchestrator import quick
from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.doctor import check_sweep
from orchestrator.doctor import main as doctor
from orchestrator.finding import Finding
from orchestrator.quick import quick_overrides
from trainables.data import build_data
from trainables.data.source import EncodedImages

SPACES = Path(__file__).parents[2] / "search_spaces"
SMALL = (
    *("resources.gpus_per_worker=0", "resources.max_concurrent=2", "trial.data.image_size=24", "trial.data.test_per_class=6"),
    *("trial.compute.readers=1", "trial.classifier={name: small_cnn, widths: [4, 8]}", "trial.optim.batch_size=16"),
    *("trial.data.val_per_class=5", "trial.bilevel.meta_batch_size=14"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dirty_folder.dirty_folder(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def findings(images: Path) -> list[Finding]:
    found = check_sweep(SPACES / "own_images.yaml", [f"trial.data.root={images}", *SMALL])
    return [finding for finding in found if isinstance(finding, Finding)]


def test_one_look_names_every_problem(findings: list[Finding], images: Path) -> None:
    problems = [finding for finding in findings if finding.level == "problem"]
    for name in (*dirty_folder.UNREADABLE, "nothing", "only_texts", "crow/linked.jpg"):
        (said,) = (finding.text for finding in problems if f"{images}/{name} " in f"{finding.text} ".replace(":", " "))
        assert said
    assert len(problems) == len(dirty_folder.UNREADABLE) + 4  # the last one counts the unreadable images
    assert any("9 images cannot be read" in finding.text and "trial.data.broken=skip" in finding.cure for finding in problems)


@pytest.mark.parametrize(
    "said",
    [
        "(1 .db, 1 .csv, 1 .heic, 1 without an ending, 1 .txt); extra_endings=[none] reads the images among them",
        "1 image is not read in {images}, beside the folders of the classes (stray.jpg)",
        "{images}/__MACOSX is left out: programs make folders of this name",
        "8 classes: Fox 3, ant 69, bee [red] 49, crow 34, dog 18, fox 6, rare 3, élan 9",
        "classes have nearly the same name: 'Fox', 'fox'",
        "meta, val and test come from the same images as train",
        "the same pixels in two classes, so labels are wrong: 1 in crow and dog",
        "crow: {images}/crow/0001.jpg = dog: {images}/dog/also_a_crow.jpg",
        "{images}/ant/copy.jpg",
        "{images}/ant/other_format.png",
        "nearly the same image in ",
        "{images}/bee [red]/smaller.jpg",
        "1 image turned upright, as EXIF says: ant/turned.jpg (40x48)",
        "1 image of several frames, of which the first is used: crow/moving.gif",
        "2 images transparent, which is not seen: crow/alpha.png (48x40), crow/palette.png (48x40)",
        "2 images of an extreme size: ant/long.png (400x14), ant/one_pixel.png (1x1)",
    ],
)
def test_one_look_tells_what_is_unusual(findings: list[Finding], images: Path, said: str) -> None:
    text = "\n".join(finding.text for finding in findings if finding.level != "problem")
    assert said.format(images=images) in text


def words_of(command: str) -> list[str]:
    """What comes after `python -m`."""
    words = shlex.split(command)
    assert words[1] == "-m"
    return words[2:]


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words_of(command)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_printed_commands_lead_from_a_dirty_folder_to_a_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor([str(SPACES / "own_images.yaml"), f"trial.data.root={images}", *SMALL, "tracking.mlflow=false"]) == 1
    first = capsys.readouterr().out
    assert "13 to mend" in first
    module, *arguments = words_of(first.strip().splitlines()[-1])
    assert module == "orchestrator.doctor"
    assert doctor(arguments) == 1
    second = capsys.readouterr().out
    assert "skip.txt lists 14 images to leave out" in second
    sweep = run(f"{second.strip().splitlines()[-1]} --quick")
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    assert "their numbers are no result" in sweep.stdout
    folder = tmp_path / "results" / "own_images_quick"
    assert json.loads((folder / "best" / "metrics.json").read_text())["test"]
    config = read_sweep(folder / "sweep.yaml").trial
    data = build_data(config.data, config.seed)
    assert isinstance(data.source.images, EncodedImages)
    used = {data.source.images.name(i) for part in (data.train, data.val, data.test) for i in part.ids.tolist()}
    assert used.isdisjoint(dirty_folder.UNREADABLE)
    assert {"crow/0001.jpg", "dog/also_a_crow.jpg", "ant/copy.jpg", "crow/linked.jpg"}.isdisjoint(used)
    assert {"ant/0000.jpg", "crow/0003.jpg", "ant/more/deeper/0.jpg", "dog/linked_folder/0.jpg"} <= used
    predicted = run(f"python -m trainables.predict results/own_images_quick/best {shlex.quote(str(images))} --json")
    assert predicted.returncode == 1  # the files that cannot be read
    answer = json.loads(predicted.stdout)
    assert len(answer["unreadable"]) == len(dirty_folder.UNREADABLE)
    assert len(answer["images"]) > 180


def longest(config: SweepConfig) -> int:
    stages = [changes.get("stages", []) for changes in config.search.references.values()]
    return max([0, *(sum(stage.get("epochs", 0) for stage in of) for of in stages)])


@pytest.mark.parametrize("sweep", sorted(path.stem for path in SPACES.glob("*.yaml") if not path.stem.startswith("ablation")))
def test_every_shipped_sweep_has_a_quick_form(sweep: str) -> None:
    file = SPACES / f"{sweep}.yaml"
    config = read_sweep(file, quick_overrides(file, []))
    assert config.trial.epochs == 2 + longest(config)
    assert config.search.confirm is None
    assert config.scheduler.name == "none"
    assert config.search.num_proposed() <= 3
    assert getattr(config.trial.data, "image_size", None) in (None, 64, 8) or not config.trial.data.streamed()


def test_without_a_gpu_the_quick_form_has_a_shallow_backbone_unless_weights_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = SPACES / "own_images.yaml"
    for has_gpu, weights, depth in ((False, "null", 10), (False, "resnet18.pth", 18), (True, "null", 18)):
        monkeypatch.setattr(quick, "num_gpus", lambda has_gpu=has_gpu: int(has_gpu))
        config = read_sweep(sweep, quick_overrides(sweep, [f"trial.classifier.weights={weights}"]))
        assert config.trial.classifier.depth == depth  # type: ignore[attr-defined]
        assert config.resources.gpus_per_worker == has_gpu


def test_what_is_given_wins_over_the_quick_form() -> None:
    sweep = SPACES / "own_images.yaml"
    config = read_sweep(sweep, quick_overrides(sweep, ["trial.data.root=x", "trial.epochs=5", "search.trials=7"]))
    assert (config.trial.epochs, config.search.trials) == (5, 7)


def test_broken_skip_alone_lets_a_sweep_start(images: Path) -> None:
    overrides = [f"trial.data.root={images}", *SMALL, "trial.data.broken=skip", "trial.data.min_images=1"]
    left = [finding for finding in check_sweep(SPACES / "own_images.yaml", overrides) if isinstance(finding, Finding)]
    (link,) = (finding.text for finding in left if finding.level == "problem")  # which of two names is meant, no setting can say
    assert "crow/linked.jpg leads to the image of" in link
    assert "data.broken is skip: 9 of " in [finding.text[:26] for finding in left]
