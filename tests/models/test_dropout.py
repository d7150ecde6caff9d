"""A dropout network: masks as the noise of a row, what they cost and mean, refreshed weights, a control that must fail."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.models.dropout import DropoutDynamics
from mbrl_lightning.models.imagination import ImaginedStreams

TASKS, ROWS = 2, 40


def model(**changes) -> DropoutDynamics:
    torch.manual_seed(0)
    cfg = DynamicsConfig(**{"hidden": 16, "layers": 1, "dropout": 0.25} | changes)
    return DropoutDynamics(plain_spec(), cfg).double()


def rows(seed: int = 1, count: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(TASKS, count, 5, **draw), torch.randn(TASKS, count, 3, **draw)


def noise(net: DropoutDynamics, count: int = ROWS, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TASKS, count, net.noise_dim, generator=generator, dtype=torch.float64)


def test_masks_drop_their_share_on_the_way_into_every_layer_and_have_mean_one():
    net = model()
    assert net.noise_dim == 5 + 16 + 16
    (x, _), draws = rows(count=2000), noise(net, 2000)
    mask = net.code(x, None, draws)
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (mask == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    first, second, third = mask[0, 0].split([5, 16, 16])
    one, two, three = net.decoder.affine
    h = torch.relu((x[0, 0] * first) @ one.weight[0] + one.bias[0, 0])
    h = torch.relu((h * second) @ two.weight[0] + two.bias[0, 0])
    expected = (h * third) @ three.weight[0] + three.bias[0, 0]
    torch.testing.assert_close(net.decode(x, mask)[0, 0], expected)
    torch.testing.assert_close(net.decode(x, net.code(x, None)), net.decoder(x.view(1, -1, 5)).view(TASKS, -1, 3))


def imagine(net: DropoutDynamics, draws: torch.Tensor) -> torch.Tensor:
    start = rows()[0][..., :3]
    belief = TensorDict({"latent": torch.zeros(TASKS, 0)}, batch_size=[TASKS])
    streams = ImaginedStreams(net, belief, start, 99, draws)
    with torch.no_grad():
        return streams.rollout(lambda seen: {"action": torch.tanh(seen[..., :2])}, 12)["next", "observation"]


def test_a_stream_with_its_mask_is_one_function_and_masks_are_apart():
    net, draws = model(), noise(model())
    once, again = imagine(net, draws), imagine(net, draws)
    assert torch.equal(once, again)
    assert not torch.allclose(once, imagine(net, noise(net, seed=3)))
    same = draws[:, :1].expand_as(draws)
    x = rows()[0]
    one = net.decode(x[:, 7:8], net.code(x, None, draws)[:, :1])[
        0, 0
    ]  # the first row's mask is what the eighth row has
    torch.testing.assert_close(net.decode(x, net.code(x, None, same))[0, 7], one)


def test_masks_redrawn_at_every_step_hide_how_little_is_known(monkeypatch):
    """The control: along a held function what is not known adds up; drawn anew at each step it cancels out."""
    net = model()
    with torch.no_grad():
        net.decoder.affine[-1].weight.mul_(0.3)
    draws, spread, own = noise(net, 400), {}, net.code
    start = torch.zeros(TASKS, 400, 3, dtype=torch.float64)
    belief = TensorDict({"latent": torch.zeros(TASKS, 0)}, batch_size=[TASKS])
    for held in (True, False):
        if not held:
            monkeypatch.setattr(net, "code", lambda x, belief, eps: own(x, belief, torch.randn_like(eps)))
        streams = ImaginedStreams(net, belief, start, 99, draws)
        with torch.no_grad():
            data = streams.rollout(lambda seen: {"action": torch.ones_like(seen[..., :2])}, 15)
        spread[held] = (
            (data["next", "observation"][:, :, -1] - data["next", "observation"][:, :, -1].mean(1, True))
            .square()
            .mean()
        )
    assert spread[True] > 2 * spread[False]


def test_refreshing_fits_the_context_of_each_task_and_leaves_the_network():
    net = model(refresh_steps=200, refresh_lr=0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = rows()
    belief = net.refreshed(x, y)
    assert belief["latent"].shape == (TASKS, 0)
    error = {}
    for name, told in (("shared", None), ("own", belief), ("other", belief[[1, 0]])):
        error[name] = (net.decode(x, net.code(x, told), belief=told) - y).square().mean().item()
    assert error["own"] < 0.7 * error["shared"]
    assert error["own"] < 0.7 * error["other"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # plain gradient steps, worked out for one task
    net = model(refresh_steps=2, refresh_lr=0.1)
    names = [f"decoder.{name}" for name, _ in net.decoder.named_parameters()]
    for _ in range(2):
        loss = (net.decoder(x[1:2]) - y[1:2]).square().mean()
        for name, slope in zip(names, torch.autograd.grad(loss, list(net.decoder.parameters())), strict=True):
            net.get_parameter(name).data.sub_(0.1 * slope)
    fresh = model(refresh_steps=2, refresh_lr=0.1)
    with torch.no_grad():
        belief = fresh.refreshed(x, y)
        torch.testing.assert_close(fresh.decode(x, fresh.code(x, belief), belief=belief)[1], net.decoder(x[1:2])[0])


@pytest.mark.parametrize(("steps", "count"), [(0, ROWS), (20, 0)])
def test_without_steps_or_transitions_there_is_nothing_of_its_own(steps, count):
    belief = model(refresh_steps=steps).refreshed(*rows(count=count))
    assert set(belief.keys()) == {"latent"}


def test_its_loss_is_the_mean_over_masks_of_targets():
    net = model(scale=0.3)
    x, y = rows()
    target = TensorDict(
        {"observation": x[..., :3], "action": x[..., 3:], "next": {"observation": x[..., :3] + y}}, [TASKS, ROWS]
    )
    draws = torch.stack([noise(net), noise(net, seed=5)], 1)
    loss = net.training_step(TensorDict({"target": target, "noise": draws}, [TASKS]))["loss"]
    each = [net.nll(net.decode(x, net.code(x, None, eps)), y) for eps in draws.unbind(1)]
    torch.testing.assert_close(loss, torch.stack(each).mean())
