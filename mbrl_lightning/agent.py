"""A trained method as an object to call: belief and observation in, action and belief out. `mbrl_lightning.load` makes it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn.functional import one_hot

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.collect import begun_anew, collect_in, consecutive, transition
from mbrl_lightning.data.seeds import globals_kept
from mbrl_lightning.envs import family_of
from mbrl_lightning.errors import ConfigError, DivergedError, EnvError
from mbrl_lightning.runs import checkpoint


def restored(cfg: Config, run: Path, device: str = "cpu") -> Agent:
    """See `mbrl_lightning.load`; nothing is drawn from the global generators."""
    family = family_of(cfg.env)
    with globals_kept():
        algorithm = make_algorithm(cfg, family)
    _, state = checkpoint.load(run / "checkpoints", rows=False)
    checkpoint.refuse_other_family(state.get("family"), family.described(), str(run))
    checkpoint.refuse_mismatch(state["algorithm"], algorithm.state_dict(), str(run))
    algorithm.load_state_dict(state["algorithm"])
    try:
        return Agent(algorithm.to(device))
    except (RuntimeError, AssertionError) as error:  # a name of none, one that this PyTorch has not
        raise ConfigError(f"device={device}: {str(error).partition(chr(10))[0][:100]}", "give cpu or cuda") from error


class Agent:
    """What a run has learned, for n environments at once.

    Nothing remembers but the belief, a TensorDict with batch `[n]`, which is handed in and handed back; rows of it can be picked,
    joined and stored. Arrays of numpy are answered with arrays, tensors with tensors on their device. Actions are in [-1, 1], and
    discrete ones numbers, as in the environments that `family.make(task)` gives.

    Attributes:
        algorithm: the method (see `algorithms.base`).
        family: its tasks; `family.make(task)` is a `gymnasium.Env` of one.

    Raises (all that follow):
        ConfigError: a shape that does not fit, nothing to adapt to, a belief of another agent, no model to imagine with.
        EnvError: an observation or action given that is not finite; DivergedError: one chosen.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm, self.family, self.spec = algorithm, algorithm.family, algorithm.spec
        self._start: TensorDict | None = None
        digest = hashlib.sha256()
        for name, value in algorithm.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        self._mark = int.from_bytes(digest.digest()[:7])  # whose a belief is

    # -- the belief

    def begin(self, n: int = 1) -> TensorDict:
        """The belief `[n]` about n environments at the start of their episodes."""
        n = _count("begin: n", n)
        if self._start is None:
            return self._marked(self.algorithm.begin(n))
        if len(self._start) not in (1, n):
            cause = f"begin({n}): episodes of this agent begin with a belief of {len(self._start)} rows"
            raise ConfigError(cause, "give `believing` a belief of one row, or of as many as begin")
        return self._start.expand(n).clone()

    def believing(self, belief: TensorDict) -> Agent:
        """The same agent, whose episodes begin with this belief, of one row or one for each environment."""
        self._own(belief)
        other = copy.copy(self)
        other._start = belief
        return other

    def explore(self, tasks: Tensor, steps: int) -> TensorDict:
        """A context `[n, K]` for `adapt`: K = `steps` transitions of tasks `[n, P]` of the family, gathered as in a meta-test.

        So by random actions, or by the policy where a method learns from its own. Draws come from PyTorch's global generator.
        """
        draws, steps = torch.default_generator, _count("explore: steps", steps)
        tasks = _tensor("tasks", tasks, dtype=torch.float64)
        n = _count("explore: tasks", len(tasks))
        seen = collect_in(self.family, tasks, *self.algorithm.explorer(n), steps, draws, draws)
        return seen.set("action", seen["action"].argmax(-1)) if self.spec.discrete else seen

    def adapt(self, belief: TensorDict, transitions: Mapping[str, Any] | TensorDictBase) -> TensorDict:
        """The belief `[n]` after transitions of the same n environments.

        A context `[n, K]`, in order, is what GSSM, MLSM, PEARL, MAML and MB-MPO learn a task from before they act in it. The one
        step just made, `[n]`, is what M3PO, RL2, GrBAL and ReBAL follow it by as they act, PEARL where tasks switch in it.
        What is of no use to a method leaves its belief as it is, so a loop may always tell every step.

        Args:
            belief: batch `[n]`.
            transitions: `observation` `[n, S]`, `action`, and under `next` `observation`; or `[n, K, S]` and so on.
        """
        try:
            before, taken, after = transitions["observation"], transitions["action"], transitions["next"]["observation"]
        except (KeyError, TypeError, IndexError) as error:
            cause = f"transitions are a {type(transitions).__name__}: {type(error).__name__} {error}"
            remedy = 'give {"observation": ..., "action": ..., "next": {"observation": ...}}'
            raise ConfigError(cause, remedy) from error
        lead = self._lead(before, 2)
        following, action, own = self._observed(after, lead), self._taken(taken, lead), self._own(belief, lead[0])
        seen = transition(self._observed(before, lead), action, following)
        if len(lead) == 2:
            seen = consecutive(self.spec, seen["observation"], action, following)
        return self._marked(self.algorithm.adapt(own, seen.to(self.algorithm.device)).detach())

    # -- acting

    @torch.no_grad()
    def act(self, belief: TensorDict, observation: Any, noise: torch.Generator | None = None) -> tuple[Any, TensorDict]:
        """Actions `[n, A]` (discrete ones `[n]`) for observations `[n, S]`, and the belief after the choice.

        Without a generator for its `noise` it is the best action that the policy knows, else one drawn from it.
        """
        lead = self._lead(observation)
        action, after = self.algorithm.act(self._own(belief, *lead), self._observed(observation, lead), noise)
        if not torch.isfinite(action).all():
            raise DivergedError("the policy's action is not finite", "load an earlier run; is the observation far off?")
        action = action.argmax(-1) if self.spec.discrete else action.clamp(-1, 1)
        return _like(observation, action), self._marked(after)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Stable-baselines3's `predict`: an action for each observation, and the state to hand in with the next ones.

        The state is the belief with the last step, which is adapted to first; rows that `episode_start` `[n]` marks begin anew.
        Without `deterministic` actions are drawn, from PyTorch's global generator.
        """
        rows = observation if isinstance(observation, Tensor) else np.asarray(observation)
        single = rows.ndim == 1
        rows = rows[None] if single else rows
        (n,) = self._lead(rows)
        belief = self.begin(n)
        if state is not None:
            if not isinstance(state, tuple) or len(state) != 3:
                raise ConfigError("a state that is none of predict's", "give what the last predict gave, or None")
            held, before, action = state
            held = self.adapt(held, {"observation": before, "action": action, "next": {"observation": rows}})
            started = np.zeros(n) if episode_start is None else np.ravel(episode_start)
            belief = begun_anew(held, belief, _tensor("episode_start", started, (n,)).bool())
        action, belief = self.act(belief, rows, None if deterministic else torch.default_generator)
        return (action[0] if single else action), (belief, copy.deepcopy(rows), action)

    # -- the model

    @torch.no_grad()
    def imagine(self, belief: TensorDict, observation: Any, actions: Any) -> dict[str, Any]:
        """Where the model expects H actions `[n, H, A]` (discrete ones `[n, H]`) to lead from observations `[n, S]`.

        Returns:
            `observation` `[n, H, S]`, the mean over the E members of the model, and their deviation, `spread` `[n, H, S]`;
            `members` `[E, n, H, S]`, each one's own trajectory, and what it would earn, `reward` `[E, n, H]`. They go on where an
            episode would end.
        """
        if self.algorithm.model is None:
            cause = f"algorithm={self.algorithm.cfg.algorithm} has no model to imagine with: it learns from real steps alone"
            raise ConfigError(cause, "load a run of a method that fits one, such as gssm_aps, mb_mpo, m3po or grbal")
        lead = self._lead(observation)
        horizon = _tensor("actions", actions).shape[1:2]
        seen, taken = self._observed(observation, lead), self._taken(actions, (*lead, *horizon))
        members = self.algorithm.imagine(self._own(belief, *lead), seen, taken.clamp(-1, 1)).cpu()
        before = torch.cat([seen[:, None].expand(len(members), -1, 1, -1), members[:, :, :-1]], 2)
        reward = self.spec.reward(before, taken.clamp(-1, 1).expand(len(members), -1, -1, -1), members)
        mean, spread = members.mean(0), members.std(0, correction=0)
        found = {"observation": mean, "spread": spread, "members": members, "reward": reward}
        return {name: _like(observation, value) for name, value in found.items()}

    # -- what comes in, what goes out

    def _marked(self, belief: TensorDict) -> TensorDict:
        own = torch.full((len(belief),), self._mark, device=self.algorithm.device)
        return belief.clone(False).set("owner", own)

    def _own(self, belief: Any, rows: int | None = None) -> TensorDict:
        """The belief as the algorithm knows it, if it is this agent's and has so many rows (None: any number)."""
        marks = belief.get("owner", None) if isinstance(belief, TensorDictBase) else None
        if marks is None or not bool((marks == self._mark).all()):
            cause = "the belief is none, or of another agent or checkpoint"
            raise ConfigError(cause, "give what begin, act and adapt of this agent gave")
        if rows is not None and len(belief) != rows:
            raise ConfigError(f"a belief of {len(belief)} rows for {rows} environments", "give as many of both")
        return belief.exclude("owner")

    def _lead(self, observation: Any, most: int = 1) -> tuple[int, ...]:
        shape = tuple(_tensor("observation", observation).shape)
        if not 2 <= len(shape) <= 1 + most or 0 in shape:
            what = "0 transitions or environments" if 0 in shape else "no batch"
            wanted = " or a context [n, K, S]" if most > 1 else "; of one, observation[None], and take action[0]"
            raise ConfigError(f"{what}: observations of shape {shape}", f"give those of n environments [n, S]{wanted}")
        return shape[:-1]

    def _observed(self, value: Any, lead: tuple[int, ...]) -> Tensor:
        names = self.spec.observation_names
        seen = _tensor("observation", value, (*lead, len(names)))
        bad = torch.nonzero(~torch.isfinite(seen)).tolist()
        if bad:
            cause = f"row {bad[0][0]} has a non-finite {names[bad[0][-1]]} ({len(bad)} bad entries)"
            raise EnvError(f"{self.spec.name}: the observation of {cause}", "look at the sensor or the simulator")
        return seen

    def _taken(self, value: Any, lead: tuple[int, ...]) -> Tensor:
        """Actions as the algorithm takes them `[*lead, A]`, one-hot where they are discrete."""
        given = _tensor("action", value, lead if self.spec.discrete else (*lead, self.spec.action_dim))
        if not torch.isfinite(given).all():
            raise EnvError(f"{self.spec.name}: an action is not finite", "look at what chose it")
        if not self.spec.discrete:
            return given
        number = given.long()
        if bool(((number < 0) | (number >= self.spec.action_dim)).any()):
            raise ConfigError(f"action {number.tolist()}", f"give numbers from 0 to {self.spec.action_dim - 1}")
        return one_hot(number, self.spec.action_dim).float()


def _count(what: str, n: Any) -> int:
    if not isinstance(n, int | np.integer) or n < 1:
        raise ConfigError(f"{what}={n!r} is no count", "give a whole number, at least 1")
    return int(n)


def _tensor(what: str, value: Any, shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy on the CPU, of the shape that is wanted (None: any)."""
    try:
        given = value.detach().cpu() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
        found = torch.as_tensor(given).to(dtype, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{what}: a {type(value).__name__} is no array of numbers", "give one") from error
    if shape is not None and (tuple(found.shape) != shape or 0 in shape):
        wanted = "which is empty" if 0 in found.shape else f"not {shape}"
        raise ConfigError(f"{what} of shape {tuple(found.shape)}, {wanted}", "give what the task family has")
    return found


def _like(given: Any, value: Tensor) -> Any:
    return value.to(given.device) if isinstance(given, Tensor) else value.cpu().numpy()
