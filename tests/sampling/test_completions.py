"""completions.py: every prompt once, in groups, and each as it would be alone."""

import jax
import numpy as np
import pytest

from rcsd_jax.models.decoder import Decoder
from rcsd_jax.models.sharding import make_mesh
from rcsd_jax.sampling import SamplingConfig
from rcsd_jax.sampling.many import GROUP, complete
from tests.sampling.test_continuous_batching import CONFIG, small

SAMPLING = SamplingConfig(max_new_tokens=10, temperature=0.8, eos_ids=(3, 5))


@pytest.mark.parametrize("count", [0, 3, 11, 18])
def test_every_prompt_is_completed_as_if_alone(count):
    variables, tokens, mask, _ = small()
    prompts = [row[keep] for row, keep in zip(tokens, mask, strict=True)][:count]
    mesh = make_mesh(devices=jax.devices()[:1])
    bound = dict(mesh=mesh, pad_to=4, pad_id=2)
    with jax.set_mesh(mesh):
        groups = list(complete(Decoder(CONFIG), variables, prompts, range(count), SAMPLING, batch_size=2, **bound))
        found = {i: c for chosen, group in groups for i, c in zip(chosen, group, strict=True)}
        assert sorted(found) == list(range(count)) and sum(len(chosen) for chosen, _ in groups) == count
        assert len(groups) == -(-count // (2 * GROUP))
        lengths = [len(prompts[i]) for chosen, _ in groups for i in chosen]
        assert lengths == sorted(lengths)
        for i in range(0, count, 4):
            alone = list(complete(Decoder(CONFIG), variables, [prompts[i]], [i], SAMPLING, batch_size=1, **bound))
            np.testing.assert_array_equal(found[i].tokens, alone[0][1][0].tokens)
            assert found[i].cut == alone[0][1][0].cut and not np.isin(found[i].tokens, SAMPLING.eos_ids).any()
    if count == 18:
        assert {c.cut for c in found.values()} == {True, False} and min(map(len, prompts)) < 5
