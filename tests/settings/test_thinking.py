"""Who thinks: by default all, and otherwise as the last part of a variant says."""

import pytest

from configs import evaluate, stage1, stage2
from rcsd_jax.settings import keys
from tests.settings_for_tests import settings_of, value_of

SWITCHES = ("student.thinking", "teacher.thinking", "teacher.reason_thinking", "rubric.writer_thinking")


def switches(config):
    return [value_of(config, key) for key in SWITCHES]


def evaluated(config):
    encoding = settings_of(config).evaluation_encoding
    return encoding.student.thinking, encoding.teacher.thinking


@pytest.mark.parametrize("module", [stage1, stage2])
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_paper_and_release_think_unless_the_variant_says_otherwise(module, variant):
    config = module.get_config(variant)
    assert switches(config) == [True] * 4 and evaluated(config) == (True, True)
    silent = module.get_config(f"{variant},non_thinking")
    assert switches(silent) == [False] * 4 and evaluated(silent) == (False, False)
    mixed = module.get_config(f"student_non_thinking,{variant}")
    assert switches(mixed) == [False, True, True, True] and evaluated(mixed) == (True, True)
    assert not settings_of(mixed).encoding.student.thinking
    for other in (silent, mixed):
        changed = keys.differences(other.to_dict(), config.to_dict())
        assert {key for key in changed if "thinking" not in key} <= {
            "sampling.max_new_tokens", "rubric.max_new_tokens", "eval.max_new_tokens"
        }  # fmt: skip


def test_budgets_follow_who_thinks():
    budget = lambda config: settings_of(config).evaluation_budget
    assert budget(stage2.get_config("ground_truth")) == budget(stage2.get_config("student_non_thinking")) == 32768
    assert budget(stage2.get_config("non_thinking")) == stage2.get_config().sampling.max_new_tokens == 4096
    assert [stage1.get_config(v).sampling.max_new_tokens for v in ("", "non_thinking")] == [4096, 1024]
    assert [evaluate.get_config(v).eval.max_new_tokens for v in ("piqa", "piqa,non_thinking")] == [32768, None]


def test_names_that_do_not_go_together():
    for module in (stage1, stage2, evaluate):
        with pytest.raises(ValueError, match="two variants"):
            module.get_config("non_thinking,student_non_thinking")
    with pytest.raises(ValueError, match="unknown variant 'no_thinking'.*non_thinking"):
        stage2.get_config("no_thinking")
    config = stage2.get_config("qwen3_8b,release,non_thinking")
    assert config.model.path == "Qwen/Qwen3-8B" and not config.student.thinking
