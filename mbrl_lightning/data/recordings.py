"""Recorded transitions as Minari datasets (minari.farama.org): those of a run written, anybody's read.

A dataset has spaces and episodes. What makes a task stands in an episode's metadata as `task`, the values of the P numbers whose
names are the dataset's `parameters`; without it each dataset is a task of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import one_hot

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError, EnvError, StorageError
from mbrl_lightning.runs.storage import storage_errors

NAME = re.compile(r"(?:[-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")


def minari() -> Any:
    """The library, or a ConfigError that names the extra."""
    try:
        return importlib.import_module("minari")
    except ImportError as error:
        raise ConfigError(f"minari does not load: {error}", "pip install 'mbrl_lightning[offline]'") from error


@dataclass
class Episode:
    """One recorded episode: transitions `[1, T]` as `TaskBuffer.extend` takes them, and its task `[P]`, NaN where not told."""

    data: TensorDict
    task: tuple[float, ...]
    exploratory: bool
    source: str


@dataclass
class Recordings:
    """Episodes of one or several datasets, with the spaces that they share."""

    episodes: list[Episode]
    parameters: tuple[str, ...]
    names: tuple[str, ...]  # of the observation's entries
    actions: int
    discrete: bool
    horizon: int

    def fill(self, buffer: TaskBuffer, episodes: Sequence[Episode] | None = None) -> None:
        """Put these episodes (None: all) into a buffer whose tasks have as many parameters, by task."""
        index: dict[tuple[str, str], Tensor] = {}
        for episode in self.episodes if episodes is None else episodes:
            task = torch.tensor([episode.task], dtype=torch.float64)
            told = bool(torch.isfinite(task).all())
            key = ("" if told else episode.source, str(episode.task))
            if key not in index:
                index[key] = buffer.index_of(task) if told else buffer.add_tasks(task)
            buffer.extend(episode.data, index[key], episode.exploratory)


def pieces(data: TensorDict) -> list[Tensor]:
    """Row numbers of each stretch of a buffer's transitions `[N]` that follow one another in one episode of one task."""
    order = torch.from_numpy(np.lexsort((data["age"].numpy(), data["episode"].numpy())))
    episode, age, task = (data[name][order] for name in ("episode", "age", "task"))
    new = (episode[1:] != episode[:-1]) | (age[1:] != age[:-1] + 1) | (task[1:] != task[:-1])
    return list(order.tensor_split((new.nonzero().squeeze(-1) + 1).tolist()))


def write(real: TaskBuffer, family: TaskFamily, name: str, facts: dict[str, Any]) -> tuple[int, int]:
    """Write a buffer as the dataset `name`; how many episodes and transitions it has.

    Raises:
        ConfigError: the name is none of Minari's, or there is such a dataset.
    """
    if not NAME.fullmatch(name):  # Minari would find out when it has written, and list no dataset again
        raise ConfigError(f"out={name}: no name of a dataset", "write (namespace/)name-v0, such as cartpole/random-v0")
    library, spec, data = minari(), family.spec, real.transitions()
    buffers: list[Any] = []
    told: list[dict[str, Any]] = []
    for rows in pieces(data):
        part = data[rows]
        observation = torch.cat([part["observation"], part["next", "observation"][-1:]])
        action = part["action"].argmax(-1) if spec.discrete else part["action"]
        ended = part["next", "terminated"].squeeze(-1).numpy()
        truncated = np.zeros_like(ended)
        truncated[-1] = not ended[-1]
        buffers.append(
            library.data_collector.EpisodeBuffer(
                id=len(buffers),
                observations=observation.numpy(),
                actions=action.numpy(),
                rewards=part["next", "reward"].squeeze(-1).numpy(),
                terminations=ended,
                truncations=truncated,
            )
        )
        task = real.tasks[part["task"][0]].numpy()
        told.append({"task": task, "exploratory": bool(part["exploratory"].all()), "first_step": int(part["age"][0])})
    seen = Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)
    taken = Discrete(spec.action_dim) if spec.discrete else Box(-1.0, 1.0, (spec.action_dim,), np.float32)
    try:
        with warnings.catch_warnings(), storage_errors(Path(name)):
            warnings.simplefilter("ignore")  # of authors and environments that are not told
            dataset = library.create_dataset_from_buffers(name, buffers, observation_space=seen, action_space=taken)
    except ValueError as error:
        raise ConfigError(f"out={name}: {error}", "choose a name that is not taken") from error
    dataset.storage.update_episode_metadata(told)
    about = {
        "parameters": list(family.parameters),
        "observation": list(spec.observation_names),
        "horizon": spec.horizon,
    }
    dataset.storage.update_metadata({"mbrl_lightning": json.dumps(facts | about)})
    return len(buffers), len(data)


def read(names: Sequence[str], spec: EnvSpec | None = None, parameters: Sequence[str] | None = None) -> Recordings:
    """The episodes of datasets, by name or by folder.

    Args:
        names: at least one.
        spec: of the family that they must fit, if they are for one.
        parameters: of its tasks.

    Raises:
        ConfigError: there is no such dataset, or its spaces, types, tasks or version do not fit.
        EnvError: a number is not finite.
        StorageError: a dataset cannot be read.
    """
    found: Recordings | None = None
    for name in names:
        dataset = _opened(name)
        about = json.loads(dataset.storage.metadata.get("mbrl_lightning", "{}"))
        width, actions, scale = _spaces(name, dataset.observation_space, dataset.action_space)
        own = tuple(about.get("parameters", parameters or ("dataset",)))
        entries = tuple(about.get("observation", (f"observation {number}" for number in range(width))))
        here = Recordings([], own, entries, actions, scale is None, about.get("horizon", 0))
        found = found or here
        wanted = (len(found.names), found.actions, found.discrete, found.parameters)
        if spec is not None:
            wanted = (spec.observation_dim, spec.action_dim, spec.discrete, tuple(parameters or own))
        given = (width, actions, scale is None, own)
        if given != wanted:
            labels = "observations", "actions", "discrete", "parameters"
            pairs = [f"{label} {a}, not {b}" for label, a, b in zip(labels, given, wanted, strict=True) if a != b]
            raise ConfigError(f"{name}: it has {'; '.join(pairs)}", "give datasets of one body and one kind of task")
        try:
            found.episodes += _episodes(name, dataset, scale, actions, own)
        except (OSError, KeyError) as error:  # of a file cut off, or one that is not there
            raise _unreadable(name, error) from error
        found.horizon = max([here.horizon, found.horizon, *(len(e.data[0]) for e in found.episodes)])
    if len({*names}) < len(names):
        raise ConfigError(f"data={','.join(names)}: a dataset is named twice", "name each once")
    if found is None or len(found.episodes) < 2:
        count = 0 if found is None else len(found.episodes)
        cause = f"{', '.join(names) or 'data='}: {count} episode in all, and one must be left to test on"
        raise ConfigError(cause, "record at least two episodes, or give more datasets")
    return found


def _opened(name: str) -> Any:
    library = minari()
    try:
        folder = Path(name) / "data"
        return library.MinariDataset(folder) if folder.is_dir() else library.load_dataset(name)
    except FileNotFoundError as error:
        known = "what `minari list local` shows"
        with contextlib.suppress(ValueError, OSError):  # a folder there that is none of Minari's names
            known = ", ".join(library.list_local_datasets()) or "none"
        raise ConfigError(
            f"data={name}: no such dataset here; there are: {known}", "`minari list local` shows them"
        ) from error
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise _unreadable(name, error) from error
    except (ValueError, AssertionError) as error:  # a name that is none, a version that it does not read
        raise ConfigError(
            f"data={name}: {error}", f"minari {library.__version__} is here; `minari list local` shows more"
        ) from error


def _unreadable(name: str, error: Exception) -> StorageError:
    return StorageError(f"data={name}: cannot be read ({error})", "record or download it again")


def _spaces(name: str, seen: Any, taken: Any) -> tuple[int, int, tuple[Any, Any] | None]:
    """Widths of observation and action, and the ends of the latter (None: discrete)."""
    remedy = "flatten it where it is recorded (gymnasium.wrappers.FlattenObservation), or choose another dataset"
    if type(seen) is not Box or len(seen.shape) != 1 or seen.dtype.kind != "f":
        raise ConfigError(f"{name}: observations are {seen}, not a row of floating-point numbers", remedy)
    if type(taken) is Discrete and taken.start == 0:
        return seen.shape[0], int(taken.n), None
    if type(taken) is not Box or len(taken.shape) != 1 or not (taken.is_bounded() and taken.dtype.kind == "f"):
        raise ConfigError(
            f"{name}: actions are {taken}, neither bounded numbers in a row nor choices from 0 on", remedy
        )
    return seen.shape[0], taken.shape[0], (taken.low, taken.high)


def _episodes(
    name: str, dataset: Any, scale: tuple[Any, Any] | None, actions: int, parameters: tuple[str, ...]
) -> list[Episode]:
    found = []
    facts = dataset.storage.get_episode_metadata(dataset.episode_indices)
    for episode, told in zip(dataset.iterate_episodes(), facts, strict=True):
        columns = {"observations": episode.observations, "rewards": episode.rewards, "actions": episode.actions}
        for column, values in columns.items():
            if len(values) != len(episode.terminations) + (column == "observations"):
                cause = f"{name}: episode {episode.id} has {len(values)} {column} for {len(episode.terminations)} steps"
                raise ConfigError(cause, "leave that episode out; there is one observation more than steps")
            bad = np.argwhere(~np.isfinite(np.asarray(values, dtype=np.float64)))
            if len(bad):
                where = f"{name}: episode {episode.id}, step {bad[0][0]}"
                raise EnvError(f"{where}: {column} has a number that is not finite", "leave that episode out")
        seen = torch.tensor(np.asarray(episode.observations), dtype=torch.float32)
        if scale is None:
            taken = one_hot(torch.tensor(np.asarray(episode.actions)).long().flatten(), actions).float()
        else:
            low, high = scale
            taken = torch.tensor(2 * (np.asarray(episode.actions) - low) / (high - low) - 1, dtype=torch.float32)
        ended = torch.tensor(np.asarray(episode.terminations)).bool().unsqueeze(-1)
        done = ended.clone()
        done[-1] = True
        reward = torch.tensor(np.asarray(episode.rewards), dtype=torch.float32).unsqueeze(-1)
        after = {
            "observation": seen[1:],
            "reward": reward,
            "terminated": ended,
            "truncated": done & ~ended,
            "done": done,
        }
        following = TensorDict(after, batch_size=[len(taken)])
        data = TensorDict(
            {"observation": seen[:-1], "action": taken.clamp(-1, 1), "next": following}, batch_size=[len(taken)]
        )
        task = tuple(float(value) for value in np.atleast_1d(told.get("task", np.full(len(parameters), np.nan))))
        if len(task) != len(parameters):
            cause = f"{name}: episode {episode.id} has a task of {len(task)} numbers, its parameters are {', '.join(parameters)}"
            raise ConfigError(cause, "give each episode's metadata `task` a value for each of them")
        found.append(Episode(data.unsqueeze(0), task, bool(told.get("exploratory", True)), name))
    return found
