"""MIER: a context vector found by gradient, and a policy tuned on what the moved model says of real actions."""

from __future__ import annotations

import pytest
import torch
from fakes import generator

from mbrl_lightning.errors import ConfigError

POINT = {"env": {"name": "point_goal", "options": {}}}
TINY = {"loop": {"iterations": 1, "tasks_per_iteration": 2, "exploration_steps": 20}}


@pytest.fixture
def loop(make_loop):
    made = make_loop("mier", **TINY, **POINT)
    made.fit()
    return made


def believed(loop, tasks: int = 2):
    return loop.algorithm.believed(loop.real, torch.arange(tasks))


def test_relabelled_data_keep_state_and_action_and_get_the_models_outcome(loop):
    algorithm = loop.algorithm
    model = algorithm._moved(believed(loop)[:1], loop.step)
    data = loop.real.transitions()[:5]
    rows = data.select("observation").set("command", data["action"])
    found = algorithm.relabelled(model, rows)
    assert torch.equal(found["observation"], data["observation"])
    assert torch.equal(found["command"], data["action"])
    belief = believed(loop)[:1].set("latent", model.prior.detach().unsqueeze(0))
    expected = model.imagine(data["observation"].unsqueeze(0), data["action"].unsqueeze(0), belief)[0]
    torch.testing.assert_close(found["following"], expected)
    torch.testing.assert_close(found["reward"][:, 0], expected[:, 2])  # the point's last entry is the reward


def test_the_moved_model_fits_the_context_better_and_the_method_keeps_its_own(loop):
    algorithm, belief = loop.algorithm, believed(loop)[:1]
    before = {name: value.clone() for name, value in algorithm.dynamics.state_dict().items()}
    moved = algorithm._moved(belief, loop.step)
    told = belief["x"], belief["y"]
    assert float(moved.errors(*told, moved.prior.unsqueeze(0)).detach()) < float(
        algorithm.dynamics.errors(*told, belief["latent"]).detach()
    )
    assert all(torch.equal(value, before[name]) for name, value in algorithm.dynamics.state_dict().items())


def test_each_task_acts_by_its_own_tuned_policy(loop):
    algorithm, belief = loop.algorithm, believed(loop)
    tuned = algorithm.fine_tune(belief, loop.real, loop.step, generator())
    seen = torch.zeros(2, 3)
    together = algorithm.act(tuned, seen)[0]
    for task in (0, 1):
        torch.testing.assert_close(together[task : task + 1], algorithm.act(tuned[task : task + 1], seen[:1])[0])
    assert not torch.equal(together, algorithm.act(belief, seen)[0])
    untold = tuned.clone(False).set("policy", tuned["policy"][torch.tensor([1, 0])])
    assert not torch.equal(algorithm.act(untold, seen)[0], together)


def test_a_family_of_one_task_is_refused(make_loop):
    with pytest.raises(ConfigError, match="there is one task in the whole family"):
        make_loop("mier", env={"name": "point2d", "options": {}})
