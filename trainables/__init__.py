"""What one trial does, and the use of trained models: `from trainables import load_model`.

The names are loaded when they are first used, so that importing a part of this package does not load torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.inference import Model, load_model

__all__ = ["Model", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from trainables import inference

    return getattr(inference, name)


def __dir__() -> list[str]:
    return __all__
