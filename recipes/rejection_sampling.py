"""Rejection sampling: the good ones of several samples a problem, as rows for supervised fine-tuning (DeepSeek-R1,
section 2.3.3: the set of 800,000 rows whose domains and lengths its Table 5 gives).

    accelerate launch -m recipes.rejection_sampling --config recipes/configs/tiny_v3/pipeline/rejection_sampling.yaml
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
from recipes.rows.mix_rows import MixConfig, Others
from recipes.rows.rows_folder import RowsConfig
from recipes.rows.sources import Problems, as_run, benchmark_index


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig:
    """Sample a checkpoint, keep what is right and readable, and mix in rows of another kind."""

    model: ModelConfig
    data: DataConfig
    rewards: RewardConfig
    sampling: SamplingConfig
    keep: KeepConfig
    mix: MixConfig
    rows: RowsConfig


def parse(argv: Sequence[str]) -> RejectionSamplingConfig:
    return parse_flat(argv, RejectionSamplingConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: rejection_sampling(parse(given)))


def rejection_sampling(cfg: RejectionSamplingConfig) -> int:
    """Everything that can be refused is refused before the first sample; see `make_rows` for what follows."""
    run = as_run(cfg)
    dist, _ = start(log_with=[], project_dir=None)
    count_loading(is_main=dist.is_main)
    tokenizer, rubric = load_tokenizer(cfg.model), build_rubric(cfg.rewards)
    check_keep(cfg.keep, rubric)
    index = benchmark_index(cfg.keep.decontaminate, tokenizer, dist)
    source = Problems.of(run, index, tokenizer, rubric, dist)
    others = Others.of(cfg.mix, cfg.data, cfg.rows, tokenizer, index)
    return make_rows(cfg, source, dist, stage="rejection_sampling", others=others)


if __name__ == "__main__":
    sys.exit(main())
