"""Hostile command lines and faulty environments: a documented exit status, no traceback, no end without an answer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from .harness import child, command, none_is_wrong, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.usefixtures("elsewhere")]
COMMANDS = {
    "fit": ["conf=debug", "loop.iterations=1"],
    "evaluate": ["run=nowhere"],
    "report": ["nowhere"],
    "study": [],
    "check_env": ["conf=debug"],
    "headroom": ["conf=nowhere"],
    "perfect_model": ["conf=nowhere"],
    "bounds": [],
    "__main__": [],
}
WORDS = (
    *("", "=", "==", "x", "=x", "x=", "--", "-h=1", "--conf debug", "conf", "conf=", "conf==", "conf=[]", "conf={}"),
    *("conf=null", "conf=../../etc/passwd", "conf=debug.yaml", "conf=\x00", "conf=ünïcode", "conf_file=/dev/zero"),
    *(
        "conf_file=.",
        "seed=-1",
        "seed=1e400",
        "seed=[[1]]",
        "seed=0x10",
        "seed=" + "9" * 5000,
        "out=",
        "out=/dev/null/x",
    ),
    *("out=/proc/x", "out=\n", "out=" + "x" * 5000, "seeds=0..99999999999", "seeds=0..", "resume=", "resume=/dev/zero"),
    *("init_from=.", "env.file=/dev/zero", "env.file=.", "env.name=", "env.options=[]", "env.options.x.y=1"),
    *("policy.hidden=[[1]]", "search.lr=nan", "!!python/name:os.system", "loop.iterations=1e400", "overwrite=2"),
)


def test_hostile_command_lines():
    def outcomes():
        for module, word in itertools.product(COMMANDS, WORDS):
            status, text = child(command(module, *COMMANDS[module], word))
            yield f"{module} {word[:60]!r}", verdict(status, text)

    none_is_wrong("command lines", outcomes())


FAMILY = """
import sys
import gymnasium
import numpy as np
from mbrl_lightning.envs.gym_family import gym_family

def fail(): {fault}
# import
class Cart(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.mass, self.state = 1.0, np.zeros(2)
        # init

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        # reset
        return self.state.astype(np.float32), {{}}

    def step(self, action):
        speed = 0.95 * self.state[1] + 0.2 * float(action[0]) / self.mass
        self.state = np.array([self.state[0] + 0.1 * speed, speed])
        # step
        return self.state.astype(np.float32), -float(self.state[0]) ** 2, False, False, {{}}

    def close(self):
        # close
        pass

def reward(observation, action, following):
    # reward
    return -following[..., 0] ** 2

def family():
    # family
    return gym_family(Cart, {{"mass": (0.5, 2.0)}}, reward, horizon=20, name="cart")
"""
PLACES = ("import", "init", "reset", "step", "close", "reward", "family")
FAULTS = (
    "raise ValueError('wrong')",
    "raise OSError(28, 'No space left on device', 'mine')",
    "raise BrokenPipeError",
    "raise MemoryError",
    "sys.exit(0)",
    "sys.exit('text')",
    "return 1 / 0",
)


def test_faulty_environments():
    """49 of them: one fault at one place, whose end is that of an environment (3) or of a configuration (2)."""

    def outcomes():
        for place, fault in itertools.product(PLACES, FAULTS):
            Path("mine.py").write_text(FAMILY.format(fault=fault).replace(f"# {place}\n", "fail()\n"))
            words = ("conf=debug", "loop.iterations=1", "env.file=mine.py", "overwrite=true")
            status, text = child(command("fit", *words, stubbed=False), seconds=120)
            yield f"{place} {fault}", verdict(status, text, {2, 3} if place != "close" else {0, 2, 3})

    none_is_wrong("faulty environments", outcomes())
