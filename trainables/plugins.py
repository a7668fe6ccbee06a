"""Registers methods, classifiers and data sources from outside the package.

A plug-in is a Python module that calls `register_loss`, `register_method`, `register_classifier` or `register_dataset` when it is
imported. A sweep names the module (`trial.plugins: [my_methods]`), or an installed package announces the module by an entry point
in the group `tailtune.plugins`. Registered rows stand in the same tables as the package's own rows. Examples are in examples/.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from trainables.classifier_config import CLASSIFIER_SETTINGS, ClassifierSettings
from trainables.data_config import DATA_SETTINGS, LongTailConfig
from trainables.loss_config import LOSS_SETTINGS, LossSettings, MethodSettings
from trainables.method_config import METHOD_SETTINGS
from trainables.settings import Settings

# The other tables need torch, and a plug-in with a data source may do without torch. So each function below imports its own.
if TYPE_CHECKING:
    from trainables.data.source import Source
    from trainables.methods import Loss, Method, Task
    from trainables.models import Classifier

L = TypeVar("L", bound=LossSettings)
M = TypeVar("M", bound=MethodSettings)
C = TypeVar("C", bound=ClassifierSettings)
D = TypeVar("D", bound=LongTailConfig)


def register_loss(settings: type[L], build: "Callable[[L, Task], Loss]") -> None:
    """Adds a loss, which every method takes as `base_loss` or `meta_loss`, and which is a method of its own under the same name.

    Args:
        settings: the loss's settings class; `name: Literal["my_loss"] = "my_loss"` gives the loss's name.
        build: the loss's class, or a function that builds the loss from its settings and the task. The interface of a loss is
            `Loss` in methods/losses.py.

    Raises:
        ValueError: when `settings` or `build` is derived from another base class, the name is missing, or another loss or method
            has the name.
    """
    from trainables.methods import LOSSES, METHODS, Loss, LossAlone, Method

    if isinstance(build, type):
        _check_class(build, Loss)
    # As a method first: a name that no method has, no loss has either.
    _register(settings, LossAlone, _Tables(LossSettings, "name", METHOD_SETTINGS, Method, METHODS))
    _register(settings, build, _Tables(LossSettings, "name", LOSS_SETTINGS, Loss, LOSSES))


def register_method(settings: type[M], build: "Callable[[M, Task], Method]") -> None:
    """Adds a method.

    Args:
        settings: the method's settings class; `name: Literal["my_method"] = "my_method"` gives the method's name.
        build: the method's class, or a function that builds the method from its settings and the task. The interface of a method
            is in methods/base.py.

    Raises:
        ValueError: when `settings` or `build` is derived from another base class, the name is missing, or another method has the
            name.
    """
    from trainables.methods import METHODS, Method

    if isinstance(settings, type) and issubclass(settings, LossSettings):
        raise ValueError(
            f"{_address(settings)} has the settings of a loss and cannot be registered as a method; allowed: register_loss, "
            "which makes it a method too, or settings derived from MethodSettings"
        )
    _register(settings, build, _Tables(MethodSettings, "name", METHOD_SETTINGS, Method, METHODS))


def register_classifier(settings: type[C], build: "Callable[[C, tuple[int, int, int], int], Classifier]") -> None:
    """Adds a classifier.

    Args:
        settings: the classifier's settings class; `name: Literal["my_net"] = "my_net"` gives the classifier's name.
        build: builds the classifier from its settings, the shape of an image (channels, height, width) and the number of classes.
            The interface of a classifier is in models/classifier.py; `trainables.models.build_head` builds the head.

    Raises:
        ValueError: when `settings` or `build` is derived from another base class, the name is missing, or another classifier has
            the name.
    """
    from trainables.models import CLASSIFIERS, Classifier

    _register(settings, build, _Tables(ClassifierSettings, "name", CLASSIFIER_SETTINGS, Classifier, CLASSIFIERS))


def register_dataset(settings: type[D], open_source: "Callable[[D], Source]") -> None:
    """Adds a data source.

    Args:
        settings: the source's settings class; `source: Literal["my_images"] = "my_images"` gives the source's name. Settings of a
            source of decoded images are derived from LongTailConfig, those of a source of encoded images from EncodedConfig.
        open_source: opens the source with its settings; data/source.py defines the result.

    Raises:
        ValueError: when `settings` is derived from another base class, the name is missing, or another source has the name.
    """
    from trainables.data import DATASETS
    from trainables.data.source import Source

    _register(settings, open_source, _Tables(LongTailConfig, "source", DATA_SETTINGS, Source, DATASETS))


class _Tables(NamedTuple):
    """The two tables that a row is added to, and the base classes that the row must have."""

    base: type[Settings]
    """Base class of the settings."""
    selector: str
    """The field that contains the name."""
    settings: dict[str, Any]
    """Settings classes by name."""
    product: type
    """Base class of the methods, classifiers or sources that are built."""
    builders: dict[str, Callable[..., Any]]
    """The classes or functions that build them, by name."""


def _register(settings: type[Settings], build: Callable[..., Any], tables: _Tables) -> None:
    """Adds both rows, or none. If the same class is registered again, its rows are replaced: a notebook may import a module
    again.
    """
    _check_class(settings, tables.base)
    if isinstance(build, type):  # the type that a function returns is known only when the function is called
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
    """Raises a ValueError if `given` is not a class derived from `base`."""
    if not (isinstance(given, type) and issubclass(given, base)):
        described = _address(given) if isinstance(given, type) else repr(given)
        raise ValueError(f"{described} cannot be registered here; allowed: a class derived from {_address(base)}")


def _name_of(settings: type[Settings], selector: str) -> str:
    """The only word that the field `selector` allows."""
    annotation = settings.model_fields[selector].annotation
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    if len(words) != 1 or not isinstance(words[0], str):
        raise ValueError(
            f"{settings.__name__}.{selector} does not say which name selects these settings; allowed: a Literal of one word, as "
            f'{selector}: Literal["my_name"] = "my_name"'
        )
    return words[0]


def _address(kind: type) -> str:
    """The module and the name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"
