"""Imagined rollouts: a dynamics model, a belief and the family's own reward, stepped as one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.data.collect import transition
from mbrl_lightning.envs.spec import EnvSpec, never
from mbrl_lightning.errors import DivergedError, EnvError
from mbrl_lightning.models.base import Model
from mbrl_lightning.models.recurrent import HistoryDynamics

ImaginedAct = Callable[[Tensor], dict[str, Tensor]]
"""Observations `[M, B, S]` -> `action` `[M, B, A]` and whatever else is to be stored beside it."""


class Imagines(Protocol):
    """What streams are imagined in: a `Dynamics`, or what is made of one."""

    spec: EnvSpec

    @property
    def imagine(self) -> Callable[..., Tensor]:
        """See `Dynamics.imagine`."""


class ImaginedStreams:
    """M x B imagined environments, each in an episode after another, or in one alone.

    Told of new starts, streams run on from one rollout to the next and begin anew where an episode ends (what on-policy
    methods take for data). Without, each is one episode: after its end nothing is earned any more, `valid` is false, and the
    stream stands at its start, where model and reward are finite. A fall that cuts training episodes is terminal here too.

    The member of the ensemble and the noise of the code belong to a stream, so a stream lives in one sampled world.

    Args:
        dynamics: the model.
        belief: batch `[M]`.
        start: initial observations `[M, B, S]`.
        horizon: steps after which an episode is truncated.
        code_noise: standard normal `[M, B, Z]`; None takes the mean code.
        members: ensemble members that share out the B streams.
        restart: count n -> start observations `[n, S]` of new episodes; None: there are none.
        noise: factor on the model's own deviation, drawn anew each step from `generator`.
        generator: see `noise`.
        settle: what becomes of the predicted states `[M, B, S]` of a step before they are the states that follow; None: nothing.
    """

    def __init__(
        self,
        dynamics: Imagines,
        belief: TensorDict,
        start: Tensor,
        horizon: int,
        code_noise: Tensor | None = None,
        members: slice = slice(None),
        restart: Callable[[int], Tensor] | None = None,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        settle: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.dynamics, self.belief, self.start, self.horizon = dynamics, belief, start, horizon
        self.code_noise, self.members, self.restart = code_noise, members, restart
        self.noise, self.generator = noise, generator
        self.settle = settle
        self.observation = start
        self.nobody = torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
        self.alive = self.whole = ~self.nobody
        self.now, self.due, self.born = 0, horizon, torch.zeros_like(self.nobody, dtype=torch.long)
        fall = dynamics.spec.training_termination
        self.rules = [] if dynamics.spec.termination is never else [dynamics.spec.termination]
        self.rules += [] if fall is None else [fall]

    def rollout(self, act: ImaginedAct, steps: int) -> TensorDict:
        """Run T = `steps` steps on, `[M, B, T]`; differentiable in what `act` gave.

        The columns are `observation`, `age` (steps since its episode began), `valid`, what `act` gave, and under `next`:
        `observation`, `reward`, `terminated`, `truncated`, `done`, `[..., 1]` each. Where a state is not finite, nor is its
        reward: no gradient step is taken on it, and the host need not look (see `require_imaginable`).
        """
        rows: list[dict[str, Tensor]] = []
        # where falls end episodes, new ones start from as many states as there are streams, drawn at once, in turn
        self.fresh = self._drawn() if self.rules else self.start
        self.ended = torch.zeros((), dtype=torch.long, device=self.start.device)
        for _ in range(steps):
            taken, age = act(self.observation), self.now - self.born
            following, terminated, truncated = self._advance(taken["action"])
            seen = {"observation": self.observation, "age": age, "valid": self.alive, "following": following}
            rows.append(taken | seen | {"terminated": terminated, "truncated": truncated})
            self.observation = following
            if terminated is not self.nobody or truncated is not self.nobody:
                self._end(terminated | truncated)
        data = {name: torch.stack([row[name] for row in rows], 2) for name in rows[0]}
        return self._assemble(data)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.dynamics.spec
        action = action if spec.discrete else action.clamp(-1, 1)
        disturbance = None
        if self.noise > 0:
            shape = (*action.shape[:2], spec.target_dim)
            disturbance = self.noise * torch.randn(shape, generator=self.generator).to(action.device)
        following = self.dynamics.imagine(
            self.observation, action, self.belief, self.code_noise, self.members, disturbance
        )
        following = following if self.settle is None else self.settle(following)
        terminated, self.now = self.nobody, self.now + 1
        for rule in self.rules:
            terminated = terminated | rule(following)
        terminated = terminated & self.alive if self.rules else terminated
        if not self.rules and self.now < self.due:  # nothing ends an episode, so ages are not looked at
            return following, terminated, self.nobody
        return following, terminated, (self.now - self.born >= self.horizon) & ~terminated & self.alive

    def _end(self, done: Tensor) -> None:
        if self.restart is None:
            self.alive, fresh = self.alive & ~done, self.start
        elif not self.rules:  # all are of one age
            fresh, self.due = self._drawn(), self.now + self.horizon
        else:
            place = self.ended + done.flatten().cumsum(0)
            fresh, self.ended = self.fresh.flatten(0, 1)[(place - 1) % done.numel()].view_as(self.start), place[-1]
        self.observation = torch.where(done.unsqueeze(-1), fresh, self.observation)
        self.born = torch.where(done, self.now, self.born)

    def _drawn(self) -> Tensor:
        return (
            self.start if self.restart is None else self.restart(self.nobody.numel()).to(self.start).view_as(self.start)
        )

    def _assemble(self, data: dict[str, Tensor]) -> TensorDict:
        spec = self.dynamics.spec
        following, terminated, truncated = (data.pop(k) for k in ("following", "terminated", "truncated"))
        action = data["action"] if spec.discrete else data["action"].clamp(-1, 1)
        reward = spec.reward(data["observation"], action, following)
        reward = torch.where(following.isfinite().all(-1), reward, torch.nan)
        if self.restart is None and self.alive is not self.whole:
            reward = reward * data["valid"]
        flags = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        after = {"observation": following, "reward": reward.unsqueeze(-1)}
        after |= {name: value.unsqueeze(-1) for name, value in flags.items()}
        return TensorDict(data | {"next": TensorDict(after, batch_size=reward.shape)}, batch_size=reward.shape)


def outcome(spec: EnvSpec, observation: Tensor, action: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards of steps within bounds, and whether an episode ends there (a fall in training does), bool, `[...]` each."""
    rows = tuple(observation.shape[:-1])
    try:
        reward = spec.reward(observation, action, following)
    except Exception as error:
        fault = f"{spec.name}: the reward function raised {type(error).__name__}: {error}"
        raise EnvError(fault, f"mend it; it is given observations and actions of {rows} rows") from error
    if not isinstance(reward, Tensor) or reward.shape != rows:
        shape = tuple(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
        fault = f"{spec.name}: the reward function gave {shape} for observations {tuple(observation.shape)}"
        raise EnvError(fault, f"let it return one number a row, {rows}")
    ended = spec.termination(following)
    return reward, ended if spec.training_termination is None else ended | spec.training_termination(following)


@torch.no_grad()
def branched_rollouts(
    dynamics: HistoryDynamics,
    act: Callable[[TensorDictBase], Tensor],
    start: TensorDictBase,
    steps: int,
    generator: torch.Generator,
) -> TensorDict:
    """Imagined transitions of k = `steps` steps from each of N histories (M3PO Algorithm 2, lines 7-10).

    Real histories and a small k are branches; empty histories at initial states and k = the horizon are full-model
    rollouts. A rollout ends where the family's termination says so; each step of it asks a head drawn anew.

    `act` maps histories `[N]` to actions `[N, A]`; `start` `[N]` has `inputs` (histories) and `observation` `[N, S]`. What comes
    back is what `data.windows.transition` takes, of every imagined step, batch `[at most N k]`.
    """
    spec, inputs, observation = dynamics.spec, start["inputs"], start["observation"]
    endless, pieces = spec.termination is never and spec.training_termination is None, list[TensorDict]()
    while len(pieces) < steps and len(observation):
        count = len(observation)
        action = act(inputs)
        head = torch.randint(dynamics.members, (count, 1), generator=generator)
        noise = torch.randn(count, 1, spec.target_dim, generator=generator).to(observation.device)
        asked = observation.unsqueeze(1), action.unsqueeze(1)
        following = dynamics.imagine(*asked, inputs, head, noise).squeeze(1)
        require_imaginable(following)
        reward, terminated = outcome(spec, observation, action, following)
        pair, current = dynamics.inputs.pair(observation, action, following), dynamics.inputs.current(following)
        step = {"pairs": torch.cat([inputs["pairs"], pair.unsqueeze(1)], 1)}
        step["mask"] = torch.cat([inputs["mask"], torch.ones_like(inputs["mask"][:, :1])], 1)
        step |= {"current": inputs["current"], "following": current, "action": action}
        step |= {"reward": reward.unsqueeze(-1), "terminated": terminated.float().unsqueeze(-1)}
        pieces.append(TensorDict(step, batch_size=[count]))
        inputs = TensorDict({"pairs": step["pairs"][:, 1:], "mask": step["mask"][:, 1:], "current": current}, [count])
        observation = following
        if not endless and len(pieces) < steps:
            inputs, observation = inputs[~terminated], following[~terminated]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


@torch.no_grad()
def trajectories(
    model: Model,
    belief: TensorDict,
    observation: Tensor,
    action: Tensor,
    follow: Callable[[TensorDict, TensorDictBase], TensorDict] | None = None,
) -> Tensor:
    """Where actions `[M, H, A]` lead from observations `[M, S]`, each member on a way of its own: `[E, M, H, S]`.

    Means, kept to the range of the data, as all that is imagined. `follow` makes the belief `[M E]` after an
    imagined step of the one before it; None keeps it.
    """
    rows, members, device = len(observation), model.members, model.device
    row, member = torch.arange(rows * members, device=device), torch.arange(members, device=device).repeat(rows)
    belief, seen = belief[row // members], observation.to(device)[row // members]
    found = []
    for taken in action.to(device)[row // members].unbind(1):
        expected = model.predictions(seen.unsqueeze(1), taken.unsqueeze(1), belief)[member, row, 0]
        following = torch.clamp(expected, model.low, model.high)
        if follow is not None:
            belief = follow(belief, transition(seen, taken, following))
        found.append(following)
        seen = following
    return torch.stack(found, 1).unflatten(0, (rows, members)).transpose(0, 1)


def require_imaginable(values: Tensor) -> None:
    """Raise DivergedError if imagined states, or the rewards of such, are not finite."""
    if not bool(torch.isfinite(values).all()):
        raise DivergedError(
            "an imagined state is not finite",
            "choose more loop.model_steps, a smaller dynamics.lr, or smaller search.bounds",
        )


def mean_return(rollout: TensorDict, spec: EnvSpec) -> Tensor:
    """Return of an episode of a rollout `[..., T]`, in the family's unit.

    Total reward over the number of episodes: those that ended, or, where none ends early, the steps over the horizon. So
    it is the same for streams that run on over the ends of episodes and for streams of one episode each.
    """
    reward, done = rollout["next", "reward"], rollout["next", "done"]
    episodes = torch.clamp_min(done.sum(), reward.numel() / spec.horizon)
    total = reward.sum() / episodes
    return total / spec.horizon if spec.unit == "step" else total
