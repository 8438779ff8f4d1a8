"""A real vLLM on this machine's CPU: three steps of training, a kill in the middle, an engine inside the trainer, and
what a V3 answers.

R1_VLLM_PYTHON names the python of the environment that vLLM is installed in (grpo/sampling/vllm/README.md).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.distributed import Dist
from grpo.errors import EndpointError
from grpo.loop import run
from grpo.monitor.metrics import read_metrics
from grpo.sampling.choose import build_sampler
from tests.grpo import parts, tiny_runs
from tests.grpo.launching import launch_file
from tests.grpo.vllm_server import RECORDED, save_dense

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip
START = 600  # seconds that a start may take; one takes 1 to 3 minutes on a busy core


class RealServer:
    """A `vllm serve` process on loopback; `url` stays the same over restarts."""

    def __init__(self, python: Path, model: Path, folder: Path, *flags: str, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "vllm.log"
        self.command = [
            str(python.with_name("vllm")), "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32",
            "--logprobs-mode", "processed_logprobs", *flags,
        ]  # fmt: skip
        self.environment = {**ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1", **variables}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.log.parent, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Engine and workers too: they are one process group."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def python() -> Path:
    given = os.environ.get("R1_VLLM_PYTHON")
    if not given:
        pytest.skip("R1_VLLM_PYTHON is not set: see grpo/sampling/vllm/README.md")
    return Path(given)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=2)


@pytest.fixture(scope="module")
def server(python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    server = RealServer(python, model, tmp_path_factory.mktemp("vllm"))
    server.start()
    yield server
    server.kill()


def settings(model: Path, run_dir: Path, server: RealServer, **changes: Any) -> Any:
    return tiny_runs.config(
        model,
        run_dir,
        sampler="vllm",
        vllm_server_base_url=[server.url],
        vllm_server_timeout=START,
        vllm_request_timeout=120,
        max_completion_length=128,
        max_steps=3,
        save_steps=0,
        eval_steps=0,
        eval_on_start=False,
        **changes,
    )


def kill_in_the_second_rollout(server: RealServer, run_dir: Path, *, again: bool) -> threading.Thread:
    def work() -> None:
        deadline = time.monotonic() + 2 * START
        while not read_metrics(run_dir) and time.monotonic() < deadline:
            time.sleep(0.01)
        server.kill()
        if again:
            server.start()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_three_steps_with_a_server_that_is_killed_and_comes_back(
    model: Path, server: RealServer, tmp_path: Path
) -> None:
    killer = kill_in_the_second_rollout(server, tmp_path, again=True)
    assert run(settings(model, tmp_path, server)) == 0
    killer.join()
    metrics = read_metrics(tmp_path)
    assert len(metrics) == 3
    for line in metrics:
        assert line["sampler_gap/max"] < 1e-4  # nats: sampled from the weights of its own time
        assert line["completions/missing"] == 0 and line["grad_norm"] > 0


def test_the_answers_have_the_form_that_the_fast_tests_rely_on(server: RealServer, model: Path) -> None:
    cfg = parts.config(model, sampler="vllm", vllm_server_base_url=[server.url], vllm_server_timeout=START)
    sampler = build_sampler(parts.load(cfg), cfg.sampling, seed=1, dist=Dist(), between_steps=lambda: None)
    sampler.sample(parts.problems("What is 1 + 2?"), positions=[0], round_key=0)
    [real] = sampler.fleet.servers
    assert form(real.post("v1/completions", prompt=[40, 41], max_tokens=3, n=2, logprobs=0, return_token_ids=True)) == (
        form(RECORDED["completions"]["body"])
    )
    assert form(real.post("reset_prefix_cache")) == form(RECORDED["reset"]["body"])
    assert form(RECORDED["server_info"]["body"]["vllm_config"]).keys() <= form(real.check()).keys()


def test_a_server_that_stays_away_ends_the_run_in_time(model: Path, server: RealServer, tmp_path: Path) -> None:
    killer = kill_in_the_second_rollout(server, tmp_path, again=False)
    cfg = settings(model, tmp_path, server, seed=8)
    with pytest.raises(EndpointError, match="no vLLM server answered within 15 s"):
        run(with_timeout(cfg, server, 15))
    killer.join()
    assert len(read_metrics(tmp_path)) == 1
    server.start()


@pytest.mark.parametrize("processes", [1, 2])
def test_three_steps_with_an_engine_inside_each_trainer(
    python: Path, model: Path, tmp_path: Path, processes: int
) -> None:
    """`vllm_mode: colocate` by the recipe's own command, in the environment that vLLM is in; it needs no trl."""
    problems = "".join(json.dumps({"prompt": f"What is 1 + {n}?", "answer": str(n + 1)}) + "\n" for n in range(8))
    (tmp_path / "problems.jsonl").write_text(problems)
    flags = {
        "model_name_or_path": model, "dataset_name": tmp_path / "problems.jsonl", "prompt_template": "plain",
        "reward_funcs": "tests.benchmarks.paid_by_length:length_reward", "sampler": "vllm", "vllm_mode": "colocate",
        "vllm_max_model_length": 1024, "problems_per_rollout": 2, "num_generations": 4, "max_completion_length": 128,
        "dtype": "float32", "learning_rate": 1e-3, "max_steps": 3, "eval_steps": 0, "eval_on_start": False,
        "eval_on_end": False, "save_steps": 0, "output_dir": tmp_path / "run",
    }  # fmt: skip
    launcher = ["-m", "accelerate.commands.launch", *launch_file("ddp")] if processes > 1 else []
    words = (word for key, value in flags.items() for word in (f"--{key}", str(value)))
    command = [str(python), *launcher, "-m", "recipes.r1_zero", *words]
    # Without its compiler vLLM starts in half a minute in place of five.
    ran = subprocess.run(
        command,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "TORCH_COMPILE_DISABLE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=START,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 3
    for line in metrics:
        assert line["sampler_gap/max"] < 1e-4 and line["grad_norm"] > 0


def test_a_v3_checkpoint_loads_and_answers_and_is_refused_for_training(python: Path, tmp_path: Path) -> None:
    """vLLM's CPU build computes attention and routed experts of DeepSeek-V3 otherwise than transformers; see README."""
    model = parts.save_sharp_model(tmp_path / "v3", qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
    server = RealServer(python, model, tmp_path, VLLM_MLA_DISABLE="1")
    server.start()
    keys = {"sampler": "vllm", "vllm_server_base_url": [server.url], "vllm_server_timeout": START}
    policy, problems = parts.load(parts.config(model)), parts.problems("What is 1 + 2?")

    def build(**more: Any) -> Any:
        sampling = parts.config(model, **keys, **more).sampling
        return build_sampler(policy, sampling, seed=1, dist=Dist(), between_steps=lambda: None)

    try:
        with pytest.raises(EndpointError, match="computes with other weights than the trainer's"):
            build().sample(problems, positions=[0], round_key=0)
        [group] = build(vllm_probe_tolerance=1e3).sample(problems, positions=[0], round_key=0)
    finally:
        server.kill()
    assert not group.missing and all(0 < len(rollout.completion_ids) <= 8 for rollout in group.rollouts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["nccl", "colocate"])
def test_weights_that_never_touch_a_disk_and_an_engine_beside_the_trainer(
    python: Path, model: Path, tmp_path: Path, way: str
) -> None:
    """The trainer's own environment has vLLM (and TRL) here, and the server a GPU of its own."""
    pytest.importorskip("vllm")
    server = RealServer(
        python, model, tmp_path, "--weight-transfer-config", '{"backend": "nccl"}', CUDA_VISIBLE_DEVICES="1"
    )
    keys = {"vllm_mode": "colocate"} if way == "colocate" else {"vllm_weight_transport": "nccl"}
    cfg = settings(model, tmp_path, server, dtype="float32", **keys)
    if way == "nccl":
        server.start()
    try:
        assert run(cfg) == 0
    finally:
        if way == "nccl":
            server.kill()
    assert [line["sampler_gap/max"] < 1e-2 for line in read_metrics(tmp_path)] == [True] * 3


def with_timeout(cfg: Any, server: RealServer, seconds: float) -> Any:
    """The server is there at first; only then is the wait short."""
    from dataclasses import replace

    from grpo.sampling.vllm.server import Server, wait_for_any

    wait_for_any([Server(server.url, 60.0)], START, lambda: None)
    vllm = replace(cfg.sampling.vllm, vllm_server_timeout=seconds)
    return replace(cfg, sampling=replace(cfg.sampling, vllm=vllm))


def form(answer: Any) -> Any:
    """Keys all the way down, and what kind of thing stands there; of a list its first."""
    if isinstance(answer, dict):
        return {key: form(value) for key, value in answer.items() if not isinstance(value, str)}
    return [form(one) for one in answer[:1]] if isinstance(answer, list) else type(json.loads(json.dumps(answer)))
