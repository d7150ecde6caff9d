"""A film of the deployed policy in an unseen task, beside what it is to be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.console import log
from mbrl_lightning.data.collect import Agent, Uniform, transition
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.measuring.diagnostics import Trained, believed, meta_test
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.report import video


def film(loop: Trained, path: Path) -> Path | None:
    """Film the first unseen task (headless), as MP4 and GIF; a warning and None where nothing can render.

    200 steps of it, or enough for two switches of a hidden task, in three seconds or more. Beside it, from the same start,
    is what it would do if it did not adapt; where nothing is adapted to, random actions.
    """
    test, family = meta_test(loop), loop.family
    steps = min(max(200, 5 * (family.switch_every or 0) // 2), family.spec.horizon)
    shown = sides(test, family.test[:1])
    seed = int(torch.randint(2**31, (), generator=test.generator))
    try:
        clips = [list(_played(family, *side, steps, seed, caption)) for caption, side in shown.items()]
    except Exception as error:  # no display driver is no reason to lose a run
        log.warning("no video: %s", error)
        return None
    return video.write_video(video.side_by_side(clips), path, fps=min(25, steps / 3))


def sides(test: MetaTest, task: Tensor) -> dict[str, tuple[Agent, TensorDict]]:
    """Who acts in one task `[1, P]`, with a belief `[1]`, to be compared, by caption; the last is what is deployed."""
    algorithm, own = test.algorithm, believed(test, task)
    size = algorithm.shots(full=False)[0]
    if controls := algorithm.controls(own):
        name, control = next(iter(controls.items()))
        return {name.replace("_", " "): (algorithm, control), "adapted": (algorithm, own)}
    if size:
        beliefs = {"nothing known of the task": algorithm.begin(1), f"after {size} transitions": own}
        return {caption: (algorithm, belief) for caption, belief in beliefs.items()}
    blind = Uniform(algorithm.control)
    return {"random actions": (blind, blind.begin(1)), "the policy": (algorithm, own)}


def _played(
    family: TaskFamily, agent: Agent, belief: TensorDict, steps: int, seed: int, caption: str
) -> Iterator[video.Frames]:
    simulator, spec, total = family.simulate(family.test[:1]), family.spec, 0.0
    try:
        observation = simulator.reset(torch.Generator().manual_seed(seed))
        for _ in range(steps):
            yield video.captioned(simulator.render(0), f"{caption}: return {total:,.1f}")
            action, belief = agent.act(belief, observation)
            following = simulator.step(action)
            belief = agent.adapt(belief, transition(observation, action, following))
            total += float(spec.reward(observation, action.clamp(-1, 1), following).sum())
            observation = following
    finally:
        simulator.close()
