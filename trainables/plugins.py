"""Methods, classifiers and data sources from outside the package.

A plug-in is a Python module that calls `register_method`, `register_classifier` or `register_dataset` when it is imported. A
sweep names it (`trial.plugins: [my_methods]`), or an installed package announces it by an entry point in the group
`tailtune.plugins`. What it registers stands in the same tables as what the package has itself. Examples are in examples/.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from trainables.config import CLASSIFIER_SETTINGS, ClassifierSettings
from trainables.data_config import DATA_SETTINGS, LongTailConfig
from trainables.method_config import METHOD_SETTINGS, MethodSettings
from trainables.settings import Settings

# The other tables are imported where they are needed: they need torch, which a plug-in with a data source may do without.
if TYPE_CHECKING:
    from trainables.data.source import Source
    from trainables.methods import Method, Task
    from trainables.models import Classifier

M = TypeVar("M", bound=MethodSettings)
C = TypeVar("C", bound=ClassifierSettings)
D = TypeVar("D", bound=LongTailConfig)


def register_method(settings: type[M], build: "Callable[[M, Task], Method]") -> None:
    """Adds a method.

    Args:
        settings: its settings; `name: Literal["my_method"] = "my_method"` gives its name.
        build: the class, or a function that makes the method from its settings and the task. The contract of a method is in
            methods/base.py.

    Raises:
        ValueError: when `settings` or `build` comes from another base class, or the name is missing or belongs to another method.
    """
    from trainables.methods import METHODS, Method

    _register(settings, build, _Tables(MethodSettings, "name", METHOD_SETTINGS, Method, METHODS))


def register_classifier(settings: type[C], build: "Callable[[C, tuple[int, int, int], int], Classifier]") -> None:
    """Adds a classifier.

    Args:
        settings: its settings; `name: Literal["my_net"] = "my_net"` gives its name.
        build: makes the classifier from its settings, the shape of an image (channels, height, width) and the number of classes.
            The contract of a classifier is in models/classifier.py; `trainables.models.build_head` makes the head.

    Raises:
        ValueError: when `settings` or `build` comes from another base class, or the name is missing or belongs to another
            classifier.
    """
    from trainables.models import CLASSIFIERS, Classifier

    _register(settings, build, _Tables(ClassifierSettings, "name", CLASSIFIER_SETTINGS, Classifier, CLASSIFIERS))


def register_dataset(settings: type[D], open_source: "Callable[[D], Source]") -> None:
    """Adds a data source.

    Args:
        settings: its settings; `source: Literal["my_images"] = "my_images"` gives its name. A source of decoded images derives
            them from LongTailConfig, a source of encoded images from EncodedConfig.
        open_source: makes the source from its settings; data/source.py says what it holds.

    Raises:
        ValueError: when `settings` comes from another base class, or the name is missing or belongs to another source.
    """
    from trainables.data import DATASETS
    from trainables.data.source import Source

    _register(settings, open_source, _Tables(LongTailConfig, "source", DATA_SETTINGS, Source, DATASETS))


class _Tables(NamedTuple):
    """The two tables that a row goes into, and what the row has to be."""

    base: type[Settings]
    """What the settings derive from."""
    selector: str
    """The field with the name."""
    settings: dict[str, Any]
    """The settings by name."""
    product: type
    """What is built."""
    builders: dict[str, Callable[..., Any]]
    """What builds it, by name."""


def _register(settings: type[Settings], build: Callable[..., Any], tables: _Tables) -> None:
    """Adds both rows, or none. The same class once more replaces its rows, because a notebook may import a module again."""
    _check_class(settings, tables.base)
    if isinstance(build, type):  # what a function returns is only known when it is called
        _check_class(build, tables.product)
    name = _name_of(settings, tables.selector)
    taken = tables.settings.get(name, settings)
    if _address(taken) != _address(settings):
        raise ValueError(
            f"{settings.__name__}.{tables.selector} is {name!r}, which is the name of {_address(taken)}; allowed: any other name "
            f"than {', '.join(tables.settings)}"
        )
    tables.settings[name], tables.builders[name] = settings, build


def _check_class(given: Any, base: type) -> None:
    """Sees that `given` is a class derived from `base`."""
    if not (isinstance(given, type) and issubclass(given, base)):
        described = _address(given) if isinstance(given, type) else repr(given)
        raise ValueError(f"{described} cannot be registered here; allowed: a class derived from {_address(base)}")


def _name_of(settings: type[Settings], selector: str) -> str:
    """The one word that the field `selector` allows."""
    annotation = settings.model_fields[selector].annotation
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    if len(words) != 1 or not isinstance(words[0], str):
        raise ValueError(
            f"{settings.__name__}.{selector} does not say which name selects these settings; allowed: a Literal of one word, as "
            f'{selector}: Literal["my_name"] = "my_name"'
        )
    return words[0]


def _address(kind: type) -> str:
    """Where a class is defined."""
    return f"{kind.__module__}.{kind.__qualname__}"
