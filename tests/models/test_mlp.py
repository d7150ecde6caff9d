"""The baselines: a model told nothing, and one told the truth."""

from __future__ import annotations

import torch

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.models.mlp import MLPDynamics

CFG = DynamicsConfig(hidden=16, layers=1, tasks=4, targets=12, latent_dim=2, context=8)


def test_the_told_models_predictions_depend_on_what_it_is_told(cartpole, recorded):
    assert MLPDynamics(cartpole.spec, CFG).tell(torch.ones(6, 2))["latent"].shape == (
        6,
        0,
    )  # the blind one is told nothing
    model = MLPDynamics(cartpole.spec, CFG, 2)
    one, other = (model.tell(torch.full((6, 2), value)) for value in (-1.0, 1.0))
    predictions = [model.predict(recorded["observation"], recorded["action"], belief) for belief in (one, other)]
    assert (predictions[0] - predictions[1]).abs().amax((1, 2)).min() > 1e-3


def test_training_step_is_the_likelihood_of_the_targets(cartpole, filled):
    model = MLPDynamics(cartpole.spec, CFG, 2)
    model.observe(filled.transitions())
    batch = context_target(filled, CFG, torch.Generator().manual_seed(0), cartpole.scale)
    losses = model.training_step(batch)
    x = model.inputs(batch["target", "observation"], batch["target", "action"])
    told = torch.cat([x, batch["task"].unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
    mean = model.decoder(told.flatten(0, 1).unsqueeze(0))[0].unflatten(0, x.shape[:2])
    expected = -torch.distributions.Normal(mean, 0.1).log_prob(model.targets(batch["target"])).sum(-1).mean()
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert model.decoder[0].weight.grad[0, -2:].abs().sum() > 0  # the told parameters are used
