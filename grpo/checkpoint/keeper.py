"""What a run keeps of its policy: checkpoints while it goes on, and at the end a plain Hugging Face folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo.checkpoint import store
from grpo.checkpoint.state import Position, capture
from grpo.files import write_json_atomic
from grpo.learner import Learner
from grpo.policy.export import export_policy, gather_weights

LINEAGE = "lineage.json"


@dataclass(kw_only=True)
class Keeper:
    """All processes call its methods together; the main one writes.

    identity: what every checkpoint says of the run (see grpo/resume.py). saved: what the newest checkpoint holds of the
    run's position, update 0 without one. seconds: of the last save.
    """

    run_dir: Path
    learner: Learner
    identity: Mapping[str, Any]
    saved: Position
    seconds: float = 0.0

    def save(self, position: Position) -> None:
        """One checkpoint; where this update has one already, in its place."""
        began, dist, policy = time.perf_counter(), self.learner.dist, self.learner.policy
        tensors, state = capture(self.learner, position)
        weights = gather_weights(policy, dist)
        if dist.is_main:
            path = store.save_checkpoint(
                self.run_dir,
                position.update,
                export=lambda folder: export_policy(policy, folder, weights),
                tensors=tensors,
                state={**state, **self.identity},
                replace=position.update == self.saved.update,
            )
            self.learner.stop.newest = path.name
            best = [position.best_step] if position.best_step is not None else []
            store.prune(self.run_dir, keep_last=self.learner.cfg.output.save_total_limit, keep=best)
        self.saved = replace(position)
        dist.barrier()
        self.seconds = time.perf_counter() - began

    def export(self, position: Position) -> Path:
        """`final/`: the model that the run ends with, and beside it what it came from."""
        weights = gather_weights(self.learner.policy, self.learner.dist, merge=True)
        staged, final = self.run_dir / ".final.unfinished", self.run_dir / "final"
        if self.learner.dist.is_main:
            shutil.rmtree(staged, ignore_errors=True)
            export_policy(self.learner.policy, staged, weights, merge=True)
            write_json_atomic(staged / LINEAGE, lineage(self.identity, position))
            shutil.rmtree(final, ignore_errors=True)
            staged.rename(final)
        return final


def lineage(identity: Mapping[str, Any], position: Position) -> dict[str, Any]:
    """Which model a run started from, and what it counted; a recipe says the rest (recipes/lineage.py)."""
    return {
        "inputs": {"model": {"name": identity["config"]["model_name_or_path"]}},
        "counts": {"updates": position.update, "problems_sha256": identity["data"]},
    }
