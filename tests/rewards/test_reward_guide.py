"""The guide's snippets run, together, as a user would put them into a file and a recipe."""

import yaml

from rewards import Rubric, Verdict, registry
from tests.house_rules.pages import TEXT, blocks

PAGE = TEXT["rewards/README.md"]
WRITING = PAGE[PAGE.index("## Writing a reward") : PAGE.index("## The rewards that are here")]
SERVICE = PAGE[PAGE.index("## The service") : PAGE.index("## The maths verifier")]


def test_the_rewards_of_the_guide_do_what_it_says(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("\n".join(blocks(WRITING, "python")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    (recipe,) = blocks(WRITING, "yaml")
    rubric = Rubric.from_config(yaml.safe_load(recipe)["reward_funcs"])
    for chat in (False, True):
        texts = ["Because it is 3 metres", "3 metres a second", "so"]
        result = rubric.score(
            prompts=["p"] * 3,
            completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            completion_ids=[[1] * 300, [1] * 301, [1]],
            columns={"unit": ["metres", "km", None]},
            trainer_state=None,
            step=0,
        )
        assert result.parts == {
            "starts_with_why": [1.0, 0.0, 0.0],
            "unit": [1.0, 0.0, None],
            "short": [-0.022, -0.017, -0.002],
            "make_length_limit": [0.0, -1.0, 0.0],
        }
        assert result.rewards == [1.5, -1.0, 0.0] and result.correct == [True, False, None]
        assert result.metrics == {"words": (10 / 3, 1)}


def test_the_snippet_of_the_service_judges_both_answers():
    (snippet,) = blocks(SERVICE, "python")
    names = {}
    exec(snippet, names)
    assert [outcome.value[0] for outcome in names["outcomes"]] == [Verdict.CORRECT, Verdict.WRONG]
