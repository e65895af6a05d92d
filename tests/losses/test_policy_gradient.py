"""policy_gradient.py against TRL's own method on the same arrays, values and gradients, and against NumPy."""

import types
from collections import defaultdict
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from rcsd_jax import losses
from rcsd_jax.losses import policy_gradient

B, T, G = 6, 5, 3
RNG = np.random.default_rng(0)
OLD = RNG.normal(-2.0, 0.5, (B, T)).astype(np.float32)
NEW = OLD + RNG.normal(0.0, 0.4, (B, T)).astype(np.float32)  # many ratios beyond the clips
REFERENCE = OLD + RNG.normal(0.0, 0.3, (B, T)).astype(np.float32)
ADVANTAGES = RNG.normal(size=B).astype(np.float32)
MASK = np.arange(T) < np.array([[5], [3], [1], [4], [5], [2]])
REWARDS = RNG.normal(size=B).astype(np.float32)


def by_trl(loss_type, beta, low, high):
    """Loss and gradient by `GRPOTrainer._compute_loss`, whose model gives NEW."""
    log_probs = torch.tensor(NEW, requires_grad=True)
    trainer = mock.MagicMock(
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=loss_type,
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=T + 3,
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None),
        accelerator=types.SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    trainer._get_per_token_logps_and_entropies.return_value = (log_probs, torch.zeros(B, T), None)
    ones = torch.ones(B, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": ones,
        "completion_mask": torch.tensor(MASK).long(),
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": torch.tensor(OLD),
        "ref_per_token_logps": torch.tensor(REFERENCE),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), log_probs.grad.numpy()


def ours(loss_type, beta, low, high):
    def loss(log_probs):
        per_token = policy_gradient.clipped_policy_loss(log_probs, OLD, ADVANTAGES, clip_low=low, clip_high=high)
        per_token += beta * policy_gradient.reference_kl(log_probs, REFERENCE)
        reduction = {"grpo": "completions", "dr_grpo": "longest"}[loss_type]
        weights = losses.token_weights(jnp.asarray(MASK), reduction, max_length=T + 3)
        return losses.weighted_sum(per_token, weights)

    return loss


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("beta, low, high", [(0.0, 0.2, 0.2), (0.04, 0.1, 0.28)])
def test_loss_and_gradient_are_trl_s(loss_type, beta, low, high):
    expected, expected_gradient = by_trl(loss_type, beta, low, high)
    value, gradient = jax.value_and_grad(ours(loss_type, beta, low, high))(jnp.asarray(NEW))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert (np.asarray(gradient)[~MASK] == 0).all()
    ratio, sign = np.exp(NEW - OLD), np.sign(ADVANTAGES)[:, None]
    clipped = np.where(sign > 0, ratio > 1 + high, ratio < 1 - low) & MASK
    assert (clipped & (sign > 0)).any() and (clipped & (sign < 0)).any()  # both clips are met
    assert beta or (np.asarray(gradient)[clipped] == 0).all()


@pytest.mark.parametrize("scale", [True, False])
def test_advantages(scale):
    rewards = torch.tensor(REWARDS).view(-1, G)
    want = rewards - rewards.mean(dim=1, keepdim=True)
    if scale:  # as in GRPOTrainer, of which TRL has no function of its own
        want = want / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    got = policy_gradient.group_advantages(jnp.asarray(REWARDS), group_size=G, scale=scale)
    np.testing.assert_allclose(got, want.reshape(-1), rtol=1e-5)


def test_what_was_not_graded_changes_nothing():
    rewards = np.array([1.0, np.nan, 3.0, 2.0, 2.0, 2.0, np.nan, np.nan, np.nan])
    got = policy_gradient.group_advantages(jnp.asarray(rewards), group_size=3)
    deviation = np.std([1.0, 3.0], ddof=1) + 1e-4
    np.testing.assert_allclose(got, [-1 / deviation, 0, 1 / deviation, *[0] * 6], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["tokens", "completions", "longest"])
def test_values_outside_the_mask_never_matter(reduction):
    values = jnp.asarray(np.where(MASK, NEW, np.nan))
    reduce = lambda values, mask: losses.weighted_sum(values, losses.token_weights(mask, reduction))
    value, gradient = jax.value_and_grad(reduce)(values, jnp.asarray(MASK))
    assert np.isfinite(value) and (np.asarray(gradient)[~MASK] == 0).all()
    assert reduce(values, jnp.zeros_like(MASK)) == 0


def test_options_out_of_range():
    with pytest.raises(ValueError, match="group_size must divide the 6 rewards, got 4"):
        policy_gradient.group_advantages(jnp.asarray(REWARDS), group_size=4)
    with pytest.raises(ValueError, match="clip_low"):
        policy_gradient.clipped_policy_loss(NEW, OLD, ADVANTAGES, clip_low=1.2)
