"""Completions of an evaluation that was stopped: none is sampled twice, none is lost."""

import numpy as np
import pytest

from rcsd_jax.host.errors import UserError
from rcsd_jax.run.evaluation import open_unfinished, resumed
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.sampling.sampler import Completion

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
