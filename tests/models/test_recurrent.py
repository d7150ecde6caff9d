"""The meta-model: heads that learn apart, a likelihood in which the reward is not drowned, early stopping head by head."""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps
from tensordict import TensorDict

from mbrl_lightning.beliefs.history import no_history
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.recurrent import HistoryDynamics
from mbrl_lightning.networks.gaussians import LOG_VAR

LENGTH = 4
HIDDEN = (
    "point_switch",
    "half_cheetah_fwd_bwd",
    "half_cheetah_pier",
    "ant_fwd_bwd",
    "ant_crippled_leg",
    "walker2d_random_params",
    "humanoid_direc",
)


def model(members: int = 3, history: bool = True, **dynamics) -> HistoryDynamics:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 1, "members": members, "lr": 1e-2, "targets": 32} | dynamics
    cfg = compose({"conf": "point_switch", "algorithm": "m3po" if history else "m2po", "dynamics": sizes})
    return HistoryDynamics(make_family("point_switch").spec, cfg.dynamics, cfg.history)


@pytest.fixture(scope="module")
def real() -> TaskBuffer:
    family, generator = make_family("point_switch"), torch.Generator().manual_seed(0)
    tasks = family.sample(2, generator)
    data = random_steps(family, tasks, 200, generator)
    buffer = TaskBuffer(1)
    buffer.extend(data, buffer.add_tasks(tasks), exploratory=False)
    return buffer


def batch(dynamics: HistoryDynamics, real: TaskBuffer, rows: torch.Tensor) -> TensorDict:
    dynamics.see(real, 0.1, fit=True)
    seen = Histories(real, dynamics.inputs, LENGTH)
    target = dynamics.targets(seen.observation[rows], seen.next_observation[rows])
    weight = torch.ones(len(rows), dynamics.members)
    return seen.before(rows).set("action", seen.action[rows]).set("target", target).set("weight", weight)


def test_a_head_learns_from_its_own_sample_alone(real):
    dynamics = model()
    data = batch(dynamics, real, torch.arange(64))
    data["weight"][:, 1] = 0.0
    dynamics.training_step(data)["loss"].backward()
    for parameter in dynamics.parameters():
        moved = parameter.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [True, False, True]


def test_weights_count_how_often_a_row_is_in_the_sample(real):
    dynamics = model(1)
    data = batch(dynamics, real, torch.arange(10))
    data["weight"][:5] = 2.0
    data["weight"][5:] = 0.0
    once = dynamics.training_step(data[:5].clone().set("weight", torch.ones(5, 1)))["loss"]
    torch.testing.assert_close(dynamics.training_step(data)["loss"], once)


def test_the_deviation_is_bounded_on_both_sides(real):
    dynamics = model()
    data = batch(dynamics, real, torch.arange(50))
    with torch.no_grad():
        for parameter in dynamics.net.net.parameters():
            parameter.mul_(1000)
    _, log_var = dynamics(data["inputs"], data["action"])
    assert log_var.min() >= LOG_VAR[0] - 1e-3
    assert log_var.max() <= LOG_VAR[1] + 1e-3
    assert log_var.std() > 0.1


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_only_the_weighted_likelihood_treats_all_errors_alike(real, weight):
    """Two outputs with the same error and predicted variances of 1 and of e^-8: the ratio of their gradients."""
    dynamics = model(1, variance_weight=weight)
    data = batch(dynamics, real, torch.arange(20))
    log_var = torch.zeros(1, 20, dynamics.spec.target_dim)
    log_var[..., 0] = -8.0
    loc = (data["target"] + 0.1).unsqueeze(0).requires_grad_()
    dynamics.forward = lambda inputs, action: (loc, log_var)
    dynamics.training_step(data)["loss"].backward()
    ratio = float(loc.grad[..., 0].mean() / loc.grad[..., 1].mean())
    assert ratio == pytest.approx(1.0 if weight else torch.tensor(8.0).exp().item(), rel=1e-3)


def test_samples_spread_as_the_head_says_and_stay_in_the_range_of_the_data(real):
    dynamics = model()
    data = batch(dynamics, real, torch.arange(400))
    seen = Histories(real, dynamics.inputs, LENGTH)
    head, noise = torch.ones(400, 1, dtype=torch.long), torch.zeros(400, 1, dynamics.spec.target_dim)
    asked = seen.observation.unsqueeze(1), data["action"].unsqueeze(1), data["inputs"]
    middle, predicted = dynamics.imagine(*asked, head, noise), dynamics.predictions(*asked)
    torch.testing.assert_close(middle, predicted[1].clamp(dynamics.low, dynamics.high))
    torch.testing.assert_close(dynamics.predict(*asked), predicted.mean(0))
    far = dynamics.imagine(*asked, head, noise + 1000)
    assert (far == dynamics.high).all()
    assert (dynamics.high >= real.transitions()["next", "observation"].amax(0)).all()


@pytest.mark.parametrize("history", [True, False])
def test_a_row_asks_its_own_head_as_if_all_were_asked(real, history):
    dynamics = model(history=history)
    data = batch(dynamics, real, torch.arange(6)).double()
    data["inputs", "mask"] = data["inputs", "mask"].bool()
    draw = torch.Generator().manual_seed(1)
    dynamics = dynamics.double()
    head = torch.randint(3, (6, 5), generator=draw).clamp_max(1)  # the last head has no row at all
    action = torch.rand(6, 5, data["action"].shape[-1], generator=draw, dtype=torch.float64)
    observation = data["observation"].unsqueeze(1).expand(6, 5, -1) + action.mean(-1, keepdim=True)
    noise = torch.zeros(6, 5, dynamics.spec.target_dim, dtype=torch.float64)
    imagined = dynamics.imagine(observation, action, data["inputs"], head, noise)
    everyone = dynamics.predictions(observation, action, data["inputs"])
    wanted = everyone.gather(0, head[None, ..., None].expand(1, *observation.shape))[0].clamp(
        dynamics.low, dynamics.high
    )
    torch.testing.assert_close(imagined, wanted, rtol=0, atol=1e-9)


def test_statistics_are_set_once_and_bounds_every_time(real):
    dynamics = model()
    dynamics.see(real, 0.1, fit=True)
    mean, high = dynamics.inputs.current_norm.mean.clone(), dynamics.high.clone()
    moved, state = TaskBuffer(1), real.state_dict()
    shifted = [
        {name: column + 100 if "obs" in name else column for name, column in part.items()} for part in state["segments"]
    ]
    moved.load_state_dict(state | {"segments": shifted})
    dynamics.see(moved, 0.1, fit=False)
    assert torch.equal(dynamics.inputs.current_norm.mean, mean)
    assert (dynamics.high > high + 50).all()


def test_effort_of_many_motors_is_learned_from_squares_alone():
    """Sum of eight squares from 600 random actions: what decides whether an imagined ant stands still."""
    family, generator = make_family("ant_fwd_bwd"), torch.Generator().manual_seed(0)
    observation = torch.randn(800, family.spec.observation_dim, generator=generator)
    action = 2 * torch.rand(800, 8, generator=generator) - 1
    following = torch.cat([observation[:, :-1], 1 - 0.5 * action.square().sum(-1, keepdim=True)], -1)
    errors = {}
    for squares in (True, False):
        torch.manual_seed(0)
        cfg = compose({"conf": "ant_fwd_bwd", "algorithm": "m3po", "history": {"squares": squares}})
        dynamics = HistoryDynamics(family.spec, cfg.dynamics, cfg.history)
        optimizer = dynamics.configure_optimizers()
        dynamics.inputs.fit(TensorDict({"observation": observation, "next": {"observation": following}}, [800]))
        dynamics.target_norm.fit(family.spec.target(observation, following))
        target = dynamics.targets(observation, following)
        seen = no_history(800, LENGTH, dynamics.inputs.pair_dim).set("current", dynamics.inputs.current(observation))
        data = TensorDict({"inputs": seen, "action": action, "target": target}, [800])
        data["weight"] = torch.ones(800, dynamics.members)
        for _ in range(150):
            optimizer.zero_grad()
            dynamics.training_step(data[:600])["loss"].backward()
            optimizer.step()
        _, error = dynamics.nll(data[600:])
        errors[squares] = float(error[..., -1].mean())
    assert errors[True] < 0.1
    assert errors[False] > 0.4


@pytest.mark.parametrize("name", HIDDEN)
def test_heads_predict_and_imagine_in_every_hidden_family(name):
    """Positions that turn on a sphere (a humanoid's, an ant's) want predictions and observations of one shape."""
    family, generator = make_family(name), torch.Generator().manual_seed(0)
    tasks = family.test[:2]
    data = random_steps(family, tasks, 12, generator)
    cfg = compose({"conf": name, "algorithm": "m3po", "dynamics": {"hidden": 8}})
    dynamics = HistoryDynamics(family.spec, cfg.dynamics, cfg.history)
    buffer = TaskBuffer(len(family.parameters))
    buffer.extend(data, buffer.add_tasks(tasks), exploratory=False)
    dynamics.see(buffer, 0.1, fit=True)
    seen = Histories(buffer, dynamics.inputs, LENGTH)
    inputs, rows = seen.before(torch.arange(24))["inputs"], torch.zeros(24, 1, dtype=torch.long)
    asked = seen.observation.unsqueeze(1), seen.action.unsqueeze(1), inputs
    predicted = dynamics.predictions(*asked)
    assert predicted.shape == (3, 24, 1, family.spec.observation_dim)
    imagined = dynamics.imagine(*asked, rows, torch.zeros(24, 1, family.spec.target_dim))
    torch.testing.assert_close(imagined, predicted[0].clamp(dynamics.low, dynamics.high))
