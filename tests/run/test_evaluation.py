"""Completions of an evaluation that was stopped: none is sampled twice, none is lost."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs import stage2
from rcsd_jax.evaluate.questions import Questions
from rcsd_jax.host.errors import UserError
from rcsd_jax.run.evaluation import check_budget, open_unfinished, resumed
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.sampling.sampler import Completion
from tests.settings_for_tests import settings_of

PROMPTS = [np.array([i, 7]) for i in range(5)]
SAMPLED = SamplingConfig(max_new_tokens=4, temperature=1.0, eos_ids=(1,))


class Stopped(Exception):
    pass


class Sampler:
    """Completes one prompt at a time, last first, with what prompt and seed say; stops after `most`."""

    def __init__(self, most=99):
        self.asked, self.most = [], most

    def generate(self, prompts, seeds, sampling):
        for i in reversed(range(len(prompts))):
            if len(self.asked) == self.most:
                raise Stopped
            self.asked.append((int(prompts[i][0]), seeds[i]))
            yield [i], [Completion(np.array([prompts[i][0], seeds[i]], np.int32), bool(seeds[i] % 2))]


def collected(sampler, path, seeds=range(10, 15), sampling=SAMPLED):
    found = {}
    with open_unfinished(path) as log:
        for chosen, completions in resumed(sampler, log, sampling, PROMPTS, seeds):
            found.update(zip(chosen, completions, strict=True))
    return {i: (found[i].tokens.tolist(), found[i].cut) for i in sorted(found)}


WANTED = {i: ([i, 10 + i], bool((10 + i) % 2)) for i in range(5)}


def test_a_stopped_evaluation_samples_what_is_missing(tmp_path):
    path, first, second, third = tmp_path / "unfinished.jsonl", Sampler(most=2), Sampler(), Sampler()
    with pytest.raises(Stopped):
        collected(first, path)
    with path.open("ab") as file:
        file.write(b'{"key": "torn by a k')
    assert collected(second, path) == WANTED
    assert first.asked == [(4, 14), (3, 13)] and second.asked == [(2, 12), (1, 11), (0, 10)]
    assert collected(third, path) == WANTED and third.asked == []


def test_only_the_same_prompt_seed_and_settings_are_the_same(tmp_path):
    path = tmp_path / "unfinished.jsonl"
    collected(Sampler(), path)
    other_seeds, other_settings = Sampler(), Sampler()
    collected(other_seeds, path, seeds=range(12, 17))
    assert len(other_seeds.asked) == 5
    collected(other_settings, path, sampling=SamplingConfig(max_new_tokens=4, temperature=0.0, eos_ids=(1,)))
    assert len(other_settings.asked) == 5


@pytest.mark.parametrize("line", ["{}", "nothing", '{"key": "a", "tokens": ["b"], "cut": false}', "[]"])
def test_a_line_that_is_none(tmp_path, line):
    path = tmp_path / "unfinished.jsonl"
    collected(Sampler(most=9), path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="unfinished.jsonl:6: not a completion"):
        collected(Sampler(), path)


def test_the_budget_of_evaluation_must_fit_the_model():
    """To the token: the longest prompt, the teacher's analysis and what follows it, and the completion."""
    config = stage2.get_config("reason_first")
    config.teacher.reason_tokens = 10
    model = lambda positions: SimpleNamespace(decoder=SimpleNamespace(config=SimpleNamespace(max_position=positions)))
    some = Questions([None] * 2, [np.zeros(3), np.zeros(7)], np.zeros(0), "boxed")
    questions = {"base": {"a": some}, "teacher": {"a": some._replace(transition=np.zeros(5))}}
    assert settings_of(config).evaluation_budget == 32768
    for budget, key in ((40, "eval.max_new_tokens"), (None, "sampling.max_new_tokens")):
        config.eval.max_new_tokens, config.sampling.max_new_tokens = budget, 40
        check_budget(questions, model(7 + 10 + 5 + 40), settings_of(config))
        check_budget({"base": questions["base"]}, model(7 + 40), settings_of(config))
        with pytest.raises(UserError, match="22 tokens.*set at most 39") as error:
            check_budget(questions, model(7 + 10 + 5 + 39), settings_of(config))
        assert error.value.field == key
    with pytest.raises(UserError, match="lower data.max_student_prompt"):
        check_budget(questions, model(20), settings_of(config))
    check_budget({}, model(1), settings_of(config))
