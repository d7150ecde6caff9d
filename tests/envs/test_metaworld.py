"""Meta-World's ML1, where it is installed (it wants MuJoCo 3.3): its lists of tasks, its rewards, its success rate."""

import pytest

metaworld = pytest.importorskip("metaworld")

from mbrl_lightning.check_env import check_family  # noqa: E402 - after the skip
from mbrl_lightning.envs.gym_family import gym_family  # noqa: E402


def test_ml1_is_a_family():
    benchmark = metaworld.ML1("reach-v3", seed=1)
    tasks, build = [*benchmark.train_tasks, *benchmark.test_tasks], benchmark.train_classes["reach-v3"]

    def make():
        env = build()
        env.set_task(tasks[0])
        return env

    def put(env, values):
        env.unwrapped.set_task(tasks[int(values["task"])])

    numbers = [[number] for number in range(len(tasks))]
    family = gym_family(
        make,
        {"task": (0, 99)},
        tasks=numbers[:50],
        unseen=numbers[50:],
        set_task=put,
        horizon=50,
        info=("success",),
        name="reach",
    )
    assert family.spec.observation_names[-2:] == ("success", "previous_reward")
    # what it keeps outside MuJoCo's state (where the goal was seen last) is not restored
    assert {check.name for check in check_family(family) if not check.passed} <= {"state"}
