"""A cart-pole of unknown masses, swung up by an exported policy, with numpy and onnxruntime alone.

python -m mbrl_lightning.export run=runs/cartpole/gssm_aps/seed0 out=policy.onnx
python examples/drive_onnx.py policy.onnx
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

file = Path(sys.argv[1])
session = onnxruntime.InferenceSession(file)
contract = json.loads(session.get_modelmeta().custom_metadata_map["mbrl_lightning"])
sessions = {part: onnxruntime.InferenceSession(file.with_name(name)) for part, name in contract["parts"].items()}
draws = np.random.default_rng(0)


def call(part, belief, **given):
    """What a part gives for the belief and what else it is given, and the belief after it: `after.x` is the next `belief.x`."""
    wanted = {entry["name"] for entry in contract["inputs"][part]}
    names = [entry["name"] for entry in contract["outputs"][part]]
    out = dict(zip(names, sessions[part].run(names, {k: v for k, v in (belief | given).items() if k in wanted})))
    return out, belief | {f"belief.{name[6:]}": value for name, value in out.items() if name.startswith("after.")}


def moved(state, action, cart, pole, length=0.6, gravity=9.82, friction=0.1):
    """The body: (x, x', angle, angle') 0.1 s later, pushed with 10 N times the action."""
    _, speed, angle, spin = state
    force, sin, cos, total = 10 * float(action), np.sin(angle), np.cos(angle), cart + pole
    pull = -2 * pole * length * spin**2 * sin + 3 * pole * gravity * sin * cos + 4 * force - 4 * friction * speed
    turn = -3 * pole * length * spin**2 * sin * cos + 6 * total * gravity * sin + 6 * (force - friction * speed) * cos
    push, twist = pull / (4 * total - 3 * pole * cos**2), turn / (length * (4 * total - 3 * pole * cos**2))
    return (state + 0.1 * np.array([speed, push, spin, twist])).astype(np.float32)


def episode(masses, choose):
    """25 steps from hanging: observations before and after `[1, K, 4]`, actions `[1, K, 1]`."""
    state, seen = (np.array([0, 0, np.pi, 0]) + 0.02 * draws.normal(size=4)).astype(np.float32), []
    for _ in range(contract["horizon"]):
        action = choose(state)
        before, state = state, moved(state, action[0], *masses)
        seen.append((before, action, state))
    return [np.stack(column)[None] for column in zip(*seen)]


for masses in ((1.2, 0.75), (1.8, 0.95)):
    _, belief = call("begin", {})
    explored = [episode(masses, lambda _: draws.uniform(-1, 1, 1).astype(np.float32)) for _ in range(4)]
    context = [np.concatenate(column, 1) for column in zip(*explored)]
    _, belief = call("adapt", belief, **dict(zip(("observation", "action", "next_observation"), context)))
    act = functools.partial(call, "act", belief)
    _, _, after = episode(masses, lambda state, act=act: act(observation=state[None])[0]["action"][0])
    tip = after[0, :, 0] + 0.6 * np.sin(after[0, :, 2]), 0.6 * (np.cos(after[0, :, 2]) - 1)
    print(
        f"cart {masses[0]} kg, pole {masses[1]} kg: mean reward {np.expm1(-(tip[0] ** 2 + tip[1] ** 2) / 0.125).mean():.3f}"
    )
