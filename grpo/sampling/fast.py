"""The built-in sampling engine: the policy's live parameters, one cache a prompt, no work for rows that have ended.

Rows wait in a queue and take the slots of those that end, within a budget of tokens. The draws are those of the
reference engine (`grpo.sampling.reference`): given the same logits, a completion depends on (seed, round, problem's
position, sibling) alone; logits may differ in their last bits with what else is in flight.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.problem import Problem
from grpo.config import SamplingConfig
from grpo.device import sent
from grpo.distributed import Dist
from grpo.monitor.counting import counted
from grpo.plan import room
from grpo.policy.load import Policy
from grpo.sampling.decode import Decoder, Prompt
from grpo.sampling.draw import Draw, Drawn, cuts
from grpo.sampling.protocol import Collector, Finished, checked_length, ignore, stream
from grpo.sampling_mask import MaskWriter, lists
from grpo.types import Rollout, RolloutGroup, StopReason

CHECK_EVERY = 8  # tokens drawn between two looks at them on a GPU, where a look waits for the device; on CPU each
REFILL_SHARE = 8  # new rows enter once this part (an eighth) of the slots is free
PROMPT_TOKENS = 16_384  # of one forward over new prompts, padding included
Key = tuple[int, ...]


@dataclass
class Row:
    """One completion on its way; `prompt` is the number of its prompt."""

    number: int
    prompt: int
    key: Key
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None
    mask: MaskWriter = field(default_factory=MaskWriter)


class FastSampler:
    """A `Sampler` for the families of `grpo.policy.attention`; see `unsupported`.

    `between_steps` is called before every forward, and may raise to give the round up. `keep_masks`: rollouts hold
    which tokens their draws could choose from, where some were cut off.
    """

    def __init__(
        self,
        policy: Policy,
        cfg: SamplingConfig,
        *,
        seed: int,
        dist: Dist,
        between_steps: Callable[[], None] = lambda: None,
        keep_masks: bool = False,
    ) -> None:
        self.policy, self.cfg, self.seed, self.dist = policy, cfg, seed, dist
        self.between_steps, self.keep_masks = between_steps, keep_masks and cuts(cfg)

    def sample(
        self,
        problems: Sequence[Problem],
        *,
        positions: Sequence[int],
        round_key: int,
        finished: Finished = ignore,
    ) -> list[RolloutGroup]:
        size = self.cfg.num_generations
        prompts = [self.policy.encode_prompt(problem.prompt) for problem in problems]
        keys = [(self.seed, round_key, position, sibling) for position in positions for sibling in range(size)]
        groups = Collector(problems, size, finished)
        with counted(total=len(keys), desc="sampling", unit="rows", disable=not self.dist.is_main) as counter:
            for ended in self.rollouts(prompts, keys):
                groups.add(ended)
                counter.update(len(ended))
        return groups.in_order()

    def rollouts(self, prompts: Sequence[Sequence[int]], keys: Sequence[Key]) -> Iterator[dict[int, Rollout]]:
        """Rollouts by row, as they end; row r continues prompt r // num_generations with the stream keys[r].

        Raises ConfigError for a prompt that is empty, fills the model's context, or has no room in the budget.
        """
        if not keys:
            return
        size = self.cfg.num_generations
        queue = deque(Row(number=number, prompt=number // size, key=key) for number, key in enumerate(keys))
        with self.policy.eval_mode():
            # Inference mode costs least, but under autocast it would cast the weights again for each token.
            quiet = torch.no_grad if torch.is_autocast_enabled(self.policy.device.type) else torch.inference_mode
            with torch.no_grad():
                flight = Flight(self.policy, self.cfg, prompts, len(keys), keep_masks=self.keep_masks)
            while queue or flight.rows:
                self.between_steps()
                with quiet():
                    flight.admit(queue)
                    ended = flight.advance()
                if ended:
                    yield {row.number: self._rollout(row, prompts[row.prompt]) for row in ended}

    def _rollout(self, row: Row, prompt: Sequence[int]) -> Rollout:
        return Rollout(
            prompt_ids=tuple(prompt),
            completion_ids=tuple(row.tokens),
            sampler_logprobs=tuple(row.logprobs),
            text=self.policy.decode(row.tokens),
            stop_reason=row.stop_reason,
            sampling_mask=row.mask.mask(len(row.tokens)) if self.keep_masks else None,
        )


class Flight:
    """The rows being sampled right now, in the order of the decoder's slots. logits: (n, V), of their next token."""

    def __init__(
        self,
        policy: Policy,
        cfg: SamplingConfig,
        prompts: Sequence[Sequence[int]],
        num_rows: int,
        *,
        keep_masks: bool = False,
    ) -> None:
        self.policy, self.cfg, self.prompts, self.keep_masks = policy, cfg, prompts, keep_masks
        self.check_every = 1 if policy.device.type == "cpu" else CHECK_EVERY
        longest = checked_length(prompts, policy)
        self.slots, self.most_prompts = room(cfg, longest, num_rows)
        self.decoder = Decoder(policy.network, max_new=cfg.max_completion_length, dtype=policy.compute_dtype)
        self.draw = Draw(cfg, policy.eos_ids)
        self.rows: list[Row] = []
        self.resident: dict[int, Prompt] = {}
        self.upcoming: set[int] = set()  # the prompt that waiting rows continue, where its siblings may be in flight
        vocabulary = policy.network.config.vocab_size
        self.logits = torch.zeros(0, vocabulary, device=policy.device)
        self.uniforms = torch.zeros(self.slots, cfg.max_completion_length, dtype=torch.float64, device=policy.device)
        penalised = cfg.repetition_penalty != 1
        self.seen = torch.zeros(self.slots, vocabulary, dtype=torch.bool, device=policy.device) if penalised else None

    def admit(self, queue: deque[Row]) -> None:
        """Rows from the queue into free slots, once enough are free to be worth a forward over new prompts."""
        free = self.slots - len(self.rows)
        if not queue or (self.rows and free < max(1, self.slots // REFILL_SHARE)):
            return
        waiting = {row.prompt for row in self.rows} | (self.upcoming & self.resident.keys())
        self._forget_all_but(waiting)
        entering: list[Row] = []
        while queue and len(entering) < free:
            if queue[0].prompt not in waiting and len(waiting) >= self.most_prompts:
                break
            entering.append(queue.popleft())
            waiting.add(entering[-1].prompt)
        self.upcoming = {row.prompt for row in itertools.islice(queue, 1)}
        if entering:
            self._read({row.prompt for row in entering} - self.resident.keys())
            self._enter(entering)

    def advance(self) -> list[Row]:
        """Draw the next tokens, end the rows that are over, and compute what follows for the others."""
        drawn = [self._drawn()]
        for _ in range(self.check_every - 1):
            self.logits = self.decoder.step(drawn[-1].tokens_B)
            drawn.append(self._drawn())
        if self.keep_masks:
            self._keep_masks(drawn)
        tokens_nk = torch.stack([one.tokens_B for one in drawn], dim=1)
        looked_at = torch.stack([one.logprobs_B for one in drawn], dim=1).tolist()
        for row, tokens, logprobs in zip(self.rows, tokens_nk.tolist(), looked_at, strict=True):
            self._extend(row, tokens, logprobs)
        ended = [row for row in self.rows if row.stop_reason]
        last_n = tokens_nk[:, -1]
        if ended:
            going = torch.tensor([row.stop_reason is None for row in self.rows], device=last_n.device)
            last_n = last_n[self._keep(going)]
        self.logits = self.decoder.step(last_n) if self.rows else self.logits[:0]
        return ended

    def _read(self, numbers: set[int]) -> None:
        """The caches of new prompts, several to a forward."""
        order = sorted(numbers, key=lambda number: len(self.prompts[number]))
        while order:
            most = max(1, PROMPT_TOKENS // len(self.prompts[order[-1]]))
            chunk, order = order[-most:], order[:-most]
            read = self.decoder.read([self.prompts[number] for number in chunk])
            self.resident.update(zip(chunk, read, strict=True))

    def _enter(self, entering: Sequence[Row]) -> None:
        start = len(self.rows)
        self.rows += entering
        self._place()
        self.logits = torch.cat([self.logits, torch.stack([self.resident[row.prompt].next_logits for row in entering])])
        streams = [torch.from_numpy(stream(row.key, self.cfg.max_completion_length)) for row in entering]
        self.uniforms[start : len(self.rows)] = sent(torch.stack(streams), self.policy.device)
        if self.seen is not None:
            for slot, row in enumerate(entering, start):
                self.seen[slot] = False
                self.seen[slot, torch.tensor(self.prompts[row.prompt])] = True

    def _place(self) -> None:
        place = {number: index for index, number in enumerate(self.resident)}
        numbers = [place[row.prompt] for row in self.rows]
        prompt_of = torch.tensor(numbers, dtype=torch.long, device=self.policy.device)
        self.decoder.place(list(self.resident.values()), prompt_of)

    def _drawn(self) -> Drawn:
        n, lengths = len(self.rows), self.decoder.lengths.clamp(max=self.cfg.max_completion_length - 1)
        drawn = self.draw(
            self.logits,
            self.uniforms[:n].gather(1, lengths[:, None])[:, 0],
            seen_BV=None if self.seen is None else self.seen[:n],
            short_B=lengths < self.cfg.min_completion_length if self._some_are_short() else None,
        )
        if self.seen is not None:
            self.seen[:n].scatter_(1, drawn.tokens_B[:, None], True)
        return drawn

    def _some_are_short(self) -> bool:
        """Whether a row may be below the minimum length, as far as tokens have been looked at."""
        shortest = self.cfg.min_completion_length
        return shortest > 0 and any(len(row.tokens) < shortest for row in self.rows)

    def _keep_masks(self, drawn: Sequence[Drawn]) -> None:
        for one in drawn:
            for row, (ids, cut) in zip(self.rows, lists(one.kept_BV, len(self.rows)), strict=True):
                row.mask.add(ids, cut)

    def _extend(self, row: Row, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """The new tokens up to the one that ends the row."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self.policy.eos_ids:
                row.stop_reason = "eos"
            elif self.cfg.stop_strings and self._says_stop(row.tokens):
                row.stop_reason = "stop"
            elif len(row.tokens) == self.cfg.max_completion_length:
                row.stop_reason = "length"
            if row.stop_reason:
                return

    def _says_stop(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string ends within the last token: each token holds at least one byte of it."""
        window = 1 + max(len(text.encode()) for text in self.cfg.stop_strings)
        tail = self.policy.tokenizer.decode(tokens[-window:])
        return any(text in tail for text in self.cfg.stop_strings)

    def _keep(self, going_n: Tensor) -> Tensor:
        order = self.decoder.keep(going_n)
        self.rows = [self.rows[old] for old in order.tolist()]
        self.uniforms[: len(order)] = self.uniforms[order]
        if self.seen is not None:
            self.seen[: len(order)] = self.seen[order]
        needed = {row.prompt for row in self.rows} | self.upcoming
        if 2 * len(needed) < len(self.resident):  # else half of the work on prompts is for nobody
            self._forget_all_but(needed)
        return order

    def _forget_all_but(self, numbers: set[int]) -> None:
        """Prompts, which are resident in no other place."""
        kept = {number: prompt for number, prompt in self.resident.items() if number in numbers}
        if len(kept) < len(self.resident):
            self.resident = kept
            self._place()
