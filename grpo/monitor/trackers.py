"""`report_to`: the same metrics to tensorboard, trackio or wandb, through accelerate's trackers.

The loop makes one `Accelerator(log_with=tracker_names(report_to), project_dir=run_dir)`, then calls `start_trackers`
once, `log_to_trackers` per update and `accelerator.end_training()` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "trackio", "wandb")


def tracker_names(report_to: str | Sequence[str]) -> list[str]:
    """The trackers that `report_to` asks for, each once; `none` and an empty list ask for none.

    Raises ConfigError for one that is unknown, or not installed.
    """
    asked = [report_to] if isinstance(report_to, str) else list(report_to)
    names = [name for name in dict.fromkeys(asked) if name != "none"]
    for name in names:
        if name not in TRACKERS:
            nearest = get_close_matches(name, TRACKERS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"report_to: {name!r} is not one of none, {', '.join(TRACKERS)}{hint}")
        if find_spec(name) is None:
            raise ConfigError(
                f"report_to: {name} is not installed; run pip install 'r1-toolkit[{name}]', or leave it out"
            )
    return names


def start_trackers(
    accelerator: Accelerator,
    *,
    project: str,
    run_name: str,
    run_dir: Path | str,
    config: Mapping[str, Any],
    done_updates: int = 0,
) -> None:
    """Opens the trackers on the main process. `config`: the run's flat keys.

    done_updates: what a resumed run has behind it; tensorboard hides events that the killed run wrote after that.
    tensorboard writes below `<run_dir>/<project>`, wandb below `<run_dir>/wandb`.
    """
    options = {
        "tensorboard": {"purge_step": done_updates + 1},
        "trackio": {"name": run_name},
        "wandb": {"name": run_name, "dir": str(run_dir)},
    }
    scalars = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()
    }
    accelerator.init_trackers(project, config=scalars, init_kwargs=options)


def log_to_trackers(accelerator: Accelerator, metrics: Mapping[str, float], step: int) -> None:
    """Sends the finite metrics of update `step`; nothing happens without trackers or off the main process."""
    accelerator.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)
