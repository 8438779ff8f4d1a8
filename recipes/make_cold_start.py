"""A cold start: right and readable long reasoning, sampled from an R1-Zero checkpoint or taken from a set of traces,
and rewritten by a helping model where one is given (DeepSeek-R1, section 2.3.1 and appendix B.3.2).

    accelerate launch -m recipes.make_cold_start --config recipes/configs/tiny_v3/pipeline/make_cold_start.yaml
    python -m recipes.make_cold_start --config ... --from_traces --dataset_name traces.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.config import DataConfig, ModelConfig, RewardConfig, SamplingConfig
from grpo.config.parse import parse_flat
from grpo.distributed import start
from grpo.monitor.counting import count_loading
from grpo.policy.load import load_tokenizer
from grpo.scoring import build_rubric
from recipes.command import exit_code
from recipes.rows.choose import KeepConfig
from recipes.rows.make_rows import check_keep, make_rows
from recipes.rows.rewrite import RewriteConfig, Rewriter
from recipes.rows.rows_folder import RowsConfig
from recipes.rows.sources import Problems, Source, as_run, benchmark_index
from recipes.rows.traces import Traces


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Sample an R1-Zero checkpoint, or read traces; keep what is right and readable; have it rewritten."""

    model: ModelConfig
    data: DataConfig
    rewards: RewardConfig
    sampling: SamplingConfig
    keep: KeepConfig
    rewrite: RewriteConfig
    rows: RowsConfig
    # dataset_name holds finished conversations, to be judged and chosen from instead of sampled: `messages`, `prompt`
    # and `completion`, ShareGPT's `conversations`, or open-r1's `problem` and `generations`; the model is then its
    # tokenizer alone
    from_traces: bool = False


def parse(argv: Sequence[str]) -> ColdStartConfig:
    return parse_flat(argv, ColdStartConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: make_cold_start(parse(given)))


def make_cold_start(cfg: ColdStartConfig) -> int:
    """Everything that can be refused is refused before the first sample; see `make_rows` for what follows."""
    run = as_run(cfg)
    dist, _ = start(log_with=[], project_dir=None)
    count_loading(is_main=dist.is_main)
    tokenizer, rubric = load_tokenizer(cfg.model), build_rubric(cfg.rewards)
    check_keep(cfg.keep, rubric)
    source: Source
    index = benchmark_index(cfg.keep.decontaminate, tokenizer, dist)
    if cfg.from_traces:
        source = Traces.of(cfg.data, tokenizer, rubric, index)
    else:
        source = Problems.of(run, index, tokenizer, rubric, dist)
    polish = Rewriter.of(cfg.rewrite, cfg.keep, tokenizer, rubric, seed=cfg.rows.seed)
    return make_rows(cfg, source, dist, stage="make_cold_start", polish=polish)


if __name__ == "__main__":
    sys.exit(main())
