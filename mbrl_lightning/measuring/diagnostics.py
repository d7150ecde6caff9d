"""What a run looks like: imagined against real, the latent space, curves. Drawn from a loop's present state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.console import log
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import transition
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.measuring.hidden_task import after_switches
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.models.measures import until_fall
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.report import figures
from mbrl_lightning.report.switches import switches
from mbrl_lightning.runs.results import Results

SHOWN_TASKS, SHOWN_STEPS, SHOWN_AFTER, LATENT_TASKS = 3, 60, 100, 60


class Trained(Protocol):
    """What of a `MetaLoop` is looked at."""

    cfg: Config
    family: TaskFamily
    algorithm: Algorithm
    real: TaskBuffer
    step: GradientStep
    results: Results


def draw(loop: Trained, folder: Path) -> list[Path]:
    """Draw every figure there is data for into `folder`, and tell the files; one that fails costs a warning, never the run."""
    rows, algorithm = list(loop.results.rows), loop.algorithm
    folder.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, Callable[[Path], Path | None]] = {}
    jobs["learning_curve"] = partial(figures.learning_curve, rows, "return/policy")
    if len(algorithm.shots(full=True)) > 1:
        jobs["adaptation_curve"] = partial(figures.adaptation_curve, rows)
    if algorithm.model is not None:
        jobs["imagined_against_real"] = partial(_imagined_against_real, loop)
    if algorithm.model is not None and algorithm.shots(full=False) != [0]:
        jobs["latent_space"] = partial(_latent_space, loop)
    jobs["outputs"] = partial(_outputs, loop)
    if loop.family.switch_every:
        jobs["switches"] = partial(_switches, loop)
    if any(row.metric == "imagined/return" for row in rows):
        jobs["exploitation"] = partial(figures.exploitation, rows)
    written: list[Path] = []
    for name, job in jobs.items():
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                drawn = job(folder / f"{name}.png")
            written += [] if drawn is None else [drawn]
        except Exception as error:  # a picture is never worth a run
            log.warning("figure not drawn: %s", error)
    return written


def meta_test(loop: Trained) -> MetaTest:
    """A meta-test with a random stream of its own, whose rows go nowhere."""
    generator = torch.Generator().manual_seed(loop.cfg.seed + 1)
    return MetaTest(loop.algorithm, loop.real, loop.step, generator, lambda *_, **__: None)


def believed(test: MetaTest, tasks: Tensor) -> TensorDict:
    """What the method believes of `tasks` `[M, P]` after the context that its curves are for."""
    size = test.algorithm.shots(full=False)[0]
    return test.adapt(test.context(tasks, max(size, 1)), size)


@torch.no_grad()
def imagined_and_real(loop: Trained, tasks: Tensor) -> tuple[TensorDict, TensorDict]:
    """Imagined and real episodes `[M, T]` of the deployed policy in `tasks` `[M, P]`, from the same initial states.

    T is at most SHOWN_STEPS; the imagined episodes stand still after termination.
    """
    test = meta_test(loop)
    belief = believed(test, tasks)
    real = test.episodes(tasks, belief)[:, 0]
    steps = min(real.shape[1], SHOWN_STEPS)
    return _standing_still(imagined_episodes(loop.algorithm, belief, real["observation"][:, 0], steps)), real[:, :steps]


def imagined_episodes(algorithm: Algorithm, belief: TensorDict, observation: Tensor, steps: int) -> TensorDict:
    """Episodes `[M, T]` of T = `steps` from `observation` `[M, S]` in the mean of the model's members; the belief grows along."""
    model, rows = algorithm.model, []
    assert model is not None
    for _ in range(steps):
        action, belief = algorithm.act(belief, observation)
        now, chosen = (part.to(model.device).unsqueeze(1) for part in (observation, action))
        following = torch.clamp(model.predict(now, chosen, belief).squeeze(1), model.low, model.high).cpu()
        row = transition(observation, action, following)
        belief = algorithm.adapt(belief, row)
        row["next", "reward"] = model.spec.reward(observation, row["action"], following).unsqueeze(-1)
        row["next", "done"] = model.spec.termination(following).unsqueeze(-1)
        rows.append(row)
        observation = following
    return torch.stack(rows, 1)


def _standing_still(imagined: TensorDict) -> TensorDict:
    # an imagined episode runs on after an end; a real evaluation episode stays where it ended
    done = imagined["next", "done"].squeeze(-1)
    last = torch.where(done.any(1), done.int().argmax(1), done.shape[1] - 1)
    final = imagined["next", "observation"][torch.arange(len(done)), last].unsqueeze(1)
    past = (torch.arange(done.shape[1]) > last.unsqueeze(1)).unsqueeze(-1)
    for key in ("observation", ("next", "observation")):
        imagined[key] = torch.where(past, final, imagined[key])
    return imagined


def _imagined_against_real(loop: Trained, path: Path) -> Path:
    imagined, real = imagined_and_real(loop, loop.family.test[:SHOWN_TASKS])
    shown = imagined["observation"].numpy(), real["observation"].numpy()
    return figures.imagined_against_real(*shown, loop.family.spec.observation_names, path)


def _outputs(loop: Trained, path: Path) -> Path | None:
    """Error of each output before and after adapting inside episodes of unseen tasks, where a method does."""
    test, spec, tasks = meta_test(loop), loop.family.spec, loop.family.test[:SHOWN_TASKS]
    played: list[TensorDict] = []

    def play() -> TensorDict:
        played.append(until_fall(test.episodes(tasks, believed(test, tasks)), spec))
        return played[0]

    errors = loop.algorithm.output_errors(play)
    if errors is None:
        return None
    data, episodes = loop.real.transitions(), played[0]
    trained = spec.change(data["observation"], data["next", "observation"]).var(0)
    now = spec.change(episodes["observation"], episodes["next", "observation"])[episodes["valid"]].var(0)
    panels = {"training": (errors / trained).numpy(), "these episodes": (errors / now).numpy()}
    note = "squared error of the next changes: hollow, as the model is; filled, adapted to the last transitions"
    titled = {f"share of its variance in {where}": share for where, share in panels.items()}
    return figures.before_and_after(titled, spec.observation_names, path, note)


def _latent_space(loop: Trained, path: Path) -> Path | None:
    """Latents of fresh training tasks, where a belief has their mean."""
    test = meta_test(loop)
    tasks = loop.family.sample(LATENT_TASKS, test.generator)
    belief = believed(test, tasks)
    if "loc" not in belief.keys():  # noqa: SIM118 - a TensorDict has no `in`
        return None
    return figures.latent_space(belief["loc"].cpu().numpy(), tasks.numpy(), loop.family.parameters, path)


def _switches(loop: Trained, path: Path) -> Path:
    test, tasks = meta_test(loop), loop.family.test
    episodes = test.episodes(tasks, believed(test, tasks))[:, 0]
    after, switched = after_switches(episodes, SHOWN_AFTER)
    first = episodes[0][episodes["valid"][0]]
    reward, hidden = first["next", "reward"].squeeze(-1), first["hidden"][:, 0]
    return switches(after, switched[:, 0], reward, hidden, loop.family.parameters[0], path)
