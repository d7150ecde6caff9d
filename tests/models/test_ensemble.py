"""K deterministic models: their own splits, weight normalisation, early stopping member by member."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.models.ensemble import EnsembleDynamics, MemberData

SPEC = plain_spec()


def ensemble(members: int = 3, **changes) -> EnsembleDynamics:
    torch.manual_seed(0)
    return EnsembleDynamics(SPEC, DynamicsConfig(**{"hidden": 8, "layers": 1, "members": members} | changes))


def layers(dynamics: EnsembleDynamics) -> list[torch.nn.Module]:
    return list(dynamics.decoder)[::2]


def transitions(rows: int = 50) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    observation, action = torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)
    after = TensorDict({"observation": observation + 0.1 * action.sum(1, keepdim=True)}, batch_size=[rows])
    return TensorDict({"observation": observation, "action": action, "next": after}, batch_size=[rows])


def data(dynamics: EnsembleDynamics, seed: int = 0, rows: int = 50) -> MemberData:
    dynamics.observe(transitions(rows))
    return MemberData(dynamics, transitions(rows), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("members", [1, 4])
def test_every_member_has_a_split_of_its_own_and_never_learns_from_what_it_is_checked_on(members):
    split = data(ensemble(members))
    assert split.held_out.shape == (10, members)
    for member in range(members):
        whole = torch.cat([split.held_out[:, member], split.learned[:, member]])
        assert whole.sort().values.tolist() == list(range(50))
    assert members == 1 or not torch.equal(split.held_out[:, 0], split.held_out[:, 1])
    batch = next(split.batches(1, 2000))
    for member in range(members):
        known, held = (split.at(rows)["inputs"][:, member] for rows in (split.learned, split.held_out))
        drawn = batch["inputs"][:, member].unsqueeze(1)
        assert (drawn == known).all(-1).any(1).all()
        assert not (drawn == held).all(-1).any()


@pytest.mark.parametrize("weight_norm", [False, True])
def test_one_product_equals_members_one_by_one(weight_norm):
    dynamics = ensemble(weight_norm=weight_norm)
    batch = next(data(dynamics).batches(1, 7))
    errors = dynamics.errors(batch)
    for member in range(3):
        single = ensemble(1)
        with torch.no_grad():
            for mine, its in zip(layers(single), layers(dynamics), strict=True):
                mine.weight.copy_(its.weight[member : member + 1])
                mine.bias.copy_(its.bias[member : member + 1])
        alone = single.errors(_of(batch, member))
        torch.testing.assert_close(errors[member : member + 1], alone)


def _of(batch: TensorDict, member: int) -> TensorDict:
    kept = {name: value[:, member : member + 1] for name, value in batch.items()}
    return TensorDict(kept, batch_size=batch.batch_size)


def test_normalised_weights_start_as_they_were_and_have_the_learned_length():
    plain, dynamics = ensemble(), ensemble(weight_norm=True)
    for mine, its in zip(layers(dynamics), layers(plain), strict=True):
        torch.testing.assert_close(mine.weight, its.weight)
        length, direction = mine.parametrizations.weight.original0, mine.parametrizations.weight.original1
        with torch.no_grad():
            direction.mul_(3.0)  # the length of the direction does not matter
        torch.testing.assert_close(mine.weight, its.weight)
        torch.testing.assert_close(mine.weight.norm(dim=1, keepdim=True), length)
        with torch.no_grad():
            length.mul_(2.0)
        torch.testing.assert_close(mine.weight, 2 * its.weight)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_frozen_copy_predicts_the_same_and_is_a_copy(weight_norm):
    dynamics = ensemble(weight_norm=weight_norm)
    split, state = data(dynamics), torch.get_rng_state()
    frozen = dynamics.frozen()
    assert torch.equal(torch.get_rng_state(), state)
    belief = TensorDict({"latent": torch.zeros(1, 0)}, batch_size=[1])
    observation, action = torch.randn(1, 6, 3), torch.randn(1, 6, 2)
    before = dynamics.imagine(observation, action, belief).detach()
    assert torch.equal(frozen.imagine(observation, action, belief), before)
    assert not any(p.requires_grad for p in frozen.parameters())
    dynamics.training_step(next(split.batches(1, 20)))["loss"].backward()
    with torch.no_grad():
        for p in dynamics.parameters():
            p.add_(0.1)
    assert torch.equal(frozen.imagine(observation, action, belief), before)
    assert not torch.equal(dynamics.imagine(observation, action, belief), before)


def test_the_loss_is_the_sum_of_the_members_mean_squared_errors_and_all_learn():
    dynamics = ensemble(weight_norm=True)
    batch = next(data(dynamics).batches(1, 20))
    out = dynamics.training_step(batch)
    expected = dynamics.errors(batch).mean((1, 2))
    torch.testing.assert_close(out["loss"], expected.sum())
    torch.testing.assert_close(out["loss_error"], expected.mean())
    out["loss"].backward()
    learned = [p for p in dynamics.parameters() if p.requires_grad]
    assert len(learned) == 9  # three layers of length, direction and bias
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)


def test_too_little_data_leaves_nothing_to_check_on():
    split = data(ensemble(), rows=1)
    assert len(split.held_out) == 0
    assert len(next(split.batches(1, 4))) == 4
