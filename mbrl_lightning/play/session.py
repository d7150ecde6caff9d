"""An agent at work in one task that can be changed under it: what a page shows, and nothing of the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.agent import Agent
from mbrl_lightning.data.collect import begun_anew
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.imagination import trajectories

DRAWS, MENU = 300, 12  # tasks looked at, and the most of which a menu is made
BELIEFS = ("own", "none", "another task's")
SHOWN = 6  # numbers of a belief


@dataclass(frozen=True)
class Moment:
    """One step: its number in the episode, the reward, the return so far, the model's error and what is believed.

    The error is the mean square of one step's prediction, each output in deviations of the data that the model was fitted to: 1
    is no better than predicting their mean. NaN where there is no model. `belief` [at most 6]: see `numbers`.
    """

    age: int
    reward: float
    total: float
    error: float
    belief: np.ndarray
    ended: bool


class Session:
    """Steps an environment of the agent's family, one row.

    `belief` is one of BELIEFS: "own" is what the agent infers of the task in force, from a context of random actions where it
    takes one (gathered anew whenever the task changes) and from its own steps; "none" what it believes before any transition,
    "another task's" what it infers from a context of a task of the family that is not this one. These two stay as they are.

    Args:
        agent: to look at.
        seed: of starts, contexts and other tasks.

    Attributes:
        task: parameters in force, float64 [P].
    """

    def __init__(self, agent: Agent, seed: int = 0) -> None:
        self.agent, self.family, self.spec = agent, agent.family, agent.spec
        self.task, self.choice = agent.family.test[0].clone(), BELIEFS[0]
        self._draws = torch.Generator().manual_seed(seed)
        self._start = self._belief = agent.begin(1)
        self.env, self._seed = self.family.make(self.task, render_mode="rgb_array"), seed
        self.reset(afresh=True)

    def reset(self, afresh: bool = False) -> None:
        """A new episode of the same task; what outlasts episodes of a trial stays in the belief, unless `afresh`."""
        self._observation, _ = self.env.reset(seed=self._seed if afresh else None)
        self.env.switch(self.task)
        self._age, self._total = 0, 0.0
        if afresh:
            self.believe(self.choice)
        else:
            self._belief = begun_anew(self._belief, self._start, torch.ones(1, dtype=torch.bool))

    def switch(self, task: Tensor) -> None:
        """Another task [P] from the next step on; the body stays as it is."""
        self.task = task.double()
        self.env.switch(self.task)
        if self._context and self.choice == "own":
            self.believe("own")

    def elsewhere(self) -> Tensor:
        """A task of the family that is not this one, if there is another: [P]."""
        drawn = self.family.sample(DRAWS, self._draws)
        other = drawn[(drawn != self.task).any(1)]
        return other[0] if len(other) else self.task

    def believe(self, choice: str) -> None:
        """Go on with another belief, one of BELIEFS."""
        self.choice = choice
        start: TensorDict = self.agent.begin(1)
        if choice == "own" and self._context:
            start = self.agent.adapt(start, self._explored(self.task, self._context))
        elif choice == "another task's":
            steps = self._context or self.family.context_steps
            start = self.agent.adapt(start, self._explored(self.elsewhere(), steps))
        self._start = self._belief = start

    def believed(self) -> np.ndarray:
        """See `numbers`, now."""
        _, told = self.agent.act(self._belief, self._observation[None])
        return numbers(told, self._start)

    @property
    def _context(self) -> int:
        return self.agent.algorithm.shots(full=False)[0]

    def _explored(self, task: Tensor, steps: int) -> TensorDictBase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self._draws)))
            return self.agent.explore(task.unsqueeze(0), steps)

    def step(self) -> Moment:
        """One control step. Whoever goes on after an end has reset before.

        Raises:
            EnvError: the simulator gave something that is not finite.
            DivergedError: the policy did.
        """
        before = self._observation
        action, told = self.agent.act(self._belief, before[None])
        following, reward, terminated, truncated, _ = self.env.step(action[0])
        step = {"observation": before[None], "action": action, "next": {"observation": following[None]}}
        self._belief = self.agent.adapt(told, step) if self.choice == "own" else told
        self._observation, self._age, self._total = following, self._age + 1, self._total + float(reward)
        error, ended = self._error(told, before, action, following), terminated or truncated
        return Moment(self._age, float(reward), self._total, error, numbers(told, self._start), ended)

    @torch.no_grad()
    def _error(self, told: TensorDict, before: np.ndarray, action: np.ndarray, following: np.ndarray) -> float:
        algorithm = self.agent.algorithm
        if algorithm.model is None:
            return float("nan")
        taken = torch.as_tensor(action)
        taken = torch.nn.functional.one_hot(taken, self.spec.action_dim).float() if self.spec.discrete else taken
        seen, after = torch.tensor(before)[None], torch.tensor(following)[None]
        expected = trajectories(algorithm.model, told.exclude("owner"), seen, taken[:, None]).mean(0)[:, 0].cpu()
        norm, target = algorithm.model.target_norm, self.spec.target
        return float((norm(target(seen, expected)) - norm(target(seen, after))).square().mean())

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()


def numbers(belief: TensorDictBase, start: TensorDictBase) -> np.ndarray:
    """What can be drawn of a belief of one row: the first entries of its latent, where it has one.

    Else how far each of its tensors (a history, a recurrent state, adapted parameters) is from the start, in root mean square.
    """
    for name in ("loc", "latent"):
        if belief[name].numel() if name in belief.keys() else 0:  # noqa: SIM118
            return belief[name][0, :SHOWN].detach().cpu().double().numpy()
    leaves = belief.exclude("owner", "latent", "age", "mask", "frozen", "plan").flatten_keys(".")
    begun = start.flatten_keys(".")
    far = []
    for name in sorted(leaves.keys())[:SHOWN]:
        now = leaves[name].detach().float()
        first = begun[name].float() if name in begun.keys() and begun[name].shape == now.shape else 0  # noqa: SIM118
        far.append(float((now - first).square().mean().sqrt()) if now.numel() else 0.0)
    return np.array(far)


def menu_of(family: TaskFamily) -> Tensor | None:
    """The tasks [n, P] of a family that has few of them, in order; None where they are to be made by sliders."""
    found = torch.unique(_seen(family), dim=0)
    return found if len(found) <= MENU else None


def ranges_of(family: TaskFamily) -> list[tuple[float, float]]:
    """The smallest and largest value of each parameter, of training, unseen and extreme tasks."""
    seen = _seen(family)
    return list(zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True))


def _seen(family: TaskFamily) -> Tensor:
    drawn = family.sample(DRAWS, torch.Generator().manual_seed(0))
    outside = family.extreme.reshape(-1, drawn.shape[1]) if family.extreme.numel() else drawn[:0]
    return torch.cat([drawn, family.test, outside])
