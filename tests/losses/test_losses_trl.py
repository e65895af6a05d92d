"""The same arrays through TRL's losses."""

import numpy as np
import pytest
import torch
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.gold.gold_trainer import GOLDTrainer
from trl.experimental.sdft import loss_utils

from rcsd_jax import losses

S, T = np.random.default_rng(0).normal(size=(2, 2, 5, 12)).astype(np.float32) * 2
TS, TT = torch.from_numpy(S), torch.from_numpy(T)


@pytest.mark.parametrize("trainer", [GKDTrainer, GOLDTrainer])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_generalized_jsd(trainer, beta):
    want = trainer.generalized_jsd_loss(TS, TT, beta=beta, temperature=1.2, reduction="none").sum(-1)
    np.testing.assert_allclose(losses.per_token_divergence(S, T, beta=beta, temperature=1.2), want, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_sdft(beta, tail):
    want = loss_utils.compute_full_logit_self_distillation_loss(TS, TT, distillation_alpha=beta)
    np.testing.assert_allclose(losses.per_token_divergence(S, T, beta=beta), want, atol=1e-5)
    want = loss_utils.compute_topk_self_distillation_loss(
        TS, TT, distillation_topk=4, distillation_alpha=beta, distillation_add_tail=tail == "bucket"
    )
    got = losses.per_token_divergence(S, T, beta=beta, top_k=4, top_k_support="student", tail=tail)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_sampled_token():
    tokens = np.arange(10).reshape(2, 5)
    want = loss_utils.compute_sampled_token_self_distillation_loss(
        TS, TT, torch.from_numpy(tokens), distillation_alpha=1.0
    )
    np.testing.assert_allclose(losses.sampled_token_loss(S, T, tokens), want, atol=1e-5)
