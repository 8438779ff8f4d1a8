"""Stages that feed one another: what each takes from which, whether it is done already, and the process that runs it.

A stage is a recipe with its keys. A value `$name` stands for what the stage `name` made, `$name/a/path` for a path in
its folder. That is all that ties stages together: the order, the lineage and the question whether a stage must run
again follow from it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from data.readers import FILE_TYPES
from grpo.config.coerce import dump_yaml, nearest
from grpo.errors import CheckpointError, ConfigError
from grpo.files import write_json_atomic, write_text_atomic
from recipes.command import set_aside
from recipes.lineage import fingerprint_of, models_in, texts_in

REFERENCE = re.compile(r"\$(\w+)(/.*)?")
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file")
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
OF_A_LAUNCHER = re.compile(r"RANK|WORLD_SIZE|LOCAL_\w+|GROUP_\w+|ROLE_\w+|MASTER_\w+|TORCHELASTIC_\w+|ACCELERATE_\w+")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the chain. keys: flat, references unresolved. launch: accelerate's file and flags for its launcher;
    None for one process.

    product: where in its folder the stage leaves what others take; "" is the folder itself.
    """

    name: str
    recipe: str
    keys: Mapping[str, Any]
    product: str = "final"
    launch: str | None = None

    @property
    def needs(self) -> list[str]:
        """The stages it takes something from, in the order in which they are mentioned."""
        found = (REFERENCE.fullmatch(text) for _, text in texts_in(self.keys))
        return list(dict.fromkeys(reference[1] for reference in found if reference))

    @property
    def given(self) -> list[str]:
        """The models it takes that no stage made."""
        return [model for model in dict.fromkeys(models_in(self.keys)) if not REFERENCE.fullmatch(model)]


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it, however deep, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    return [mapped(item, change) for item in value] if isinstance(value, list) else value


def paths_of(text: str) -> list[str]:
    """The files or folders that a key's value names (`{split}` stands for any part), also with a word before or behind
    a colon, as in `gsm8k:rows.jsonl` and `rewards.py:mine`; else none."""
    named = [name for name in dict.fromkeys([text, *text.split(":", 1)]) if _is_path(name)]
    return [path for name in named for path in sorted(glob(escape(name).replace("{split}", "*")))]


def _is_path(text: str) -> bool:
    """Any other word is a name, even where a file or folder happens to be called so."""
    return os.sep in text or Path(text).suffix in (*FILE_TYPES, ".py")


def in_order(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with every one behind those it needs, else as they are written.

    Raises ConfigError for a reference to a stage that does not exist, and for stages that need one another.
    """
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        for need in stage.needs:
            if need not in by_name:
                raise ConfigError(f"stages: {stage.name} takes ${need}, which is no stage.{nearest(need, by_name)}")
    try:
        TopologicalSorter({stage.name: stage.needs for stage in stages}).prepare()
    except CycleError as error:
        raise ConfigError(f"stages: these need one another: {' <- '.join(error.args[1])}") from error
    ordered: dict[str, Stage] = {}

    def place(stage: Stage) -> None:
        for need in stage.needs:
            place(by_name[need])
        ordered.setdefault(stage.name, stage)

    for stage in stages:
        place(stage)
    return list(ordered.values())


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages and the folder in which each has one of its own; what is known about them lies in `stages/`."""

    folder: Path
    stages: Sequence[Stage]

    def output(self, stage: Stage) -> Path:
        return self.folder / stage.name

    def made(self, name: str) -> Path:
        stage = next(stage for stage in self.stages if stage.name == name)
        return self.output(stage) / stage.product

    def place(self, text: str) -> str:
        """The path that a reference stands for; other text as it is."""
        if not (found := REFERENCE.fullmatch(text)):
            return text
        return str(self.folder / found[1]) + found[2] if found[2] else str(self.made(found[1]))

    def identity(self, stage: Stage) -> str:
        """sha256 of the recipe, its keys and the contents of what it takes, from other stages and from outside; the
        same identity, the same result."""
        prints = {need: fingerprint_of(self.made(need)) for need in stage.needs}

        def content(text: str) -> str:
            if found := REFERENCE.fullmatch(text):
                return f"{prints[found[1]]}{found[2] or ''}"
            return " ".join([text, *map(fingerprint_of, paths_of(text))])

        keys = mapped(stage.keys, content)
        return hashlib.sha256(json.dumps([stage.recipe, keys], sort_keys=True).encode()).hexdigest()

    def waits(self, stage: Stage) -> list[str]:
        """What the stage needs and is not finished."""
        return [need for need in stage.needs if not self.is_done(need)]

    def standing(self, stage: Stage) -> str:
        """done, to resume, changed, to run, or what it waits for."""
        if waits := self.waits(stage):
            return f"waits for {', '.join(waits)}"
        if not (record := self.record(stage)):
            return "to run"
        if record["identity"] != self.identity(stage):
            return "changed"
        if self.is_done(stage.name):
            return "done"
        return "to resume" if self.output(stage).exists() else "to run"

    def is_done(self, name: str) -> bool:
        """Whether the stage was finished and what it made is there, whatever has changed since."""
        stage = next(stage for stage in self.stages if stage.name == name)
        return self.record(stage).get("seconds") is not None and self.made(name).exists()

    def seconds(self) -> dict[str, float]:
        """Of every stage that is done, attempts that were broken off included."""
        return {stage.name: self.record(stage)["spent"] for stage in self.stages if self.is_done(stage.name)}

    def record(self, stage: Stage) -> dict[str, Any]:
        """What is known of a stage that was begun: recipe, identity, needs, seconds (None: not finished), spent (by all
        attempts), began (when the one did whose end was not seen); else empty."""
        path = self._note(stage, "json")
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def run(self, stage: Stage, extra: Mapping[str, Any]) -> int:
        """Begin the stage, or go on with it, in a process of its own; its exit code. `extra`: keys that say where and
        how, not what."""
        standing, identity = self.standing(stage), self.identity(stage)
        if standing == "changed" and self.output(stage).exists():
            print(f"what it made before is kept in {set_aside(self.output(stage))}", flush=True)
        known = {"recipe": stage.recipe, "identity": identity, "needs": stage.needs}
        spent = self.spent(stage) if standing == "to resume" else 0.0
        keys = mapped(stage.keys, self.place) | {"output_dir": str(self.output(stage)), **extra}
        self._note(stage, "yaml").parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self._note(stage, "yaml"), dump_yaml(keys))
        write_json_atomic(self._note(stage, "json"), known | {"seconds": None, "spent": spent, "began": time.time()})
        began = time.monotonic()
        code = child(self.command(stage))
        spent += time.monotonic() - began
        if code == 0 and not (self.output(stage) / stage.product).exists():
            raise CheckpointError(f"{stage.name} ended well and left no {self.output(stage) / stage.product}")
        write_json_atomic(
            self._note(stage, "json"), known | {"seconds": None if code else round(spent, 1), "spent": round(spent, 1)}
        )
        return code

    def spent(self, stage: Stage) -> float:
        """Seconds of all attempts; one that this process did not outlive lasted until the newest file of the stage."""
        record = self.record(stage)
        if (began := record.get("began")) is None:
            return record["spent"]
        files = (path for path in self.output(stage).rglob("*") if path.is_file())
        return record["spent"] + max([0.0, *(path.stat().st_mtime - began for path in files)])

    def command(self, stage: Stage) -> list[str]:
        launcher = [*LAUNCH, *shlex.split(stage.launch)] if stage.launch else []
        return [
            sys.executable, *launcher, "-m", f"recipes.{stage.recipe}", "--config", str(self._note(stage, "yaml"))
        ]  # fmt: skip

    def _note(self, stage: Stage, kind: str) -> Path:
        return self.folder / "stages" / f"{stage.name}.{kind}"


def child(command: Sequence[str]) -> int:
    """Run to its end, without the marks of a launcher that started this process; SIGTERM and SIGINT are passed on.

    On Linux the child is asked to stop when this process dies, however that happens.
    """
    environment = {name: value for name, value in os.environ.items() if not OF_A_LAUNCHER.fullmatch(name)}
    asked = _stop_with_parent if sys.platform == "linux" else None
    process = subprocess.Popen(command, env=environment, preexec_fn=asked)
    with _passed_on(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def kept_back(environment: Mapping[str, str]) -> list[str]:
    """What somebody told the launcher of this process, and `child` keeps from the stages."""
    unsaid = ("no", "false", "default")  # what `accelerate launch` writes for a flag that is not given
    said = [name for name in environment if name.startswith("ACCELERATE_") and environment[name].lower() not in unsaid]
    if environment.get("WORLD_SIZE", "1") != "1":
        said.append("WORLD_SIZE")
    return [f"{name}={environment[name]}" for name in sorted(said)]


def _stop_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A terminal's Ctrl-C reaches the child by itself; here it must only not end this process before the child."""
    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, _: process.send_signal(signum)),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
