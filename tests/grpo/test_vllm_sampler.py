"""The vLLM sampler against a server that computes, answers as vLLM does, and fails when it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.advantages import group_advantages
from grpo.batching import collate
from grpo.distributed import Dist
from grpo.errors import ConfigError, EndpointError
from grpo.policy.load import Policy
from grpo.sampling.choose import build_sampler
from grpo.sampling.vllm.sampler import VllmSampler
from grpo.sampling.vllm.transfer import DiskTransport, NcclTransport, version_of
from grpo.scoring import Scoring
from grpo.stats import RowFacts
from grpo.types import RolloutGroup, TrainBatch
from rewards.failures import Handling
from rewards.rubric import Rubric
from tests.grpo import parts
from tests.grpo.vllm_server import FakeVllm, save_dense

HERE = Handling(isolation="none")
PROMPTS = ("What is 1 + 2?", "x", "A question that is longer than the others")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture
def server(model: Path) -> Iterator[FakeVllm]:
    with FakeVllm(model) as server:
        yield server


def config(model: Path, *servers: FakeVllm, **keys: Any) -> Any:
    urls = [server.url for server in servers]
    small = {"temperature": 0.8, "vllm_server_timeout": 5, "vllm_request_timeout": 60, "vllm_server_base_url": urls}
    return parts.config(model, sampler="vllm", **small | keys)


def build(policy: Policy, cfg: Any, between_steps: Any = lambda: None) -> VllmSampler:
    sampler = build_sampler(policy, cfg.sampling, seed=7, dist=Dist(), between_steps=between_steps)
    assert isinstance(sampler, VllmSampler)
    return sampler


def sample(sampler: VllmSampler, round_key: int = 0, **keys: Any) -> list[RolloutGroup]:
    return sampler.sample(parts.problems(*PROMPTS), positions=[0, 1, 2], round_key=round_key, **keys)


def move(policy: Policy, seed: int = 0, by: float = 0.05) -> None:
    """Other weights, as an update makes them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def gap(policy: Policy, groups: list[RolloutGroup], temperature: float = 0.8) -> float:
    """Largest difference from the trainer's own log-probabilities."""
    worst = 0.0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        prompt = len(rollout.prompt_ids)
        scores = (policy.network(ids).logits[0, prompt - 1 : -1] / temperature).log_softmax(-1)
        own = scores.gather(1, ids[0, prompt:, None])[:, 0]
        worst = max(worst, (own - torch.tensor(rollout.sampler_logprobs)).abs().max().item())
    return worst


def texts(groups: list[RolloutGroup]) -> list[list[tuple[int, ...]]]:
    return [[rollout.completion_ids for rollout in group.rollouts] for group in groups]


class TestSampling:
    def test_every_round_samples_from_the_weights_of_its_own_time(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server))
        for round_key in range(3):
            groups = sample(sampler, round_key)
            assert gap(policy, groups) < 1e-5
            move(policy, round_key)
        assert gap(policy, groups) > 0.05  # the last round's are not from the weights of now
        assert len(server.loads) == 3

    def test_weights_that_did_not_change_do_not_travel_again(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server))
        sample(sampler, 0), sample(sampler, 1)
        sample(build(policy, config(model, server)), 2)  # an evaluation's sampler
        assert len(server.loads) == 1

    def test_a_completion_depends_on_seed_round_position_and_sibling_alone(self, model: Path, server: FakeVllm) -> None:
        sampler = build(parts.load(config(model)), config(model, server))
        once, again, other = sample(sampler, 4), sample(sampler, 4), sample(sampler, 5)
        assert texts(once) == texts(again) != texts(other)
        alone = sampler.sample(parts.problems(PROMPTS[2]), positions=[2], round_key=4)
        assert texts(alone) == texts(once[2:])
        assert len({ids for group in texts(once) for ids in group}) > 9  # of 12; siblings differ

    def test_token_ids_travel_and_nothing_else_decides(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, min_completion_length=2, stop_strings=["z"], repetition_penalty=1.1)
        policy = parts.load(cfg)
        groups = sample(build(policy, cfg))
        asked = {tuple(request["prompt"]): request for request in server.completions}
        assert asked.keys() == {group.rollouts[0].prompt_ids for group in groups}
        expected = {
            "n": 4, "max_tokens": 8, "min_tokens": 2, "temperature": 0.8, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": list(policy.eos_ids), "stop": ["z"],
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        for request in asked.values():
            assert {key: value for key, value in request.items() if key not in ("prompt", "seed")} == expected
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            assert rollout.sampling_mask.sizes_M.tolist()[:3] == [len(policy.eos_ids)] * 2 + [0]

    def test_a_row_ends_by_its_last_token_or_by_the_limit(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, max_completion_length=24)
        policy = parts.load(cfg)
        with torch.no_grad():
            policy.network.lm_head.weight[list(policy.eos_ids)] *= 2  # likely here and there
        rollouts = [rollout for group in sample(build(policy, cfg)) for rollout in group.rollouts]
        for rollout in rollouts:
            ended = rollout.completion_ids[-1] in policy.eos_ids
            assert rollout.stop_reason == ("eos" if ended else "length")
            assert ended or len(rollout.completion_ids) == 24
            assert rollout.text == policy.decode(list(rollout.completion_ids))
        assert {rollout.stop_reason for rollout in rollouts} == {"eos", "length"}

    def test_groups_are_handed_on_as_they_come(self, model: Path, server: FakeVllm) -> None:
        handed: list[int] = []
        groups = sample(
            build(parts.load(config(model)), config(model, server)), finished=lambda new: handed.extend(new)
        )
        assert sorted(handed) == [0, 1, 2]
        assert [group.problem.question for group in groups] == list(PROMPTS)

    def test_requests_are_shared_out_over_servers(self, model: Path, server: FakeVllm) -> None:
        with FakeVllm(model) as second:
            cfg = config(model, server, second, vllm_concurrency=1)
            server.hang = second.hang = 0.2
            policy = parts.load(cfg)
            groups = sample(build(policy, cfg))
            assert gap(policy, groups) < 1e-5
            assert server.completions and second.completions
            assert len(server.completions) + len(second.completions) == 3

    def test_a_process_without_problems_asks_for_nothing(self, model: Path, server: FakeVllm) -> None:
        sampler = build(parts.load(config(model)), config(model, server))
        sample(sampler)
        before = len(server.calls)
        assert sampler.sample([], positions=[], round_key=0) == []
        assert len(server.calls) == before


class TestStaleServers:
    def test_one_that_keeps_old_weights_is_refused(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server))
        sample(sampler)
        move(policy)
        server.deaf = 2
        with pytest.raises(EndpointError, match=r"computes with other weights .* differ by .* 0.001 is allowed"):
            sample(sampler, 1)
        assert len(server.loads) == 3 and len(server.completions) == 3  # none sampled from the old weights

    def test_one_that_took_them_at_the_second_try_is_used(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server))
        sample(sampler)
        move(policy)
        server.deaf = 1
        assert gap(policy, sample(sampler, 1)) < 1e-5

    def test_one_that_was_restarted_gets_the_weights_again(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        move(policy)
        sampler = build(policy, config(model, server))
        sample(sampler)
        server.restart()
        assert gap(policy, sample(sampler, 1)) < 1e-5
        assert len(server.loads) == 2

    def test_a_change_of_one_weight_shows_in_the_probe(self, model: Path, server: FakeVllm) -> None:
        """The hundredth part of what an update at learning rate 1e-3 moves is noise; an update is not."""
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server))
        sample(sampler)
        probe = sampler.fleet.probe
        for by, seen in ((1e-5, False), (1e-2, True)):
            move(policy, by=by)
            sampler.fleet.version = ""
            server.deaf = 99
            if seen:
                with pytest.raises(EndpointError, match="other weights"):
                    sample(sampler, 1)
            else:
                sample(sampler, 1)
        assert sampler.fleet.probe != probe

    def test_the_tolerance_can_be_set(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        sampler = build(policy, config(model, server, vllm_probe_tolerance=50.0))
        sample(sampler)
        move(policy)
        server.deaf = 2
        assert gap(policy, sample(sampler, 1)) > 0.05


class TestLosses:
    def test_a_lost_request_is_sent_once_more_with_the_same_result(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, vllm_concurrency=1)  # else three that are lost may be one and its second try
        sampler = build(parts.load(cfg), cfg)
        undisturbed = texts(sample(sampler))
        server.lose = 1
        assert texts(sample(sampler)) == undisturbed

    def test_one_that_was_lost_twice_is_missing_and_the_others_are_not(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, vllm_concurrency=1)
        sampler = build(parts.load(cfg), cfg)
        undisturbed = texts(sample(sampler))
        server.lose = 2  # the first request, and its second try, which goes before the others
        groups = sample(sampler)
        assert [group.missing for group in groups] == [True, False, False]
        assert texts(groups)[1:] == undisturbed[1:]

    def test_a_round_of_which_nothing_came_back_is_an_error(self, model: Path, server: FakeVllm) -> None:
        sampler = build(parts.load(config(model)), config(model, server))
        sample(sampler)
        server.lose = 1000
        with pytest.raises(EndpointError, match=r"lost all 3 requests of this round|no vLLM server answered any"):
            sample(sampler)

    def test_a_server_that_goes_leaves_its_requests_to_the_others(self, model: Path, server: FakeVllm) -> None:
        with FakeVllm(model) as second:
            cfg = config(model, server, second, vllm_concurrency=1)
            policy = parts.load(cfg)
            sampler = build(policy, cfg)
            undisturbed = texts(sample(sampler))
            server.hang = 30.0
            threading.Timer(0.7, server.stop).start()
            assert texts(sample(sampler)) == undisturbed

    def test_one_that_comes_back_in_time_goes_on_with_the_policys_weights(self, model: Path, server: FakeVllm) -> None:
        policy = parts.load(config(model))
        move(policy)
        sampler = build(policy, config(model, server))
        undisturbed = texts(sample(sampler))
        server.hang = 30.0

        def kill_and_start() -> None:
            server.stop()
            server.hang = 0.0
            server.restart()
            time.sleep(1.0)
            server.start()

        threading.Timer(0.7, kill_and_start).start()
        assert texts(sample(sampler)) == undisturbed
        assert len(server.loads) == 2

    def test_one_that_stays_away_is_an_error_at_the_deadline(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, vllm_server_timeout=1)
        sampler = build(parts.load(cfg), cfg)
        sample(sampler)
        server.stop()
        began = time.monotonic()
        with pytest.raises(EndpointError, match=r"no vLLM server answered within 1 s .*vllm serve"):
            sample(sampler, 1)
        assert time.monotonic() - began < 60

    def test_one_that_hangs_is_left_at_the_deadline(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, vllm_request_timeout=1)
        sampler = build(parts.load(cfg), cfg)
        sample(sampler)
        server.hang = 600
        began = time.monotonic()
        with pytest.raises(EndpointError):
            sample(sampler)
        assert time.monotonic() - began < 60

    def test_a_request_that_is_refused_is_not_sent_again(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, vllm_concurrency=1)
        sampler = build(parts.load(cfg), cfg)
        server.refuse = True
        with pytest.raises(EndpointError, match="Token id 40000 is out of vocabulary"):
            sample(sampler)

    def test_who_is_told_to_stop_waits_for_no_server(self, model: Path, server: FakeVllm) -> None:
        class Stop(Exception):
            pass

        asked = threading.Event()

        def poll() -> None:
            if asked.is_set():
                raise Stop

        sampler = build(parts.load(config(model)), config(model, server, vllm_request_timeout=600), poll)
        sample(sampler)
        server.hang = 600
        threading.Timer(0.5, asked.set).start()
        with pytest.raises(Stop):
            sample(sampler)


class TestStarts:
    def test_a_server_that_gives_other_log_probabilities_is_refused(self, model: Path, server: FakeVllm) -> None:
        server.info = json.loads(json.dumps(server.info))
        server.info["vllm_config"]["model_config"]["logprobs_mode"] = "raw_logprobs"
        with pytest.raises(ConfigError, match=r"reports raw_logprobs.*--logprobs-mode processed_logprobs"):
            build(parts.load(config(model)), config(model, server))

    def test_a_server_that_is_no_vllm_in_development_mode_is_refused(self, model: Path, server: FakeVllm) -> None:
        server.info = {"detail": "Not Found"}
        with pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE=1"):
            build(parts.load(config(model)), config(model, server))

    def test_completions_that_a_server_would_cut_short_are_refused(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, max_completion_length=4090)
        server.refuse = True  # as it does a prompt that is too long for it: then the probe would fail first
        with pytest.raises(ConfigError, match="start its server with --max-model-len 4"):
            sample(build(parts.load(cfg), cfg))

    def test_tied_embeddings_on_a_cpu_are_refused(self, tmp_path: Path) -> None:
        tied = save_dense(tmp_path / "tied", tie_word_embeddings=True)
        with FakeVllm(tied) as server, pytest.raises(ConfigError, match="tie_word_embeddings: false"):
            build(parts.load(config(tied)), config(tied, server))

    def test_nccl_needs_a_gpu(self) -> None:
        with pytest.raises(ConfigError, match="nccl needs a GPU"):
            NcclTransport(51216, torch.device("cpu"))


class TestTransfer:
    def test_every_weight_changes_the_version_and_nothing_else_does(self, model: Path) -> None:
        policy = parts.load(config(model))
        first = version_of(policy, Dist())
        assert first == version_of(parts.load(config(model)), Dist()) and len(first) == 16
        seen = {first}
        for parameter in policy.model.parameters():
            with torch.no_grad():
                parameter.view(-1)[0] += 1e-3
            seen.add(version_of(policy, Dist()))
        assert len(seen) == 1 + len(list(policy.model.parameters()))

    def test_the_folder_appears_whole_and_takes_the_place_of_the_one_before(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("stays")
        policy, transport = parts.load(config(model)), DiskTransport(tmp_path)
        for version in ("a", "b"):
            assert not transport.has(version)
            transport.stage(policy, None, version)
            assert transport.has(version)
        assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "weights-b"}

    def test_a_disk_that_refuses_is_an_error(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EndpointError, match="could not be written"):
            DiskTransport(tmp_path / "file").stage(parts.load(config(model)), None, "a")

    def test_an_adapter_is_sampled_from_as_it_is_trained(self, model: Path, server: FakeVllm) -> None:
        cfg = config(model, server, use_peft=True, lora_r=4)
        policy = parts.load(cfg)
        move(policy)
        assert gap(policy, sample(build(policy, cfg))) < 1e-4

    def test_a_path_that_the_server_does_not_see_is_named(self, model: Path, server: FakeVllm, tmp_path: Path) -> None:
        sampler = build(parts.load(config(model)), config(model, server, vllm_weights_dir=str(tmp_path)))
        sampler.fleet.transport = Elsewhere(tmp_path)
        with pytest.raises(EndpointError, match=r"it must see /nowhere .*vllm_weights_dir"):
            sample(sampler)


class Elsewhere(DiskTransport):
    """Another machine's idea of where the folder is."""

    def send(self, server: Any, version: str) -> None:
        DiskTransport(Path("/nowhere")).send(server, version)


def test_a_missing_group_teaches_nothing_and_is_counted(model: Path, server: FakeVllm) -> None:
    """Against the same round without the problem that was lost."""
    cfg = config(model, server, vllm_concurrency=1)
    policy, rubric = parts.load(cfg), Rubric.from_config(["tests.grpo.tiny_runs:hashed"], handling=HERE)
    sampler = build(policy, cfg)
    sample(sampler)
    server.lose = 2
    with Scoring(rubric, trainer_state=parts.trainer_state(), step=0) as scoring:
        groups = sample(sampler, finished=scoring.add)
        scored, _ = scoring.result(groups)

    rewards = torch.tensor([group.rewards_G for group in scored], dtype=torch.float64)
    assert rewards[0].isnan().all() and not rewards[1:].isnan().any()
    ours, theirs = (batch_of(scored[start:], rewards[start:], start, cfg, policy) for start in (0, 1))
    assert not ours.completion_mask_BT[:4].any() and ours.completion_mask_BT[4:].any()
    assert ours.rows(torch.arange(4, 12)).trim().completion_mask_BT.equal(theirs.trim().completion_mask_BT)
    assert ours.advantages_B[4:].equal(theirs.advantages_B)
    metrics, without = RowFacts.of(scored).metrics(), RowFacts.of(scored[1:]).metrics()
    assert metrics.pop("completions/missing") == 4 and without.pop("completions/missing") == 0
    assert metrics == without


def batch_of(scored: Any, rewards_PG: torch.Tensor, start: int, cfg: Any, policy: Policy) -> TrainBatch:
    advantages = group_advantages(rewards_PG, cfg.advantage)
    return collate(
        scored,
        advantages.advantages_PG,
        advantages.counts_PG,
        positions=range(start, 3),
        pad_id=policy.pad_id,
    )
