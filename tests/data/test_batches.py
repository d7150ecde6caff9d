"""Contexts and targets as the loss gets them."""

from __future__ import annotations

import torch
from fakes import fingerprint, generator

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.batches import TransitionData, context_target

CFG = DynamicsConfig(tasks=4, context=5, targets=7, particles=2, latent_dim=3)


def test_shapes_and_told_parameters(filled, cartpole):
    batch = context_target(filled, CFG, generator(), cartpole.scale, context=5)
    assert batch["context"].shape == (4, 5)
    assert batch["target"].shape == (4, 7)
    assert batch["noise"].shape == (4, 2, 7, 3)
    tasks = batch["target", "task"][:, 0]
    torch.testing.assert_close(batch["task"], cartpole.scale(filled.tasks[tasks]).float())
    assert torch.equal(batch["context", "task"][:, 0], tasks)


def test_every_context_length_from_none_to_the_largest_is_drawn(filled, cartpole):
    source = generator()
    lengths = {context_target(filled, CFG, source, cartpole.scale)["context"].shape[1] for _ in range(100)}
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_everything_in_a_batch_comes_from_the_generator(filled, cartpole):
    first = fingerprint(context_target(filled, CFG, generator(3), cartpole.scale).to_dict())
    torch.manual_seed(1)
    assert fingerprint(context_target(filled, CFG, generator(3), cartpole.scale).to_dict()) == first
    assert fingerprint(context_target(filled, CFG, generator(4), cartpole.scale).to_dict()) != first


def test_an_epoch_has_as_many_batches_as_asked_for_and_they_differ(filled, cartpole):
    loader, source = TransitionData(filled, CFG, cartpole.scale, steps=2, seed=5).train_dataloader(), generator(5)
    for _ in range(2):  # epochs
        expected = [fingerprint(context_target(filled, CFG, source, cartpole.scale).to_dict()) for _ in range(2)]
        assert [fingerprint(batch.to_dict()) for batch in loader] == expected
        assert expected[0] != expected[1]
