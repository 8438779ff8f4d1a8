"""A device that this machine has not got: its numbers stand in CPU memory, its rules are those of a GPU.

    python -m tests.grpo.pretended_gpu MODEL FOLDER CASE...

takes MODEL through these cases of distributed_process.py, on the CPU and on that device, and writes what they gave to
FOLDER/found.json.

What is computed is real. An operation between a tensor of the device and one of the CPU fails, as on a GPU, and
whenever the host would have to wait for the device, the line of this project that made it wait is noted in `waits`.
There are no kernels of the device's own here, no streams, no autocast and no inference mode.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import grpo.step
from grpo.distributed import Dist
from grpo.sampling.decode import Decoder
from grpo.sampling.draw import Draw
from tests.grpo.distributed_process import Record, config, learner_of, problems, run_case, run_rollout
from tests.grpo.launching import ROOT, Outcome, relative_error

OWN_CODE = f"{ROOT}/grpo/"
UPDATES = ("packed", "padded")
RULES = {"temperature": 0.8, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.2, "min_completion_length": 3}
QUESTIONS = ("_local_scalar_dense", "bincount", "equal", "masked_select", "masked_scatter_backward", "nonzero")
ASKS = frozenset(f"aten::{name}" for name in QUESTIONS)
COPIES = frozenset({"aten::_to_copy", "aten::copy_"})
INDEXING = frozenset({"aten::index", "aten::index_put_", "aten::_index_put_impl_"})  # by tensors of either device
MAKING_TOKENS = ((Decoder, "step"), (Draw, "__call__"))
TRAINING = ((grpo.step, "token_logprobs"), (grpo.step, "micro_loss"), (Dist, "backward"))
waits: Counter[str] = Counter()


class Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("pretended", backend_module=Module())
PLACE = torch.device("pretended", 0)


class OnDevice(torch.Tensor):
    """numbers: the same on the CPU, where everything is computed."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OnDevice:
        stands = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        self = cls._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device=PLACE, **stands)
        self.numbers = numbers
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return performed(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Factories(TorchDispatchMode):
    """What makes tensors on the device without having one."""

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return performed(function, args, kwargs or {})


def performed(function: Any, args: Any, kwargs: Any) -> Any:
    name, leaves = function._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here, wanted = any(isinstance(x, OnDevice) for x in leaves), kwargs.get("device")
    if not here and getattr(wanted, "type", "cpu") == "cpu":
        return function(*args, **kwargs)
    others = [x for x in leaves if not isinstance(x, OnDevice) and (x.dim() or name in COPIES)]
    if others and name not in COPIES and not (name in INDEXING and isinstance(args[0], OnDevice)):
        raise RuntimeError(f"{function}: tensors of the CPU among those of the device")
    leaves_device = name == "aten::_to_copy" and getattr(wanted, "type", PLACE.type) == "cpu"
    if asks(name, args) or travels(others, leaves_device, kwargs.get("non_blocking", False)):
        waits[line_of_project()] += 1
    if name == "aten::_fused_sdp_choice":
        return 0  # torch's plain attention: the chosen kernel would be one of the device's own
    args_there, kwargs_there = tree_map(on_cpu, (args, kwargs))
    if name == "aten::histc":  # a GPU's takes whole numbers too
        args_there = (args_there[0].float(), *args_there[1:])
    result = function(*args_there, **kwargs_there)
    if leaves_device:
        return result
    result = tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(function, args, kwargs, result) if here else result


def asks(name: str, args: Any) -> bool:
    """Whether the host needs a number from the device, or how many places a mask has."""
    by_mask = name in INDEXING and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
    return by_mask or name in ASKS


def travels(others: Sequence[torch.Tensor], leaves_device: bool, non_blocking: bool) -> bool:
    """Whether numbers go from one memory to the other while the host waits."""
    if non_blocking and leaves_device:
        raise RuntimeError("numbers of the device, read before they are there")
    fetched = non_blocking and all(x.is_contiguous() for x in others)
    return leaves_device or (bool(others) and not fetched)


def on_cpu(x: Any) -> Any:
    return x.numbers if isinstance(x, OnDevice) else torch.device("cpu") if isinstance(x, torch.device) else x


def line_of_project() -> str:
    for frame, line in traceback.walk_stack(None):
        if frame.f_code.co_filename.startswith(OWN_CODE):
            return f"{frame.f_code.co_filename.removeprefix(OWN_CODE)}:{line}"
    return "elsewhere"


# Torch's own code makes tensors of lists beneath every mode.
library = torch.library.Library("aten", "IMPL")


def empty_strided(size: Any, stride: Any, dtype: torch.dtype | None = None, **_: Any) -> OnDevice:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def copy_from(source: torch.Tensor, place: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    on_cpu(place).copy_(on_cpu(source), non_blocking)
    waits[line_of_project()] += 1
    return place


library.impl("empty_strided", empty_strided, "PrivateUse1")
library.impl("_copy_from", copy_from, "PrivateUse1")


@contextmanager
def pretended() -> Iterator[Dist]:
    """Tensors can be made on the device here, which the returned Dist names."""
    with mock.patch.object(torch, "inference_mode", torch.no_grad), Factories():
        yield Dist(device=PLACE)


def counting(method: Callable[..., Any], counts: Counter[str], name: str) -> Callable[..., Any]:
    """The method, its calls and the waits inside them counted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before = waits.total()
        result = method(*args, **kwargs)
        counts.update({f"calls of {name}": 1, f"waits of {name}": waits.total() - before})
        return result

    return call


def under_rules(model: Path, out: Path, dist: Dist, record: Record) -> list[Any]:
    """Completions under every rule of sampling that needs no question; and a rollout with them in either update."""
    for update in UPDATES:
        learner = learner_of(config("three_problems", model, out, update=update, **RULES), dist)
        groups = learner.sampler.sample(problems(3), positions=range(3), round_key=0)
        run_rollout(learner, 0, record, update)
    return [asdict(rollout) for group in groups for rollout in group.rollouts]


def main(model: Path, folder: Path, cases: Sequence[str]) -> None:
    ours, theirs, counts = Record(), Record(), Counter()
    for case in cases:
        run_case(case, model, folder / "cpu", Dist(), theirs)
    expected = under_rules(model, folder / "cpu", Dist(), theirs)
    with pretended() as dist, ExitStack() as stack:
        for owner, name in (*MAKING_TOKENS, *TRAINING):
            call = counting(getattr(owner, name), counts, name)
            stack.enter_context(mock.patch.object(owner, name, call))
        for case in cases:
            run_case(case, model, folder / "device", dist, ours)
        plain, found = dict(counts), under_rules(model, folder / "device", dist, ours)
    outcomes = [Outcome(folder=folder, tensors=record.tensors, facts=[]) for record in (ours, theirs)]
    report = {
        "errors": {case: relative_error(*outcomes, f"{case}/") for case in (*cases, *UPDATES)},
        "facts": [ours.facts, theirs.facts],
        "counts": plain,
        "sampled": [found, expected],
        "waits": dict(waits.most_common()),
    }
    (folder / "found.json").write_text(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
