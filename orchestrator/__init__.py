"""TailTune's orchestrator. From Python: `from orchestrator import run_sweep, run_ablation`; for the rest see api.py.

The names are loaded when they are first used, so that importing a part of this package loads neither torch nor Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Ablation, Best, Sweep, SweepFailed, run_ablation, run_sweep
    from trainables.config_file import ConfigError

__all__ = ["Ablation", "Best", "ConfigError", "Sweep", "SweepFailed", "run_ablation", "run_sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from orchestrator import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
