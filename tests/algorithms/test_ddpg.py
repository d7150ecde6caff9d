"""DDPG: the targets of its Q function, who follows whom, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from mbrl_lightning.errors import ConfigError

POINT = {"env": {"name": "point2d", "options": {}}}
SAC = {"warmup_steps": 20, "every": 5, "batch": 16, "gamma": 0.9, "tau": 0.25}


@pytest.fixture
def begun(make_loop):
    """A loop whose first iteration's real steps and updates are done."""
    loop = make_loop("ddpg", sac=SAC, loop={"episode_steps": 15, "tasks_per_iteration": 2}, **POINT)
    loop.algorithm.collect(loop.world)
    loop.algorithm.improve(loop.world, loop.step)
    return loop


def networks(loss, kind):
    """Weights of a network and of its target."""
    own, target = (getattr(loss, f"{prefix}{kind}_network_params").flatten_keys(".") for prefix in ("", "target_"))
    return {name: (own[name], target[name]) for name in own.keys() if own[name].is_floating_point()}  # noqa: SIM118


def test_real_steps_are_those_of_the_warm_up_and_of_the_policy(begun):
    assert begun.real.num_steps == 20 + 2 * 15


def test_the_loss_is_that_of_the_paper(begun):
    algorithm = begun.algorithm
    rows = algorithm._columns(begun.real.transitions()[:16])
    with torch.no_grad():
        values = algorithm._losses(rows)
        loss, after = algorithm.loss, rows["next"]
        with loss.target_actor_network_params.to_module(loss.actor_network):
            following = loss.actor_network.module(after["inputs"])
        with loss.target_value_network_params.to_module(loss.value_network):
            later = loss.value_network.module(after["inputs"], following)
        target = after["reward"] + 0.9 * (1 - after["terminated"].float()) * later
        with loss.value_network_params.to_module(loss.value_network):
            now = loss.value_network.module(rows["inputs"], rows["action"])
            with loss.actor_network_params.to_module(loss.actor_network):
                proposed = loss.actor_network.module(rows["inputs"])
            worth = loss.value_network.module(rows["inputs"], proposed)
    torch.testing.assert_close(values["loss_value"], (now - target).square().mean())
    torch.testing.assert_close(values["loss_actor"], -worth.mean())


def test_what_acts_is_what_learns(begun):
    algorithm = begun.algorithm
    rows = algorithm._columns(begun.real.transitions()[:8])
    with algorithm.loss.actor_network_params.to_module(algorithm.loss.actor_network):
        proposed = algorithm.loss.actor_network.module(rows["inputs"])
    acted, _ = algorithm.act(algorithm.begin(8), begun.real.transitions()["observation"][:8])
    torch.testing.assert_close(acted, proposed.detach())


def test_targets_go_a_share_of_the_way(begun):
    algorithm = begun.algorithm
    for kind in ("actor", "value"):
        for own, target in networks(algorithm.loss, kind).values():
            own.data.fill_(1.0)
            target.data.fill_(0.0)
    algorithm.targets.step()
    for kind in ("actor", "value"):
        for _, target in networks(algorithm.loss, kind).values():
            torch.testing.assert_close(target.data, torch.full_like(target.data, 0.25))


def test_targets_follow_every_update(begun, monkeypatch):
    algorithm, followed, before = begun.algorithm, [], begun.step.count
    monkeypatch.setattr(algorithm.cfg.sac, "updates_per_step", 4.0)
    monkeypatch.setattr(algorithm.targets, "step", lambda: followed.append(begun.step.count - before))
    algorithm.improve(begun.world, begun.step)
    assert followed == [*range(1, begun.step.count - before + 1)]
    assert len(followed) > 1


def test_discrete_actions_are_refused(make_loop):
    with pytest.raises(ConfigError, match="no discrete actions"):
        make_loop("ddpg", env={"name": "acrobot", "options": {}})
