"""CaDM's model: one context forwards and backwards, and what is left without either."""

import pytest
import torch
from fakes import generator, plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.methods import CaDMConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.models.context import ContextDynamics


def recorded(count: int = 6, steps: int = 20) -> TensorDict:
    """Episodes `[count x steps]` of random states and actions, in rows of one episode after another."""
    draws = generator(1)
    state = torch.randn(count, steps + 1, 2, generator=draws)
    age = torch.arange(steps).expand(count, -1)
    data = {"observation": state[:, :-1], "action": torch.rand(count, steps, 2, generator=draws) * 2 - 1, "age": age}
    data |= {"episode": torch.arange(count).unsqueeze(1).expand(-1, steps), "stride": torch.ones_like(age)}
    return TensorDict(data | {"next": {"observation": state[:, 1:]}}, batch_size=[count, steps]).reshape(-1)


def model(members: int = 2, **changes) -> ContextDynamics:
    torch.manual_seed(0)
    cfg = DynamicsConfig(hidden=16, layers=1, members=members, activation="silu", variance_weight=0.0)
    dynamics = ContextDynamics(plain_spec(2, 2), cfg, CaDMConfig(past=4, future=3, hidden=[8], **changes))
    dynamics.observe(recorded())
    return dynamics


def batch(dynamics: ContextDynamics, count: int = 32) -> TensorDict:
    data = recorded()
    return next(Segments(data, dynamics.columns, 4, 3).batches(1, count, generator(2)))


def fitted(dynamics: ContextDynamics, segments: TensorDict, steps: int = 5) -> ContextDynamics:
    optimizer = dynamics.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        dynamics.training_step(segments)["loss"].backward()
        optimizer.step()
    return dynamics


def test_the_loss_is_the_likelihood_and_the_weighted_error_backwards():
    dynamics = model(members=1, backward=0.7)
    segments = batch(dynamics, 1)
    past, future = segments["past"], segments["future"]
    belief = dynamics.believe(past["inputs"], past["target"], past["mask"])
    total = 0.0
    for k in range(3):
        if not future["mask"][0, k]:
            continue
        told = torch.cat([future["inputs"][0, k], belief["context"][0]])
        loc, raw = dynamics.decoder(told.view(1, 1, -1))[0, 0].chunk(2)
        log_var = -9 + torch.log1p(torch.exp(1 - torch.log1p(torch.exp(1 - raw)) + 9))
        total += (0.5 * ((loc - future["target"][0, k]) ** 2 / log_var.exp() + log_var)).mean()
        back = dynamics.reverse(torch.cat([future["back"][0, k], belief["context"][0]]).view(1, 1, -1))[0, 0]
        total += 0.7 * (back - future["target"][0, k]).square().mean()
    torch.testing.assert_close(dynamics.training_step(segments)["loss"], total / 3)


def test_back_is_the_state_that_the_step_led_to():
    dynamics, data = model(), recorded()
    wanted = dynamics.inputs(data["next", "observation"], data["action"])
    assert dynamics.columns(data)["back"].equal(wanted)


def test_backward_coefficient_0_is_the_forward_only_model():
    both, alone = model(backward=0.0), model(backward=0.0)
    with torch.no_grad():
        for layer in alone.reverse.affine:
            layer.weight.mul_(3.0)  # whatever it says
    segments = batch(both)
    fitted(both, segments), fitted(alone, segments)
    told = model(backward=0.5)
    fitted(told, segments)
    first, second, third = (dict(each.decoder.named_parameters()) for each in (both, alone, told))
    assert all(first[name].equal(second[name]) for name in first)
    assert not any(first[name].equal(third[name]) for name in list(first)[:1])


def test_context_dimension_0_is_a_probabilistic_ensemble():
    dynamics = model(context_dim=0, backward=0.0)
    segments = batch(dynamics)
    assert dynamics.idle
    other = segments.clone()
    other["past"] = other["past"].apply(torch.zeros_like)
    assert dynamics.training_step(segments)["loss"].equal(dynamics.training_step(other)["loss"])
    x, y, used = segments["future", "inputs"], segments["future", "target"], segments["future", "mask"]
    loc, log_var = dynamics.decoder(x.flatten(0, 1).expand(2, -1, -1)).chunk(2, -1)
    log_var = log_var.clamp(-8, 0)  # the soft bounds leave the middle nearly as it is
    nll = (
        -torch.distributions.Normal(loc, (0.5 * log_var).exp()).log_prob(y.flatten(0, 1))
        - 0.5 * torch.tensor(2 * torch.pi).log()
    )
    wanted = (nll.mean(-1) * used.flatten()).sum() / used.numel()
    torch.testing.assert_close(dynamics.training_step(segments)["loss"], wanted, rtol=0.2, atol=0.1)


@pytest.mark.parametrize("dim", [0, 3])
def test_who_has_seen_nothing_is_believed_the_same_with_and_without_a_belief(dim):
    dynamics, draws = model(context_dim=dim), generator(3)
    observation, action = torch.randn(2, 5, 2, generator=draws), torch.rand(2, 5, 2, generator=draws)
    nothing = dynamics.believe(torch.ones(2, 4, 4), torch.ones(2, 4, 2), torch.zeros(2, 4, dtype=torch.bool))
    seen = dynamics.believe(torch.ones(2, 4, 4), torch.ones(2, 4, 2), torch.ones(2, 4, dtype=torch.bool))
    empty = TensorDict({}, batch_size=[2])
    found = [dynamics.predict(observation, action, belief) for belief in (empty, nothing, seen)]
    torch.testing.assert_close(found[0], found[1])
    assert found[0].equal(found[2]) == (dim == 0)
