"""Your own environment in a few lines: gymnasium's pendulum with varying mass and length.

python -m mbrl_lightning.check_env env.file=examples/pendulum.py
"""

from torch import Tensor, atan2

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.gym_family import gym_family


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Minus (angle^2 + 0.1 speed^2 + 0.001 torque^2) of the state before the step; torque = 2 action."""
    cos, sin, speed = observation.unbind(-1)
    return -(atan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * (2 * action[..., 0]) ** 2)


def family() -> TaskFamily:
    """Mass U[0.5, 2] kg and length U[0.6, 1.4] m; ``m`` and ``l`` are attributes of the environment."""
    return gym_family(
        "Pendulum-v1",
        parameters={"m": (0.5, 2.0), "l": (0.6, 1.4)},
        reward=reward,
        observation_names=("cos", "sin", "speed [rad/s]"),
    )
