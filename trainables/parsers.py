"""The command lines of the verbs that need no cluster. Pure Python, so that `--help` comes at once."""

from trainables.command_line import CommandLine, typed_path
from trainables.shown_commands import program, typed_file


def train() -> CommandLine:
    """Of `train`."""
    parser = CommandLine(
        program("trainables.train"),
        "Trains one configuration in this process, without a cluster.",
        ["results/digits_lt/best/config.yaml", "digits_lt seed=1 --out trained", "own_images data.root=pets epochs=5"],
    )
    parser.add_argument("config", type=typed_file, help="A trial's YAML file, or a sweep's, or the name of a shipped sweep.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings to change, for example seed=1.")
    parser.add_argument("--out", type=typed_path, help="A new folder for the model, its numbers and its split. Default: none.")
    parser.add_argument(
        "--read-test", action="store_true", help="Read the sealed test set, once, with the model of the best epoch on val."
    )
    return parser


def predict() -> CommandLine:
    """Of `predict`."""
    parser = CommandLine(
        program("trainables.predict"),
        "Predicts the classes of image files with an exported model.",
        ["results/digits_lt/best photo.jpg", "results/pets/best folder --csv --top 5 > classes.csv"],
    )
    parser.add_argument("model", type=typed_path, help="The folder of an export, as results/NAME/best.")
    parser.add_argument("images", type=typed_path, nargs="*", help="Image files, and folders, which are searched for images.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="Print rows of file, rank, class and probability.")
    form.add_argument("--json", action="store_true", help="Print one JSON object at the end.")
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="Show the K most probable classes of each image. Default: 1."
    )
    parser.add_argument(
        "--save-val", type=typed_path, metavar="DIR", help="Write the model's validation images to DIR, and predict these."
    )
    return parser


def features() -> CommandLine:
    """Of `features`."""
    parser = CommandLine(
        program("trainables.features"),
        "Computes feature vectors of images with a frozen backbone, for sweeps that train heads on them.",
        [
            "digits_lt --model results/digits_lt/best --out features/digits",
            "own_images trial.data.root=pets trial.classifier.weights=resnet50.pth --out features/pets",
        ],
    )
    parser.add_argument("config", type=typed_file, help="A sweep's YAML file, or a trial's: the images, and the classifier.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings to change, as trial.data.root=pets.")
    parser.add_argument("--out", type=typed_path, required=True, help="A new folder for the vectors, or one to go on with.")
    parser.add_argument(
        "--model", type=typed_path, metavar="DIR", help="The folder of an export, whose backbone is taken, as results/NAME/best."
    )
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="K",
        help="How many vectors of augmented copies each image has beside its own, for data.augment=[views]. Default: 0.",
    )
    parser.add_argument(
        "--precision", choices=["float16", "float32"], default="float16", help="Of the vectors in the files. Default: float16."
    )
    return parser


def to_parquet() -> CommandLine:
    """Of `to-parquet`."""
    parser = CommandLine(
        program("trainables.to_parquet"),
        "Writes image files as parquet files, which a cluster reads from a store.",
        ["own_images trial.data.root=pets --out pets_parquet", "own_images trial.data.root=pets --out s3://bucket/pets"],
    )
    parser.add_argument("config", type=typed_file, help="A sweep's YAML file, or a trial's, that reads the images now.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings to change, as trial.data.root=pets.")
    parser.add_argument("--out", required=True, help="A new folder for the files, or an address such as s3://bucket/folder.")
    return parser
