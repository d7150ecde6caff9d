"""A film of the deployed policy in an unseen task: without and with what it has learned of it, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.console import log
from mbrl_lightning.data.collect import transition
from mbrl_lightning.measuring.diagnostics import Trained, believed, meta_test
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.report import video


def film(loop: Trained, path: Path) -> Path | None:
    """Film the first unseen task (headless), as MP4 and GIF; a warning and None where nothing can render.

    200 steps of it, or enough for two switches of a hidden task. Where a method learns of the task before it acts, or has a
    control that does not adapt, both stand side by side, from the same initial state.
    """
    test, family = meta_test(loop), loop.family
    steps = min(max(200, 5 * (family.switch_every or 0) // 2), family.spec.horizon)
    shown = sides(test, family.test[:1])
    seed = int(torch.randint(2**31, (), generator=test.generator))
    try:
        clips = [list(_played(loop, belief, steps, seed, caption)) for caption, belief in shown.items()]
    except Exception as error:  # no display driver is no reason to lose a run
        log.warning("no video: %s", error)
        return None
    return video.write_video(video.side_by_side(clips), path, fps=25)


def sides(test: MetaTest, task: Tensor) -> dict[str, TensorDict]:
    """Beliefs `[1]` about one task `[1, P]` to be shown beside each other, by caption; the last is what is deployed."""
    size, own = test.algorithm.shots(full=False)[0], believed(test, task)
    if controls := test.algorithm.controls(own):
        name, control = next(iter(controls.items()))
        return {name.replace("_", " "): control, "adapted": own}
    if size:
        return {"nothing known of the task": test.algorithm.begin(1), f"after {size} transitions": own}
    return {"": own}


def _played(loop: Trained, belief: TensorDict, steps: int, seed: int, caption: str) -> Iterator[video.Frames]:
    simulator, spec, total = loop.family.simulate(loop.family.test[:1]), loop.family.spec, 0.0
    try:
        observation = simulator.reset(torch.Generator().manual_seed(seed))
        for _ in range(steps):
            frame = simulator.render(0)
            yield video.captioned(frame, f"{caption}: return {total:,.1f}") if caption else frame
            action, belief = loop.algorithm.act(belief, observation)
            following = simulator.step(action)
            belief = loop.algorithm.adapt(belief, transition(observation, action, following))
            total += float(spec.reward(observation, action.clamp(-1, 1), following).sum())
            observation = following
    finally:
        simulator.close()
