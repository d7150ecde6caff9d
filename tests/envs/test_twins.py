"""MuJoCo bodies beside gymnasium's environments: bit for bit the same states, the same starts, rewards as stated."""

import gymnasium
import numpy as np
import pytest
import torch
from fakes import centre_x, generator

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import mujoco

ANT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}
PARTS = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
HUMANOID = {f"include_{part}_in_observation": False for part in PARTS} | {"contact_cost_weight": 0.0}
RUNNERS = {
    "swimmer": ("Swimmer-v5", {}),
    "half_cheetah_200": ("HalfCheetah-v5", {}),
    "hopper": ("Hopper-v5", {}),
    "walker2d": ("Walker2d-v5", {}),
    "ant": ("Ant-v5", ANT | {"ctrl_cost_weight": 0.005}),
}
SWITCHING = {
    "half_cheetah_fwd_bwd": ("HalfCheetah-v5", {"ctrl_cost_weight": 0.05}),
    "ant_fwd_bwd": ("Ant-v5", ANT),
    "humanoid_direc": ("Humanoid-v5", HUMANOID),
}
TWINS = {
    "half_cheetah": ("HalfCheetah-v5", {}),
    "slim_humanoid": ("Humanoid-v5", HUMANOID),
    **RUNNERS,
    **SWITCHING,
}


def twin(name):
    task, options = TWINS[name]
    mujoco.nominal_model("half_cheetah.xml")  # routes the warning of gymnasium's own load to logging
    return gymnasium.make(task, disable_env_checker=True, **options).unwrapped


def expected(name, direction, x, centre, env, data, squares, paid, ended):
    """What the family states, from gymnasium's numbers where those are the same."""
    travelled = data.qpos[0] - x
    if name == "ant":  # gymnasium's torso speed is a physics step late; the paper's is the torso's own
        return travelled / 0.05 - 0.005 * squares + 1
    if name == "half_cheetah_fwd_bwd":
        return direction * travelled / 0.05 - 0.05 * squares
    if name == "ant_fwd_bwd":
        return direction * travelled / 0.05 - 0.5 * squares + 1
    if name == "humanoid_direc":
        return 1.25 * direction * (centre_x(env.model, data) - centre) / 0.015 - 0.1 * 0.16 * squares + 5
    return paid + (ended and name in RUNNERS)  # the paper's code pays the bonus for the step of the fall


@pytest.mark.parametrize("name", TWINS)
def test_bodies_move_as_in_gymnasium_and_pay_as_stated(name):
    env, scale, draws = twin(name), 0.4 if "humanoid" in name else 1.0, generator()
    family = make_family(name, **({"switch_every_steps": 20, "flip": True} if name in SWITCHING else {}))
    tasks = family.test[:2] if name in TWINS and len(family.parameters) == 1 else torch.ones(2, 2)
    sim, spec = family.simulate(tasks), family.spec
    observation, ends, directions = sim.reset(draws), set(), set()
    data = getattr(sim, "_base", sim)._datas[1]
    env.reset(seed=0)
    env.set_state(data.qpos.copy(), data.qvel.copy())
    for _ in range(150):
        action, x, centre = spec.random_action((2,), draws), float(data.qpos[0]), centre_x(env.model, data)
        direction = float(sim.tasks[1]) if name in SWITCHING else 1.0
        following = sim.step(action)
        theirs, paid, ended, *_ = env.step(scale * action[1].numpy().astype(np.float64))
        assert np.array_equal(env.data.qpos, data.qpos)
        assert np.array_equal(env.data.qvel, data.qvel)
        shown = following[1, :-1] if name in SWITCHING else following[1, -len(theirs) :]
        assert np.array_equal(shown.numpy(), theirs.astype(np.float32))
        if name != "slim_humanoid":  # whose reward is another
            squares = float(action[1].double().square().sum())
            right = expected(name, direction, x, centre, env, data, squares, paid, ended)
            assert spec.reward(observation, action, following)[1].item() == pytest.approx(right, abs=1e-4)
            assert bool(spec.termination(following)[1]) is bool(ended)
        ends.add(ended)
        directions.add(direction)
        observation = following
    assert ends == {False, True} or name not in ("hopper", "walker2d")
    assert (directions == {1.0, -1.0}) == (name in SWITCHING)


@pytest.mark.parametrize("name", RUNNERS)
def test_starts_are_spread_as_in_gymnasium(name):
    env = twin(name)
    theirs = np.stack([env.reset(seed=seed)[0] for seed in range(400)])
    ours = make_family(name).simulate(torch.ones(400, 1)).reset(generator())[:, 1:].numpy()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.03)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.2, atol=1e-4)
    assert (np.abs(ours).max(0) <= 1.5 * np.abs(theirs).max(0) + 1e-6).all()
