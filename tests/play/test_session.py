"""An agent in a task that is changed under it: what is believed of it, and what a page is told of every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_lightning.agent import Agent
from mbrl_lightning.algorithms import ALGORITHMS
from mbrl_lightning.envs import FAMILIES, make_family
from mbrl_lightning.play.session import BELIEFS, Session, menu_of, ranges_of

HIDDEN = {"name": "point_switch", "options": {"horizon": 20, "switch_every_steps": 5}}


@pytest.fixture
def session(make_loop):
    """`session(algorithm, section={key: value})`: of one that has learned nothing."""
    return lambda name="gssm_aps", **changes: Session(Agent(make_loop(name, **changes).algorithm))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_can_be_played_with_under_each_belief(session, name):
    here = session(name)
    for choice in BELIEFS:
        here.believe(choice)
        moments = [here.step() for _ in range(3)]
        assert [moment.age for moment in moments][-1] == here.step().age - 1
        assert np.isfinite([moment.reward for moment in moments]).all()
        assert np.isnan(moments[-1].error) == (here.agent.algorithm.model is None)
        assert np.isfinite(moments[-1].belief).all()


def test_a_context_is_of_the_task_in_force_of_another_or_none(session):
    here = session()
    own, begun = here.believed(), here.agent.begin(1)["loc"][0].numpy()
    here.believe("none")
    np.testing.assert_allclose(here.believed(), begun[: len(own)], atol=1e-6)
    here.switch(here.family.test[1])
    np.testing.assert_allclose(here.believed(), begun[: len(own)], atol=1e-6)
    here.believe("another task's")
    assert abs(here.believed() - own).max() > 1e-4
    here.believe("own")
    before = here.believed()
    here.switch(here.family.test[2])  # a context is gathered anew
    assert abs(here.believed() - before).max() > 1e-4


def test_only_an_own_belief_follows_the_steps(session):
    here = session("m3po", env=HIDDEN)
    here.believe("none")
    still = [here.step().belief for _ in range(4)]
    here.believe("own")
    moved = [here.step().belief for _ in range(4)]
    assert np.ptp(still, axis=0).max() == 0 < np.ptp(moved, axis=0).max()


def test_a_trial_outlasts_its_episodes_unless_all_is_forgotten(session):
    here = session("rl2")
    [here.step() for _ in range(3)]
    state = here._belief["trial", "latent"].clone()
    here.reset()
    assert torch.equal(here._belief["trial", "latent"], state)
    here.reset(afresh=True)
    assert not torch.equal(here._belief["trial", "latent"], state)


def test_a_switch_changes_the_physics_and_leaves_the_body_where_it_is(session):
    one, two = session(), session()
    one.believe("none"), two.believe("none")
    assert one.step().reward == two.step().reward
    state = two.env._simulator.state()
    two.switch(two.family.test[2])
    assert torch.equal(two.env._simulator.state(), state)
    rewards = [[here.step().total for _ in range(6)] for here in (one, two)]
    assert rewards[0][0] != rewards[1][-1]
    assert not torch.equal(one.env._simulator.state(), two.env._simulator.state())


def test_a_hidden_task_stays_until_somebody_switches_it(session):
    here = session("m3po", env=HIDDEN)
    for task in (here.elsewhere(), here.elsewhere() * -1):
        here.switch(task)
        for _ in range(45):
            _, _, _, _, info = here.env.step(np.zeros(2, dtype=np.float32))
            assert [*info["task"].values()] == task.tolist()
            if here.step().ended:
                here.reset()


def test_few_tasks_make_a_menu_and_many_sliders():
    assert menu_of(make_family("point_switch")).tolist() == [[-1.0], [1.0]]
    assert menu_of(make_family("half_cheetah_disabled")).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert len(menu_of(make_family("point2d"))) == 1
    family = make_family("cartpole")
    assert menu_of(family) is None
    (low, high), _ = ranges_of(family)
    assert 0.5 <= low < family.test[:, 0].min() < family.test[:, 0].max() < high <= 3.0
    for name in FAMILIES:
        made = make_family(name)
        assert len(ranges_of(made)) == len(made.parameters)
