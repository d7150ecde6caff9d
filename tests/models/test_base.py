"""What all models share: normalised inputs and targets, the stack of decoders, the bounds of imagination."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.models.mlp import MLPDynamics


def model_of(members: int = 1, **spec) -> MLPDynamics:
    torch.manual_seed(0)
    return MLPDynamics(plain_spec(**spec), DynamicsConfig(hidden=8, layers=1, members=members), 2).double()


def transitions(count: int, observation: int = 3, action: int = 2) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    draw = [5 + 3 * torch.randn(count, width, generator=generator) for width in (observation, action, observation)]
    return TensorDict({"observation": draw[0], "action": draw[1], "next": {"observation": draw[2]}}, batch_size=[count])


def test_decoding_a_stack_equals_a_loop_over_members():
    model = model_of(members=3)
    x, code = torch.randn(2, 6, 5, dtype=torch.float64), torch.randn(2, 6, 2, dtype=torch.float64)
    out = model.decode(x, code)
    for member in range(3):
        block = slice(2 * member, 2 * member + 2)  # rows 0-1, 2-3, 4-5
        h = torch.cat([x, code], -1)[:, block]
        for layer in model.decoder:
            h = h @ layer.weight[member] + layer.bias[member] if hasattr(layer, "weight") else layer(h)
        torch.testing.assert_close(out[:, block], h)
    few = model.decode(x[:, :4], code[:, :4], slice(1, 3))  # a slice of members shares out all rows
    torch.testing.assert_close(few[:, :2], model.decode(x[:, :2], code[:, :2], slice(1, 2)))


def test_rows_that_do_not_divide_are_refused():
    model = model_of(members=3)
    with pytest.raises(ValueError, match=r"7 rows .* 3 ensemble members"):
        model.decode(torch.zeros(1, 7, 5, dtype=torch.float64), torch.zeros(1, 7, 2, dtype=torch.float64))


def test_observe_standardises_and_bounds_to_the_range_of_the_data_and_a_margin_on_both_sides():
    model, other, data = model_of().float(), model_of().float(), transitions(500)
    model.observe(data, margin=0.5)
    for value in (model.inputs(data["observation"], data["action"]), model.targets(data)):
        torch.testing.assert_close(value.mean(0), torch.zeros(value.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(value.std(0), torch.ones(value.shape[1]), atol=1e-5, rtol=0)
    following = data["next", "observation"]
    low, high = following.min(0).values, following.max(0).values
    torch.testing.assert_close(model.low, low - 0.5 * (high - low))
    torch.testing.assert_close(model.high, high + 0.5 * (high - low))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.low, model.low)
    assert torch.equal(other.target_norm.std, model.target_norm.std)


@pytest.mark.parametrize("capacity", [20_000, 9_000], ids=["room", "wrapped"])
def test_what_is_seen_of_a_growing_buffer_is_what_all_its_rows_are(monkeypatch, capacity):
    """Statistics to rounding, whatever they are far from; bounds and what a resumed run sees to the last bit."""
    monkeypatch.setattr("mbrl_lightning.data.buffer.BLOCK", 500)
    real, resumed, exact, model = (
        TaskBuffer(1, capacity),
        TaskBuffer(1, capacity),
        model_of().float(),
        model_of().float(),
    )
    for turn in range(9):
        data = transitions(1400).update({"initial": torch.ones(1400).bool(), "valid": torch.ones(1400).bool()})
        data["next", "reward"], data["age"], data["episode"] = torch.zeros(1400, 1), *torch.zeros(2, 1400).long()
        data["next", "terminated"] = torch.zeros(1400, 1).bool()
        data["observation"] += 1e4 * turn
        real.extend(data.unsqueeze(0), real.add_tasks(torch.zeros(1, 1)), exploratory=True)
        model.see(real)
    rows = real.transitions()
    exact.observe(rows)
    for one, two in ((model.input_norm, exact.input_norm), (model.target_norm, exact.target_norm)):
        torch.testing.assert_close(one.mean, two.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.std, two.std, rtol=1e-12, atol=0)
    ranked, tail = rows["next", "observation"].sort(0).values, int(0.0005 * len(rows))
    exact.bound(ranked[tail], ranked[-1 - tail], 0.1)
    assert tail >= 4
    assert torch.equal(model.low, exact.low)
    assert torch.equal(model.high, exact.high)
    resumed.load_state_dict(real.state_dict())
    exact.see(resumed)
    assert torch.equal(exact.input_norm.std, model.input_norm.std)
    assert torch.equal(exact.target_norm.mean, model.target_norm.mean)
    assert torch.equal(exact.low, model.low)


def test_bounds_leave_out_the_rare_extremes():
    model, data = model_of().float(), transitions(10_000)
    data["next", "observation"][0] = 1e6  # a single accident of the physics
    data["next", "observation"][1] = -1e6
    model.observe(data, margin=0.0)
    assert (model.high < 100).all()
    assert (model.low > -100).all()


def wild(model: MLPDynamics, size: float) -> MLPDynamics:
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.copy_(torch.tensor([size, -size, 0.0], dtype=torch.float64).view(1, 1, 3))
    return model


def test_imagination_is_clamped_on_both_sides_and_prediction_is_not():
    model = wild(model_of(), 1e9)
    observation, action = torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(2, 3, 2, dtype=torch.float64)
    belief = model.tell(torch.zeros(2, 2)).double()
    with torch.no_grad():  # before any data there are no bounds
        assert model.imagine(observation, action, belief)[0, 0].tolist() == [1e9, -1e9, 0.0]
        model.low.fill_(-4.0)
        model.high.fill_(6.0)
        assert model.imagine(observation, action, belief)[0, 0].tolist() == [6.0, -4.0, 0.0]
    assert model.predict(observation, action, belief)[0, 0].tolist() == [1e9, -1e9, 0.0]


def test_disturbance_is_scaled_by_the_models_deviation():
    model = wild(model_of(), 0.0)
    zeros, disturbance = torch.zeros(1, 2, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        out = model.imagine(zeros, zeros[..., :2], model.tell(torch.zeros(1, 2)).double(), disturbance=disturbance)
    torch.testing.assert_close(out, 0.1 * disturbance, rtol=1e-6, atol=1e-8)


def test_likelihood_has_a_floor_under_its_deviation():
    model = model_of()
    with torch.no_grad():
        model.log_scale.fill_(-50.0)
    loss = model.nll(torch.zeros(1, 3, dtype=torch.float64), torch.full((1, 3), 0.02, dtype=torch.float64))
    expected = -torch.distributions.Normal(0.0, 0.02).log_prob(torch.tensor(0.02, dtype=torch.float64)) * 3
    torch.testing.assert_close(loss, expected.expand(1))


def test_targets_and_predictions_go_through_the_specs_own_functions(cartpole):
    """Acrobot-like wrapping: a target across the cut is short, and the prediction lands on the other side of it."""

    def wrap(x):
        return torch.remainder(x + torch.pi, 2 * torch.pi) - torch.pi

    model = model_of(
        observation=1, action=2, target=lambda o, n: wrap(n - o), untarget=lambda o, y: wrap(o + y)
    ).float()
    data = TensorDict({"observation": torch.tensor([[3.1]]), "next": {"observation": torch.tensor([[-3.1]])}}, [1])
    torch.testing.assert_close(model.targets(data), torch.tensor([[2 * torch.pi - 6.2]]), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.fill_(2 * torch.pi - 6.2)
    out = model.predict(torch.tensor([[[3.1]]]), torch.zeros(1, 1, 2), model.tell(torch.zeros(1, 2)))
    torch.testing.assert_close(out, torch.tensor([[[-3.1]]]), atol=1e-5, rtol=0)
