"""One `vllm serve`, asked over HTTP: token ids in, token ids and their log-probabilities out; nothing is tokenised."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.errors import ConfigError, EndpointError
from rewards.remote import MAX_RESPONSE, RemoteError, get_json, post_json

logger = logging.getLogger(__name__)

HOW_TO_START = (
    "start it with `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs`, vLLM 0.32 or newer"
)
BYTES_PER_TOKEN = 256  # of an answer: more than a token with its log-probability takes in JSON
QUICK = 10.0  # seconds for what a server answers at once
PAUSE = 0.5  # seconds between two looks at a server that does not answer
UNKNOWN = "unknown"  # the version of weights that are being replaced
# Of every request: one log-probability per token; and texts that end a completion may be made of special tokens.
AS_TOKENS: dict[str, Any] = {"logprobs": 0, "skip_special_tokens": False}


@dataclass(frozen=True)
class Sample:
    """One completion. logprobs: natural log, one per token, after temperature. stopped: by a token or a text of ours,
    not by the limit of tokens."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True)
class Server:
    """`url`: its address, http://host:port. seconds: the deadline of one request. What fails raises RemoteError."""

    url: str
    seconds: float

    def check(self) -> dict[str, Any]:
        """What the server says of its engine. Raises ConfigError where it runs in another way than is needed here."""
        try:
            info = get_json(f"{self.url}/server_info?config_format=json", seconds=self.seconds)["vllm_config"]
            mode = info["model_config"]["logprobs_mode"]
            self.version()
        except (RemoteError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the vLLM server at {self.url} does not tell of itself ({error}): {HOW_TO_START}"
            ) from error
        if mode != "processed_logprobs":
            raise ConfigError(
                f"the vLLM server at {self.url} reports {mode}, and not log-probabilities at the sampling temperature: "
                f"{HOW_TO_START}"
            )
        return info

    def version(self) -> str:
        """The name that `load` gave the server's weights; vLLM's own word after a start."""
        return str(get_json(f"{self.url}/weight_info", seconds=min(QUICK, self.seconds))["weight_version"])

    def answers(self) -> bool:
        """A refusal is an answer too: waiting would not change it."""
        try:
            self.version()
        except RemoteError as error:
            return not error.again
        return True

    def load(self, folder: str, version: str) -> None:
        """Read the weights in `folder`, a path of the server's machine, and call them `version`."""
        self.relabelled(
            version, lambda: self.post("collective_rpc", method="reload_weights", kwargs={"weights_path": folder})
        )

    def relabelled(self, version: str, replace_weights: Callable[[], object]) -> None:
        """Replace the weights between two names, so that a half-done replacement has none; then forget every key and
        value that the old weights left in the cache of prefixes, which a reload keeps."""
        self.post("update_weight_version", new_version=UNKNOWN)
        replace_weights()
        if not self.post("reset_prefix_cache?reset_running_requests=true")["success"]:
            raise RemoteError(f"{self.url}: the cache of the old weights could not be emptied")
        self.post("update_weight_version", new_version=version)

    def samples(self, prompt_ids: Sequence[int], *, n: int, max_tokens: int, **settings: Any) -> list[Sample]:
        """n completions of a prompt; `settings` as vLLM's /v1/completions takes them."""
        body = {"prompt": list(prompt_ids), "n": n, "max_tokens": max_tokens, **settings, **AS_TOKENS}
        room = BYTES_PER_TOKEN * n * max_tokens
        choices = self.post("v1/completions", room, **body, return_token_ids=True)["choices"]
        try:
            ordered = sorted(choices, key=lambda choice: choice["index"])
            samples = [_sample(choice) for choice in ordered]
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"{self.url}: an answer that cannot be read ({type(error).__name__}: {error})") from error
        if [choice["index"] for choice in ordered] != list(range(n)):
            raise RemoteError(f"{self.url}: {len(ordered)} completions, {n} were asked for")
        return samples

    def post(self, path: str, room: int = 0, **payload: Any) -> Any:
        return post_json(f"{self.url}/{path}", payload, seconds=self.seconds, tries=1, limit=MAX_RESPONSE + room)


def _sample(choice: dict[str, Any]) -> Sample:
    """Raises ValueError for a completion that was broken off, or whose numbers are none."""
    token_ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"it ended by {choice['finish_reason']!r}")
    if not token_ids or len(token_ids) != len(logprobs) or not all(map(math.isfinite, logprobs)):
        raise ValueError(f"{len(token_ids)} tokens with log-probabilities {logprobs[:3]}")
    return Sample(tuple(token_ids), tuple(logprobs), choice["finish_reason"] == "stop")


def wait_for_any(servers: Sequence[Server], seconds: float, poll: Callable[[], None]) -> list[Server]:
    """The servers that answer, as soon as one does. Raises EndpointError when none does within `seconds`."""
    deadline, told = time.monotonic() + seconds, False
    addresses = ", ".join(server.url for server in servers)
    while True:
        if up := [server for server in servers if server.answers()]:
            return up
        if not told:
            logger.warning("waiting up to %g s for a vLLM server to answer: %s", seconds, addresses)
            told = True
        if time.monotonic() >= deadline:
            raise EndpointError(
                f"no vLLM server answered within {seconds:g} s (vllm_server_timeout): {addresses}; {HOW_TO_START}"
            )
        poll()
        time.sleep(PAUSE)
