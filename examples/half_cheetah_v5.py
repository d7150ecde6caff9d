"""Gymnasium's HalfCheetah-v5 as it comes, its torso lighter or heavier, the floor slippery or rough.

    python -m mbrl_lightning.fit env.file=examples/half_cheetah_v5.py algorithm=sac

Parameters are named by field and part of the MuJoCo model, and are multiples of what it has. No reward is given, so the one just
received becomes the last entry of the observation, and models learn to predict it.
"""

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.gym_family import gym_family


def family() -> TaskFamily:
    """Mass of the torso times U[0.5, 1.5], friction of the floor times U[0.5, 2]; 200 of the 1,000 steps."""
    parameters = {"body_mass:torso": (0.5, 1.5), "geom_friction:floor": (0.5, 2.0)}
    return gym_family("HalfCheetah-v5", parameters, horizon=200)
