"""Lineage: fingerprints that say whether the content is the same, and a file that says what went in."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from grpo.errors import DataError
from recipes.lineage import fingerprint_of, frame_trained_in, write_lineage
from tests.grpo import parts


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_a_file_has_its_own_sha256(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    assert fingerprint_of(tmp_path / "rows.jsonl") == hashlib.sha256(b"{}\n").hexdigest()


def test_a_folder_is_its_names_and_contents_wherever_it_lies(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", weights="1", sub__config="2")
    twin = folder(tmp_path / "b", sub__config="2", weights="1")
    assert fingerprint_of(first) == fingerprint_of(str(twin))
    before = fingerprint_of(first)
    folder(first, **{"lineage.json": "{}", ".lock": "", ".cache__x": "1"})
    assert fingerprint_of(first) == before
    for changed in (
        folder(tmp_path / "c", weights="1 ", sub__config="2"),
        folder(tmp_path / "d", weight="1", sub__config="2"),
        folder(tmp_path / "e", weights="1", sub__config="2", more=""),
        folder(tmp_path / "f", weights="1", config="2"),
    ):
        assert fingerprint_of(changed) != before, changed


def test_a_file_is_read_again_only_when_its_size_or_time_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "weights"

    def at(seconds: int, text: str) -> str:
        file.write_text(text)
        os.utime(file, (seconds, seconds))
        return fingerprint_of(file)

    first = at(1, "one")
    assert at(1, "two") == first and at(1, "three") != first
    assert at(2, "two") == hashlib.sha256(b"two").hexdigest() and at(2, "one") != first and at(3, "one") == first


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder '.*none'"):
        fingerprint_of(tmp_path / "none")


def test_what_went_into_a_stage(tmp_path: Path) -> None:
    base, judge = folder(tmp_path / "base", weights="1"), folder(tmp_path / "judge", weights="2")
    rewards = ["format", str(judge), {"name": "preference_model", "model_name_or_path": "hub/other", "as": "other"}]
    path = write_lineage(
        tmp_path / "out",
        stage="rejection_sampling",
        inputs={"model": base, "problems": "gym:chain_sum"},
        config=parts.config(base, seed=5, reward_funcs=rewards),
        seconds=1.23456,
        counts={"rows": 7},
    )
    read = json.loads(path.read_text())
    assert path == tmp_path / "out" / "lineage.json"
    assert (read["stage"], read["counts"], read["seconds"]) == ("rejection_sampling", {"rows": 7}, 1.235)
    assert read["inputs"]["model"] == {"name": str(base), "sha256": fingerprint_of(base)}
    assert read["inputs"]["model 2"] == {"name": str(judge), "sha256": fingerprint_of(judge)}
    assert read["inputs"]["model 3"] == {"name": "hub/other", "sha256": None} and len(read["inputs"]) == 4
    assert read["inputs"]["problems"] == {"name": "gym:chain_sum", "sha256": None}
    assert read["config"]["seed"] == 5 and "torch" in read["versions"] and "git_commit" in read


@pytest.mark.parametrize(
    ("config", "frame"),
    [
        ({"num_generations": 4, "dataset_mixture": []}, "r1_zero"),
        ({"num_generations": 4, "dataset_mixture": [{"task": "a"}, {"task": "b"}]}, "r1_zero"),
        ({"num_generations": 4, "dataset_mixture": [{"prompt_template": "chat"}, {"task": "b"}]}, None),
        ({"num_generations": 4, "dataset_mixture": [{"prompt_template": "chat"}]}, "chat"),
        ({"dataset_mixture": []}, None),
    ],
    ids=["one", "inherited", "two frames", "its own", "not by RL"],
)
def test_the_frame_that_a_model_was_trained_in(config: dict, frame: str | None, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps({"config": {"prompt_template": "r1_zero", **config}}))
    assert frame_trained_in(str(tmp_path)) == frame
