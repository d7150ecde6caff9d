"""Commands: kept as long as asked, turned into actions by joint feedback, stored beside the actions."""

from __future__ import annotations

import pytest
import torch
from fakes import Says, counter_family, generator, plain_spec
from tensordict import TensorDict

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Uniform, collect
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.decisions import Decisions
from mbrl_lightning.errors import ConfigError


def test_feedback_by_hand():
    control = Control(plain_spec(joints=((0, 1), (2, 0))), feedback=(2.0, 0.5))
    action = control.action(torch.tensor([[0.1, 0.2, -0.4]]), torch.tensor([[0.5, 0.9]]))
    # 0.5 - 2 * 0.1 - 0.5 * 0.2 = 0.2;  0.9 + 2 * 0.4 - 0.5 * 0.1 = 1.65, clipped
    assert torch.allclose(action, torch.tensor([[0.2, 1.0]]))


def test_direct_choices_are_actions_and_leave_the_belief_alone():
    control, belief = Control(plain_spec()), TensorDict({}, batch_size=[2])
    assert control.begin(belief) is belief
    choice = torch.full((2, 2), 7.0)
    action, after = control.act(lambda held: (choice, held), belief, torch.zeros(2, 3))
    assert action is choice
    assert after is belief


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [({"feedback": (1.0, 0.1)}, r"policy.feedback=\[\]"), ({"hold": 11}, "policy.hold of at most 10")],
)
def test_what_cannot_be_is_refused(arguments, remedy):
    with pytest.raises(ConfigError, match=remedy):
        Control(plain_spec(), **arguments)


def episodes(hold: int = 3, steps: int = 20, horizon: int = 8, **fields) -> tuple[TensorDict, TaskBuffer]:
    """Random commands in two counters, whose episodes are cut at the horizon; and the same at rest, in parts of four."""
    family = counter_family(horizon, **fields)
    uniform = Uniform(Control(family.spec, hold=hold))
    simulator = family.simulate(family.test[:2])
    data = collect(simulator, family.spec, uniform, uniform.begin(2), steps, generator(), generator(1))
    real = TaskBuffer(1)
    real.add_tasks(family.test[:2])
    for part in data.split(4, 1):
        real.extend(part, torch.arange(2), exploratory=True, first_episode=0)
    return data, real


def test_a_command_is_kept_and_begun_anew_with_each_episode():
    data, _ = episodes()
    command, age = data["action"][0].squeeze(-1), data["age"][0]
    for now in range(1, len(age)):
        assert bool(command[now] == command[now - 1]) == bool(age[now] % 3 != 0), now
    assert "command" not in data.keys()  # noqa: SIM118 - actions are commands here


def test_with_feedback_the_command_is_kept_beside_the_actions_made_of_it():
    family = counter_family(joints=((0, 1),))
    uniform = Uniform(Control(family.spec, feedback=(0.01, 0.0), hold=3))
    data = collect(
        family.simulate(family.test[:2]), family.spec, uniform, uniform.begin(2), 6, generator(), generator(1)
    )
    made = (data["command"] - 0.01 * data["observation"][..., :1]).clamp(-1, 1)
    assert torch.allclose(data["action"], made)
    assert torch.equal(data["command"][:, 0], data["command"][:, 2])
    assert not torch.equal(data["command"], data["action"])
    real = TaskBuffer(1)
    real.extend(data, real.add_tasks(family.test[:2]), exploratory=True)
    chosen = data["command"][:, ::3].flatten().sort().values
    assert torch.equal(Decisions(real, 3).rows.columns["command"].flatten().sort().values, chosen)


def decisions_by_hand(data: TensorDict, hold: int) -> list[tuple[float, ...]]:
    """(first observation, command, last observation, reward, ended, task) of every decision that is over, one by one."""
    found = []
    for row in range(len(data)):
        now = 0
        while now < data.shape[1]:
            last, total = now, 0.0
            while True:
                total += float(data["next", "reward"][row, last])
                ended, done = (bool(data["next", name][row, last]) for name in ("terminated", "done"))
                if ended or last - now == hold - 1 or done or last == data.shape[1] - 1:
                    break
                last += 1
            if ended or last - now == hold - 1:
                before, after = data["observation"][row, now, 0], data["next", "observation"][row, last, 0]
                found.append((float(before), float(data["action"][row, now]), float(after), total, float(ended), row))
            now = last + 1
    return sorted(found)


@pytest.mark.parametrize("hold", [2, 3, 5])
@pytest.mark.parametrize("piecewise", [False, True])
def test_decisions_are_those_found_one_by_one(hold, piecewise):
    # the counter's thirteenth count ends an episode: most decisions are whole, some are cut by the end, some by time
    data, real = episodes(hold, steps=40, termination=lambda following: following[..., 0] % 100 == 7)
    whole = Decisions(real, hold)
    if piecewise:
        parts, again = TaskBuffer(1), data.split(4, 1)
        parts.add_tasks(real.tasks)
        parts.extend(again[0], torch.arange(2), exploratory=True, first_episode=0)
        whole = Decisions(parts, hold)
        for part in again[1:]:
            parts.extend(part, torch.arange(2), exploratory=True, first_episode=0)
            whole.read()
    rows = whole.rows[torch.arange(len(whole.rows))]
    columns = [rows[name][:, 0] for name in ("observation", "command", "following", "reward", "terminated")]
    assert sorted(zip(*[c.tolist() for c in (*columns, rows["task"])], strict=True)) == decisions_by_hand(data, hold)
    assert len(rows) > 10


def test_choices_of_one_step_are_decisions_without_a_command():
    family = counter_family()
    agent = Says(lambda observation: torch.full((len(observation), 1), 0.5))
    data = collect(family.simulate(family.test[:2]), family.spec, agent, agent.begin(2), 6, generator())
    real = TaskBuffer(1)
    real.add_tasks(family.test[:2])
    real.extend(data, torch.arange(2), exploratory=False)
    drawn = Decisions(real, 1).draw(5, torch.tensor([[1.0], [2.0]]), generator())
    assert drawn["command"].unique().tolist() == [0.5]
    assert set(drawn["latent"].flatten().tolist()) <= {1.0, 2.0}
    assert torch.equal(drawn["following"][:, 0], drawn["observation"][:, 0] + 1)
