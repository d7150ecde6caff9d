"""What a run looks like; what cannot be drawn costs a warning."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes import fingerprint, shortened
from tensordict import TensorDict

from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring import diagnostics


@pytest.fixture
def drawn(trained, tmp_path):
    """Names of the figures of a run, which goes on as before."""
    pytest.importorskip("matplotlib")

    def draw(algorithm: str = "gssm_aps", **options):
        loop = trained(algorithm, **options)
        before = fingerprint(loop.state_dict())
        written = diagnostics.draw(loop, tmp_path / "figures")
        assert fingerprint(loop.state_dict()) == before
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
        return {path.stem for path in written}

    return draw


EVERY = {"learning_curve", "adaptation_curve", "exploitation", "imagined_against_real", "latent_space"}


def test_every_figure_is_drawn_and_one_that_fails_costs_a_warning(drawn, monkeypatch, caplog):
    assert drawn() == EVERY

    def broken(*_):
        raise ValueError("no such colour")

    monkeypatch.setattr(diagnostics.figures, "latent_space", broken)
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        assert drawn() == EVERY - {"latent_space"}
    assert "no such colour" in caplog.text


SMALL = {
    "conf": "point_switch",
    "loop": {"iterations": 2, "episode_steps": 40, "model_steps": 5, "first_model_steps": 5},
    "dynamics": {"hidden": 8, "layers": 1, "members": 2, "targets": 16},
    "policy": {"hidden": [8]},
    "sac": {"warmup_steps": 60, "every": 10, "updates_per_step": 0.2, "batch": 16},
}
GRBAL = {"l2a": {"past": 4}, "planner": {"candidates": 12, "horizon": 3, "elites": 3}}
EVERY_HISTORY = {"learning_curve", "imagined_against_real", "exploitation"}


def point(every=None):
    return shortened(make_family("point_switch", horizon=40, switch_every_steps=every), context=10)


@pytest.mark.parametrize(
    ("algorithm", "options", "names"),
    [
        ("dr_ppo", {}, {"learning_curve"}),  # it has no model to draw
        ("grbal", GRBAL, {"learning_curve", "imagined_against_real", "outputs"}),
        ("m3po", {"family": point(15), **SMALL}, EVERY_HISTORY | {"switches"}),
        ("m3po", {"family": point(), **SMALL}, EVERY_HISTORY),  # the task stays for the whole episode
        ("recurrent_sac", {"family": point(15), **SMALL}, {"learning_curve", "switches"}),  # its model is never fitted
        ("pearl", {"family": point(15), **SMALL}, {"learning_curve", "switches"}),
    ],
)
def test_figures_are_those_that_a_method_has_data_for(drawn, caplog, algorithm, options, names):
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        assert drawn(algorithm, **options) == names
    assert not caplog.records


def test_in_a_perfect_model_of_histories_the_imagined_episode_is_the_real_one(trained, monkeypatch):
    """Which takes the same history in imagination as in reality, as the policy looks at it."""
    loop = trained("m3po", family=point(), **SMALL)
    dynamics = loop.algorithm.dynamics
    dynamics.low.fill_(-torch.inf)
    dynamics.high.fill_(torch.inf)
    asked = []

    def forwards(observation, action, belief):
        asked.append(int(belief["mask"][0].sum()))
        velocity = observation[..., :2] + 0.5 * (action - 0.5 * observation[..., :2])
        reward = velocity[..., :1] - 0.1 * action.square().sum(-1, keepdim=True)
        return torch.cat([velocity, reward], -1).expand(2, -1, -1, -1)

    monkeypatch.setattr(dynamics, "predictions", forwards)
    imagined, real = diagnostics.imagined_and_real(loop, loop.family.test[[0, 0, 1]])
    assert imagined.shape == real.shape == (3, 40)
    torch.testing.assert_close(imagined["observation"][:2], real["observation"][:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(imagined["action"][:2], real["action"][:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(imagined["observation"][2], real["observation"][2], atol=1e-2)  # was to go backwards
    assert asked == [min(step, 10) for step in range(40)]


@pytest.mark.parametrize(("algorithm", "options"), [("gssm_aps", {"dynamics": {"members": 2}}), ("grbal", GRBAL)])
def test_imagined_and_real_episodes_begin_in_the_same_state_and_have_equal_length(trained, algorithm, options):
    loop = trained(algorithm, **options)
    imagined, real = diagnostics.imagined_and_real(loop, loop.family.test[:3])
    assert imagined.shape == real.shape == (3, loop.family.spec.horizon)
    assert torch.equal(imagined["observation"][:, 0], real["observation"][:, 0])
    torch.testing.assert_close(imagined["action"][:, 0], real["action"][:, 0])
    assert not torch.equal(imagined["observation"][:, 5], real["observation"][:, 5])


def test_an_imagined_episode_stays_where_it_ended():
    observation = torch.arange(5.0).view(1, 5, 1).repeat(2, 1, 1)
    done = torch.zeros(2, 5, 1, dtype=torch.bool)
    done[0, 1], done[0, 3] = True, True
    imagined = TensorDict({"observation": observation, "next": {"observation": observation + 1, "done": done}}, [2, 5])
    still = diagnostics._standing_still(imagined)
    assert still["observation"][..., 0].tolist() == [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4]]
    assert still["next", "observation"][..., 0].tolist() == [[1, 2, 2, 2, 2], [1, 2, 3, 4, 5]]
