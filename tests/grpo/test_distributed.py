"""The number of processes changes nothing: gradients, weights, rewards and metrics of 1 and 2 real ranks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from grpo.distributed import Dist
from tests.grpo.distributed_process import CASES, LOW_PRECISION, RESUMED, ROLLOUTS
from tests.grpo.launching import ROOT, Outcome, one_process, outcome_of, relative_error
from tests.house_rules.sources import SOURCES, parsed

# The issue asks for 1e-5. Measured: at most 5e-7 (two sums in another order); a rank's rows left out give 0.5.
GRADIENT, WEIGHTS, BF16 = 1e-5, 1e-6, 3e-2
LAUNCHES = ("ddp", "fsdp2")


@pytest.fixture(scope="session")
def oracle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return one_process(tiny_model, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session", params=LAUNCHES)
def two_ranks(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of(request.param, tiny_model, tmp_path_factory.getbasetemp() / f"two_{request.param}")


@pytest.mark.normal
def test_every_gradient_of_two_processes_is_that_of_one(two_ranks: Outcome, oracle: Outcome) -> None:
    for case in CASES:
        updates = len(oracle.facts[0][case])
        assert updates >= 2 * ROLLOUTS
        for update in range(updates):
            assert relative_error(two_ranks, oracle, f"{case}/{update}/") <= GRADIENT, (case, update)
            ours, theirs = two_ranks.facts[0][case][update], oracle.facts[0][case][update]
            for name in ("loss", "kl", "entropy", "grad_norm", "tokens"):
                assert ours[name] == pytest.approx(theirs[name], rel=GRADIENT, abs=1e-6), (case, update, name)


@pytest.mark.normal
def test_the_cases_are_what_they_claim(two_ranks: Outcome, oracle: Outcome) -> None:
    """Every process had rows of its own, some none; the gradients compared are not all zero; the policy moved."""
    rows = {case: [facts[case][0]["own_rows"] for facts in two_ranks.facts] for case in CASES}
    some = {"three_problems": [8, 4], "row_by_row": [8, 4], "adapter": [8, 4], "rounds": [6, 3], "one_problem": [3, 0]}
    assert rows == some
    assert {"kept", "no_signal"} <= set(oracle.facts[0]["rounds"][0]["fates"])
    for case in CASES:
        assert max(update["grad_norm"] for update in oracle.facts[0][case]) > 0.5
    assert oracle.facts[0]["row_by_row"][-1]["kl"] > 0


@pytest.mark.normal
def test_weights_rewards_and_evaluation_agree(two_ranks: Outcome, oracle: Outcome) -> None:
    for case in CASES:
        assert relative_error(two_ranks, oracle, f"{case}/after/") <= WEIGHTS
        for facts in two_ranks.facts:
            for ours, theirs in zip(facts[case], oracle.facts[0][case], strict=True):
                assert ours["rewards"] == theirs["rewards"] and ours["fates"] == theirs["fates"]
                assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-12)
            assert facts[f"{case}/evaluation"] == oracle.facts[0][f"{case}/evaluation"]


@pytest.mark.normal
@pytest.mark.parametrize("case", RESUMED)
def test_a_restored_checkpoint_goes_on_bit_for_bit(two_ranks: Outcome, case: str) -> None:
    for rank, facts in enumerate(two_ranks.facts):
        resumed = facts[f"{case}/resumed"]
        captured = {"optimizer", "reference", "rng"} if rank == 0 else set()
        assert {name.partition("/")[0] for name in resumed} == captured | {"weights"}
        assert [name for name, equal in resumed.items() if not equal] == []


@pytest.mark.normal
def test_what_is_whole_is_held_by_the_main_process_alone(two_ranks: Outcome) -> None:
    """The state of a checkpoint, and the rows of an evaluation."""
    main, other = two_ranks.facts
    for case in RESUMED:
        assert main[f"{case}/kept here"] > 0 and other[f"{case}/kept here"] == 0
    for case, settings in CASES.items():
        assert main[f"{case}/evaluated groups here"] == settings["problems_per_rollout"]
        assert other[f"{case}/evaluated groups here"] == 0


@pytest.mark.normal
def test_what_is_restored_keeps_no_more_than_this_process_has(two_ranks: Outcome) -> None:
    """A shard cut from a whole tensor would keep the whole alive: nobody holds bytes beyond its own numbers."""
    for facts in two_ranks.facts:
        for case in RESUMED:
            assert facts[f"{case}/restored"] and set(facts[f"{case}/restored"]) == {0}


@pytest.mark.normal
@pytest.mark.parametrize("case", LOW_PRECISION)
def test_the_gradient_in_bf16_is_that_of_one_process(two_ranks: Outcome, oracle: Outcome, case: str) -> None:
    """bf16 keeps 8 bits; sharded weights also carry the residual stream in it, which autocast leaves in fp32."""
    assert relative_error(two_ranks, oracle, f"{case}/") <= BF16


@pytest.mark.normal
def test_processes_do_not_fight_for_cores(two_ranks: Outcome) -> None:
    """`accelerate launch` gives each of several processes one thread."""
    assert [(facts["place"]["omp"], facts["place"]["threads"]) for facts in two_ranks.facts] == [("1", 1)] * 2


def test_a_parameter_that_no_token_reached_is_stepped_alike_on_any_number_of_processes() -> None:
    """AdamW skips None and decays for zero: one process knows no other's reach, so it must say zero too."""
    reached, unreached = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    reached.sum().backward()
    Dist().sum_gradients([reached, unreached])
    assert unreached.grad is not None and unreached.grad.count_nonzero() == 0
    assert torch.equal(reached.grad, torch.ones(2))


def test_each_item_is_some_processes_and_every_order_comes_back() -> None:
    for world in (1, 2, 3, 8):
        for count in (0, 1, 2, 7, 16):
            parts = [Dist(rank=rank, world=world).mine(count) for rank in range(world)]
            assert sorted(item for part in parts for item in part) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_collectives_live_in_one_place() -> None:
    """Everything that waits for another process is in distributed.py, or in sharding.py where DTensors become whole."""
    allowed = {"grpo/distributed.py", "grpo/sharding.py"}
    found = set()
    for path in SOURCES:
        if any(_reaches_for_processes(node) for node in ast.walk(parsed(path.read_text(encoding="utf-8")))):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == allowed


def _reaches_for_processes(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.startswith("torch.distributed") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return any(name.startswith("torch.distributed") for name in names)
    if isinstance(node, ast.Attribute):
        collective = node.attr in ("full_tensor", "all_reduce", "all_gather", "gather_object", "broadcast_object_list")
        return collective or (node.attr == "distributed" and ast.unparse(node) == "torch.distributed")
    return False
