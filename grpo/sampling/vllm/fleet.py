"""Several servers as one: which of them hold the policy's weights, and requests that outlive the loss of one.

What can fail has a deadline, and a second try: a server that does not answer is waited for, one with other weights gets
them again, a request that was lost is sent once more. What fails twice is an error, or for a request, missing.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from grpo.config import VllmConfig
from grpo.errors import EndpointError
from grpo.sampling.vllm.probe import Probe, greedy
from grpo.sampling.vllm.server import Sample, Server, wait_for_any
from grpo.sampling.vllm.transfer import Transport
from rewards.remote import RemoteError

logger = logging.getLogger(__name__)

TRIES = 2  # of a request, and of bringing weights to servers
FRUITLESS = 3  # times in a row that everything sent was lost, before servers that seem well are given up
LOOK_UP = 0.2  # seconds between two questions whether the run was asked to stop
Samples = list[Sample]


class Fleet:
    """version: of the weights that the servers are to hold. probe: what these answer, but for `tolerance` nats.
    context: tokens of prompt and completion that they take."""

    def __init__(self, cfg: VllmConfig, transport: Transport, poll: Callable[[], None]) -> None:
        urls = [url.rstrip("/").removesuffix("/v1") for url in cfg.vllm_server_base_url]
        self.servers = [Server(url, cfg.vllm_request_timeout) for url in urls]
        self.cfg, self.transport, self.poll = cfg, transport, poll
        self.version = ""
        self.probe: Probe | None = None
        self.tolerance, self.context = 0.0, 0

    def up(self) -> list[Server]:
        """Those that answer. Raises EndpointError when none does until the deadline."""
        return wait_for_any(self.servers, self.cfg.vllm_server_timeout, self.poll)

    def load(self) -> None:
        """Each server is brought to `version` when it is asked for something."""

    def continuation(self, prompt_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Bring every server that answers to `version`; gives one's greedy tokens. Raises EndpointError where none
        takes the weights."""
        said: dict[Server, Sample] = {}

        def load_and_ask(server: Server) -> None:
            self._load_if_stale(server)
            said[server] = greedy(server, prompt_ids, max_tokens)

        return said[self._all_that(load_and_ask)[0]].token_ids

    def fresh(self) -> list[Server]:
        """The servers that answer, hold the weights and compute with them as the trainer does; what is not so is loaded
        again first. Raises EndpointError where there is none, or where one computes with other weights even then."""
        return self._all_that(self._prove)

    def answers(self, requests: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, Samples | None]]:
        """(number, samples) of each request as it is answered, in no fixed order; None for one that was lost twice.

        Raises EndpointError when a request is refused, when no server is left, and when nothing comes back any more.
        """
        servers, waiting, lost, fruitless = self.fresh(), list(requests), Counter(), 0
        while waiting:
            sending, again = Sending(servers, requests, waiting, self.cfg.vllm_concurrency), []
            fruitless += 1
            for number, outcome in sending.outcomes(self.poll):
                if isinstance(outcome, list):
                    fruitless = 0
                    yield number, outcome
                    continue
                if not isinstance(outcome, RemoteError):
                    raise outcome
                if not outcome.again:
                    raise EndpointError(f"a vLLM server refuses a request: {outcome}") from outcome
                lost[number] += 1
                if lost[number] < TRIES:
                    again.append(number)
                else:
                    yield number, None
            waiting = [*again, *sending.waiting]
            if waiting and fruitless == FRUITLESS:
                raise EndpointError(f"{FRUITLESS} times in a row no vLLM server answered any request")
            servers = self.fresh() if waiting else []

    def _all_that(self, prepare: Callable[[Server], None], tries: int = TRIES) -> list[Server]:
        """The servers that answer and can be prepared. One that fails at it is passed over while there are others."""
        up = self.up()
        with ThreadPoolExecutor(len(up)) as pool:
            failures = dict(zip(up, pool.map(lambda server: _failure(prepare, server), up), strict=True))
        failed = {server: failure for server, failure in failures.items() if failure is not None}
        for server, failure in failed.items():
            logger.warning("the vLLM server at %s is passed over: %s", server.url, failure)
        if len(failed) < len(up):
            return [server for server in up if server not in failed]
        if tries > 1 and any(isinstance(failure, RemoteError) and failure.again for failure in failed.values()):
            return self._all_that(prepare, tries - 1)
        raise EndpointError(f"no vLLM server holds the policy's weights: {failed[up[0]]}") from failed[up[0]]

    def _load_if_stale(self, server: Server) -> None:
        if server.version() != self.version:
            self.transport.send(server, self.version)

    def _prove(self, server: Server) -> None:
        self._load_if_stale(server)
        if self._gap(server) <= self.tolerance:
            return
        self.transport.send(server, self.version)
        if (gap := self._gap(server)) > self.tolerance:
            raise EndpointError(
                f"the vLLM server at {server.url} computes with other weights than the trainer's, even after they were "
                f"sent again: log-probabilities of greedy tokens differ by {gap:.2g} nats, where {self.tolerance:g} is "
                "allowed (vllm_probe_tolerance)"
            )

    def _gap(self, server: Server) -> float:
        assert self.probe is not None
        return self.probe.gap(greedy(server, self.probe.prompt_ids, len(self.probe.token_ids)))


def _failure(prepare: Callable[[Server], None], server: Server) -> Exception | None:
    try:
        prepare(server)
    except (RemoteError, EndpointError) as error:
        return error
    return None


class Sending:
    """Requests shared out over servers: each takes the next when it has room. One that loses a request gets no further
    ones; what nobody takes is left in `waiting`. The threads are daemons: who is told to stop waits for no server."""

    def __init__(
        self,
        servers: Sequence[Server],
        requests: Mapping[int, Mapping[str, Any]],
        numbers: Sequence[int],
        concurrency: int,
    ) -> None:
        self.requests, self.waiting = requests, deque(numbers)
        self.done: SimpleQueue[tuple[int, Samples | Exception] | None] = SimpleQueue()
        self.suspects: set[Server] = set()
        self.threads = [
            threading.Thread(target=self._serve, args=(server,), name="vllm", daemon=True)
            for server in servers
            for _ in range(min(concurrency, len(numbers)))
        ]

    def outcomes(self, poll: Callable[[], None]) -> Iterator[tuple[int, Samples | Exception]]:
        for thread in self.threads:
            thread.start()
        running = len(self.threads)
        try:
            while running:
                poll()
                with suppress(Empty):
                    outcome = self.done.get(timeout=LOOK_UP)
                    if outcome is None:
                        running -= 1
                    else:
                        yield outcome
        finally:
            if running:
                self.waiting.clear()

    def _serve(self, server: Server) -> None:
        while server not in self.suspects:
            try:
                number = self.waiting.popleft()
            except IndexError:
                break
            try:
                self.done.put((number, server.samples(**self.requests[number])))
            except Exception as error:  # the main thread raises what is no loss
                self.suspects.add(server)
                self.done.put((number, error))
        self.done.put(None)
