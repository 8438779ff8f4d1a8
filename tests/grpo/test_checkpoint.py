"""Checkpoint storage: what is saved comes back bit for bit, and what is damaged is never used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from grpo.checkpoint import (
    clean_leftovers,
    find_checkpoints,
    load_newest,
    open_checkpoint,
    prune,
    save_checkpoint,
)
from grpo.errors import CheckpointError, ConfigError
from rewards.reward import Verdict

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
FILES = [
    "MANIFEST.json",
    "config.json",
    "model.safetensors",
    "trainer_state/optimizer.safetensors",
    "trainer_state/state.json",
]


def export(folder: Path) -> None:
    save_file({"weight": torch.arange(64.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')


def save(run_dir: Path, step: int, **changes: Any) -> Path:
    parts = {"export": export, "tensors": {"optimizer": {"step": torch.tensor(step)}}, "state": {"step": step}}
    return save_checkpoint(run_dir, step, **(parts | changes))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse_skips(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was skipped: {reason}")


def steps(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in find_checkpoints(run_dir)]


# --- what is saved comes back ---------------------------------------------------------------------------------------


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    """Random bits (NaN payloads, infinities and denormals among them) of any supported type, shape and stride."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size)) + b"\0"), dtype=torch.uint8)[:size]
    raw = raw % 2 if dtype == torch.bool else raw.clone()
    tensor = raw.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.normal
@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), any_tensor(), max_size=4),
    state=st.dictionaries(st.text(), ANY_JSON, max_size=4),
)
@example(tensors={}, state={"odd floats": [math.nan, math.inf, -math.inf, -0.0, 5e-324], "large": 2**80, "yes": True})
def test_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    path = save(tmp_path_factory.mktemp("run"), 1, tensors={"any": tensors}, state=state)
    checkpoint = open_checkpoint(path)
    loaded = checkpoint.tensors("any")
    assert {name: (t.dtype, t.shape, bits(t)) for name, t in loaded.items()} == {
        name: (t.dtype, t.shape, bits(t)) for name, t in tensors.items()
    }
    assert repr(checkpoint.state) == repr(state)  # repr tells -0.0 from 0.0, True from 1, and nan from everything


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"base": base, "same": base, "row": base[1], "column": base[:, 2], "wide": base[:1].expand(5, 4)}
    loaded = open_checkpoint(save(tmp_path, 1, tensors={"views": views})).tensors("views")
    assert all(torch.equal(loaded[name], view) for name, view in views.items())
    loaded["base"].zero_()
    assert torch.equal(loaded["row"], views["row"])


def test_parameters_and_rng_state_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tensors = {"weight": torch.nn.Parameter(torch.randn(4)), "rng": torch.get_rng_state()}
    expected = torch.randn(4)
    loaded = open_checkpoint(save(tmp_path, 1, tensors={"rank-0": tensors})).tensors("rank-0")
    torch.set_rng_state(loaded["rng"])
    assert torch.equal(torch.randn(4), expected)
    assert torch.equal(loaded["weight"], tensors["weight"].detach())


def test_loaded_tensors_survive_the_checkpoint(tmp_path: Path) -> None:
    values = torch.randn(100_000)
    checkpoint = open_checkpoint(save(tmp_path, 1, tensors={"optimizer": {"moment": values}}))
    loaded = checkpoint.tensors("optimizer")
    with (checkpoint.path / "trainer_state" / "optimizer.safetensors").open("r+b") as file:
        file.write(bytes(400_000))
    assert torch.equal(loaded["moment"], values)


@pytest.mark.parametrize(
    "value", [(1, 2), {1: "a"}, Verdict.CORRECT, {"deep": [{"t": (1,)}]}, torch.ones(1), {3, 4}, "\ud800\udc00"]
)
def test_state_that_json_would_change_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"state\['odd'\]"):
        save(tmp_path, 1, state={"fine": 1, "odd": value})
    assert not (tmp_path / "checkpoints").exists()


def test_layout(tmp_path: Path) -> None:
    path = save(tmp_path, 40)
    assert path == tmp_path / "checkpoints" / "step-00000040"
    assert sorted(folder_contents(path)) == FILES
    listed = json.loads((path / "MANIFEST.json").read_text())
    assert listed["schema"] == 1 and listed["step"] == 40
    sha256sum = subprocess.run(["sha256sum", *FILES[1:]], cwd=path, capture_output=True, text=True, check=True).stdout
    hashes = {line.split()[1]: line.split()[0] for line in sha256sum.splitlines()}
    assert {name: entry["sha256"] for name, entry in listed["files"].items()} == hashes
    assert {name: entry["bytes"] for name, entry in listed["files"].items()} == {
        name: (path / name).stat().st_size for name in FILES[1:]
    }


def test_every_file_is_readable_by_whoever_may_read_the_manifest(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


@pytest.mark.normal
def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "moe_intermediate_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 4, "kv_lora_rank": 4}
    head_sizes = {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    config = DeepseekV3Config(num_hidden_layers=2, first_k_dense_replace=1, **sizes, **heads, **head_sizes, **experts)
    model = AutoModelForCausalLM.from_config(config)
    path = save(tmp_path, 1, export=model.save_pretrained)
    loaded = AutoModelForCausalLM.from_pretrained(open_checkpoint(path).path).state_dict()
    assert {name: bits(value) for name, value in loaded.items()} == {
        name: bits(value) for name, value in model.state_dict().items()
    }


def test_unknown_tensors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trainer_state/rng\.safetensors"):
        open_checkpoint(save(tmp_path, 1)).tensors("rng")


def test_every_file_and_directory_is_forced_to_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append("RENAME")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path, 1)
    before, after = calls[: calls.index("RENAME")], calls[calls.index("RENAME") + 1 :]
    assert {Path(name).name for name in FILES} <= set(before) and "trainer_state" in before
    assert any(name.startswith(".tmp-step-1-") for name in before)
    assert after == ["checkpoints"]


# --- finding the newest ---------------------------------------------------------------------------------------------


def test_newest_first_by_number(tmp_path: Path) -> None:
    for step in (9, 100_000_000, 10, 2):
        save(tmp_path, step)
    for stray in (".tmp-step-11-1-ab", ".trash-ab", "step-12", "step-0000013x", "other"):
        (tmp_path / "checkpoints" / stray).mkdir()
    (tmp_path / "checkpoints" / "step-00000014").write_text("a file")
    assert steps(tmp_path) == [100_000_000, 10, 9, 2]
    newest = load_newest(tmp_path, on_skip=refuse_skips)
    assert newest and newest.step == 100_000_000 and newest.state == {"step": 100_000_000}


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == []
    assert load_newest(tmp_path, on_skip=refuse_skips) is None


# --- damage ---------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut_one_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def point_elsewhere(path: Path) -> None:
    copy = path.parent.parent / f"copy-of-{path.name}"
    shutil.move(path, copy)
    path.symlink_to(copy)


DAMAGES: list[Callable[[Path], None]] = [truncate, empty, cut_one_byte, flip_a_bit, append, os.remove, point_elsewhere]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_falls_back_to_the_previous(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / name)
    skipped: list[tuple[Path, str]] = []
    loaded = load_newest(tmp_path, on_skip=lambda path, reason: skipped.append((path, reason)))
    assert loaded and loaded.step == 1
    assert len(skipped) == 1 and skipped[0][0] == newest
    assert name in skipped[0][1]


def test_every_byte_of_the_manifest_matters(tmp_path: Path) -> None:
    """One flipped bit in each byte in turn; only white space may change without notice."""
    path = save(tmp_path, 1)
    original = (path / "MANIFEST.json").read_bytes()
    choose = random.Random(0)
    unnoticed = []
    for position, byte in enumerate(original):
        flipped = byte ^ (1 << choose.randrange(8))
        (path / "MANIFEST.json").write_bytes(original[:position] + bytes([flipped]) + original[position + 1 :])
        try:
            open_checkpoint(path)
            unnoticed.append((position, chr(byte), chr(flipped)))
        except CheckpointError:
            pass
    assert all(old.isspace() and new.isspace() for _, old, new in unnoticed), unnoticed


def test_all_damaged_is_none_and_every_one_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        os.remove(save(tmp_path, step) / "config.json")
    skipped: list[str] = []
    assert load_newest(tmp_path, on_skip=lambda path, reason: skipped.append(path.name)) is None
    assert skipped == ["step-00000003", "step-00000002", "step-00000001"]


def test_extra_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not listed"):
        open_checkpoint(path)


def test_renamed_folder_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.rename(path.with_name("step-00000007"))
    with pytest.raises(CheckpointError, match="holds the checkpoint of step 1"):
        open_checkpoint(path.with_name("step-00000007"))


def test_copy_under_another_name_opens(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 3), tmp_path / "released")
    assert open_checkpoint(tmp_path / "released").step == 3


@pytest.mark.parametrize(("text", "reason"), [
    ('{"schema": 2, "step": 1, "files": {}}', "schema version 2, this version of the toolkit reads 1"),
    ("[]", "no schema version"),
    ('{"schema": 1, "files": {}}', "no step"),
    ('{"schema": 1, "step": 1, "files": []}', "no list of files"),
    ("[" * 100_000, "cannot be read"),
    ("\x00", "cannot be read"),
])  # fmt: skip
def test_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = save(tmp_path, 1)
    (path / "MANIFEST.json").write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(path)


def test_named_pipe_does_not_hang(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    os.remove(path / "MANIFEST.json")
    os.mkfifo(path / "MANIFEST.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json is missing"):
        open_checkpoint(tmp_path / "nowhere")


# --- pickles --------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def reseal(path: Path, name: str) -> None:
    """What an attacker does who may write the manifest too."""
    listed = json.loads((path / "MANIFEST.json").read_text())
    data = (path / name).read_bytes()
    listed["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "MANIFEST.json").write_text(json.dumps(listed))


def test_the_payload_would_fire(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "state.PKL", "trainer_state/.metadata"])
@pytest.mark.parametrize("resealed", [False, True])
def test_pickled_file_is_refused_and_not_loaded(tmp_path: Path, name: str, resealed: bool) -> None:
    path = save(tmp_path, 1)
    (path / name).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    if resealed:
        reseal(path, name)
    with pytest.raises(CheckpointError, match=f"{name} may hold a pickle"):
        open_checkpoint(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", FILES[3:])
def test_pickle_in_the_place_of_another_file_is_refused_and_not_loaded(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    (path / name).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    reseal(path, name)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(path).tensors("optimizer")
    assert not (tmp_path / "canary").exists()


def test_export_may_not_write_a_pickle(tmp_path: Path) -> None:
    def careless(folder: Path) -> None:
        export(folder)
        torch.save({}, folder / "training_args.bin")

    with pytest.raises(CheckpointError, match=r"training_args\.bin may hold a pickle"):
        save(tmp_path, 1, export=careless)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# --- saves that fail ------------------------------------------------------------------------------------------------


def assert_only(run_dir: Path, path: Path, contents: dict[str, bytes]) -> None:
    assert list((run_dir / "checkpoints").iterdir()) == [path]
    assert folder_contents(path) == contents
    newest = load_newest(run_dir, on_skip=refuse_skips)
    assert newest and newest.path == path


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", range(9))
def test_disk_error_at_any_point_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: int
) -> None:
    """The n-th fsync or rename of the save fails; n = 8 is the fsync after the rename, when the new one is complete."""
    first = save(tmp_path, 1)
    before = folder_contents(first)
    calls = iter(range(100))
    skip_first = iter([True])  # mkdir's fsync of the run folder is outside the part that writes

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if not next(skip_first, False) and next(calls) == call:
                raise OSError(code, os.strerror(code))
            return real(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "rename", failing(os.rename))
        with pytest.raises(CheckpointError, match=f"step 2 could not be written.*{os.strerror(code)}") as caught:
            save(tmp_path, 2)
    assert "bytes are free" in str(caught.value)
    assert folder_contents(first) == before
    assert steps(tmp_path) == ([2, 1] if call == 8 else [1])
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert save(tmp_path, 3)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest file this process may write; the kernel refuses more with EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("part", ["tensors", "state", "export"])
def test_write_refused_by_the_kernel(tmp_path: Path, file_size_limit: Callable[[int], None], part: str) -> None:
    first = save(tmp_path, 1)
    before = folder_contents(first)
    large = {
        "tensors": {"optimizer": {"moment": torch.zeros(500_000)}},
        "state": {"text": "x" * 2_000_000},
        "export": lambda folder: save_file({"weight": torch.zeros(500_000)}, folder / "model.safetensors"),
    }
    file_size_limit(1_000_000)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*File too large"):
        save(tmp_path, 2, **{part: large[part]})
    assert_only(tmp_path, first, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk: Path) -> None:
    """The export is larger than the estimate, so the disk itself runs full in the middle of a file."""

    def large_export(folder: Path) -> None:
        save_file({"weight": torch.zeros(1_200_000)}, folder / "model.safetensors")

    first = save(small_disk, 1)
    before = folder_contents(first)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*No space left"):
        save(small_disk, 2, export=large_export)
    assert_only(small_disk, first, before)
    assert save(small_disk, 3)


def test_no_space_is_said_before_anything_is_written(small_disk: Path) -> None:
    first = save(small_disk, 1)
    before = folder_contents(first)
    with pytest.raises(CheckpointError, match=r"needs about 4,800,000 bytes and .* has [\d,]+ free"):
        save(small_disk, 2, tensors={"optimizer": {"moment": torch.zeros(1_000_000)}}, export=pytest.fail)
    assert_only(small_disk, first, before)


def test_space_estimate_counts_the_exported_model_from_the_second_save_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large_export(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 1_000_000)

    total, used, _ = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(total, used, 1_100_000))
    save(tmp_path, 1, export=large_export)
    with pytest.raises(CheckpointError, match=r"1,2\d\d,\d\d\d bytes and .* has 1,100,000 free"):
        save(tmp_path, 2, export=large_export)


@pytest.mark.parametrize("raised", [RuntimeError("CUDA error"), KeyboardInterrupt()])
def test_error_of_the_export_passes_through(tmp_path: Path, raised: BaseException) -> None:
    first = save(tmp_path, 1)
    before = folder_contents(first)

    def broken(folder: Path) -> None:
        export(folder)
        raise raised

    with pytest.raises(type(raised)):
        save(tmp_path, 2, export=broken)
    assert_only(tmp_path, first, before)


def test_valid_step_is_not_overwritten(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    before = folder_contents(first)
    with pytest.raises(CheckpointError, match="already saved and valid"):
        save(tmp_path, 1, state={"other": True})
    assert_only(tmp_path, first, before)


def test_damaged_step_is_replaced(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path, 1) / "model.safetensors")
    path = save(tmp_path, 1, state={"again": True})
    assert open_checkpoint(path).state == {"again": True}
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


# --- keeping and deleting -------------------------------------------------------------------------------------------


def test_prune_keeps_the_last_and_the_named(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    prune(tmp_path, keep_last=2, keep=[3])
    assert steps(tmp_path) == [6, 5, 3]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("keep_last", [1, 0, -1])
def test_prune_refuses_to_keep_fewer_than_two(tmp_path: Path, keep_last: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 2, got {keep_last}"):
        prune(tmp_path, keep_last=keep_last)


def test_prune_counts_only_valid_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [save(tmp_path, step) for step in range(1, 6)]
    flip_a_bit(paths[4] / "model.safetensors")
    flip_a_bit(paths[2] / "model.safetensors")
    prune(tmp_path, keep_last=2)
    assert steps(tmp_path) == [5, 4, 3, 2]
    assert "step-00000005/model.safetensors has changed" in caplog.text


def test_deletion_that_fails_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        prune(tmp_path, keep_last=2)
    assert steps(tmp_path) == [3, 2, 1]
    assert "step-00000001 could not be deleted" in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        prune(tmp_path, keep_last=2)
    assert steps(tmp_path) == [3, 2]
    assert "could not be deleted" in caplog.text and caplog.records[0].levelno == logging.WARNING
    clean_leftovers(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


OPERATIONS = st.lists(
    st.one_of(
        st.just(("save",)),
        st.tuples(st.just("damage"), st.integers(0, 9), st.sampled_from(DAMAGES), st.sampled_from(FILES)),
        st.tuples(st.just("prune"), st.integers(2, 3), st.lists(st.integers(1, 9), max_size=2)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
@pytest.mark.normal
def test_any_order_of_operations_keeps_the_newest_valid_ones(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[Any, ...]]
) -> None:
    """The twin: a list of steps known to be valid and a set of damaged ones, kept by hand."""
    run_dir = tmp_path_factory.mktemp("run")
    valid: list[int] = []
    damaged: set[int] = set()
    for number, (name, *arguments) in enumerate(operations, start=1):
        if name == "save":
            save(run_dir, number)
            valid.append(number)
        elif name == "damage" and valid:
            index, damage, file = arguments
            step = valid.pop(index % len(valid))
            damage(run_dir / "checkpoints" / f"step-{step:08d}" / file)
            damaged.add(step)
        elif name == "prune":
            keep_last, keep = arguments
            prune(run_dir, keep_last=keep_last, keep=keep)
            if len(valid) >= keep_last:
                oldest = sorted(valid)[-keep_last]
                valid = [step for step in valid if step >= oldest or step in keep]
                damaged = {step for step in damaged if step > oldest or step in keep}
        assert sorted(steps(run_dir)) == sorted([*valid, *damaged])
        newest = load_newest(run_dir, on_skip=lambda path, reason: None)
        assert (newest.step if newest else None) == max(valid, default=None)


# --- leftovers ------------------------------------------------------------------------------------------------------


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = subprocess.Popen(["sleep", "60"])
    try:
        names = {pid: f".tmp-step-2-{pid}-{pid:032x}" for pid in (dead.pid, os.getpid(), living.pid)}
        for name in (*names.values(), ".trash-" + "0" * 32):
            (path.parent / name / "trainer_state").mkdir(parents=True)
            (path.parent / name / "trainer_state" / "state.json").write_text("{}")
        clean_leftovers(tmp_path)
        assert sorted(entry.name for entry in path.parent.iterdir()) == [names[living.pid], path.name]
    finally:
        living.kill()
        living.wait()


def test_leftovers_of_a_run_without_checkpoints(tmp_path: Path) -> None:
    clean_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
