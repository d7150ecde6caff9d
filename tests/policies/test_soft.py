"""SAC on decisions: what is learned from, mirrored data, imagined branches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import generator, plain_spec
from lightning.fabric import Fabric
from tensordict import TensorDict

from mbrl_lightning.config import compose
from mbrl_lightning.data.control import Control
from mbrl_lightning.envs.spec import EnvSpec, exchanged
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.soft import SoftPolicy, SoftSearch

MIRROR = (exchanged((1, 0, 2), (1.0, 1.0, -1.0)), exchanged((1, 0), (1.0, 1.0)))


def config(**words):
    words = {"policy.hidden": [8], "sac.batch": 6, "policy.hold": 2, "dynamics.latent_dim": 2} | words
    return compose({"conf": "half_cheetah", "algorithm": "gssm_aps", "search.method": "sac", **words})


def policy(spec: EnvSpec, **words) -> SoftPolicy:
    torch.manual_seed(0)
    return SoftPolicy(spec, config(**words), 2)


def decisions(rows: int = 6) -> TensorDict:
    draw = generator(3)
    widths = {"observation": 3, "command": 2, "following": 3, "reward": 1, "latent": 2}
    drawn = {name: torch.randn(rows, width, generator=draw) for name, width in widths.items()}
    return TensorDict(drawn | {"terminated": torch.zeros(rows, 1)}, batch_size=[rows])


def test_a_mirrored_transition_is_what_would_have_been_seen_on_the_other_side():
    soft, rows = policy(plain_spec(mirror=MIRROR), **{"sac.mirror": True}), decisions()
    rows["noise"] = torch.zeros(6, 2, 2)
    plain = soft._batch(rows.clone().set("mirrored", torch.zeros(6, 1, dtype=torch.bool)))
    turned = soft._batch(rows.clone().set("mirrored", torch.ones(6, 1, dtype=torch.bool)))
    seen, image = plain["inputs", "current"], turned["inputs", "current"]
    assert torch.equal(image[:, :3], torch.stack([seen[:, 1], seen[:, 0], -seen[:, 2]], -1))
    assert torch.equal(turned["action"], plain["action"].flip(-1))
    assert torch.equal(image[:, 3:], rows["latent"])  # the task is the same one
    assert torch.equal(turned["next", "reward"], plain["next", "reward"])


@pytest.mark.parametrize(
    ("spec", "words", "cause"),
    [(plain_spec(), {"sac.mirror": True}, "no symmetry"), (plain_spec(discrete=True), {}, "continuous actions")],
)
def test_what_cannot_be_is_refused(spec, words, cause):
    with pytest.raises(ConfigError, match=cause):
        policy(spec, **words)


def test_the_policy_learns_every_second_time_where_it_is_delayed():
    soft = policy(plain_spec(), **{"sac.policy_delay": 2})
    step, moved = GradientStep(Fabric(accelerator="cpu", devices=1)), []
    optimizer = torch.optim.Adam(soft.sac.trained_parameters(), lr=1e-2)
    for _ in range(4):
        before = [p.detach().clone() for net in (soft.sac.policy, soft.sac.q) for p in net.parameters()]
        soft.update(decisions(), step, optimizer, generator())
        after = [p for net in (soft.sac.policy, soft.sac.q) for p in net.parameters()]
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        moved.append((any(changed[: len(list(soft.sac.policy.parameters()))]), all(changed[-1:])))
    assert moved == [(True, True), (False, True), (True, True), (False, True)]


class Adds:
    """A model that adds the mean action to each entry; after three steps it says that an episode is over."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec

    def imagine(self, observation, action, belief, noise, members, disturbance):
        return observation + action.mean(-1, keepdim=True)


def test_imagined_decisions_are_steps_under_a_held_command():
    spec = plain_spec(reward=lambda o, a, n: n[..., 0], joints=((0, 1), (1, 2)))
    torch.manual_seed(0)
    search = SoftSearch(spec, config(**{"policy.feedback": [0.5, 0.1]}), 2)
    start, latent = torch.randn(2, 3, 3, generator=generator(1)) / 4, torch.randn(2, 2, generator=generator(2))
    streams = ImaginedStreams(Adds(spec), TensorDict({}, batch_size=[2]), start, 10)
    control = Control(spec, (0.5, 0.1), 2)
    rows = search.branches(streams, control, latent, 2, generator(5))
    assert rows.batch_size == (12,)
    for row in rows:
        state, reward = row["observation"], 0.0
        for _ in range(2):
            state = state + control.action(state, row["command"]).mean()
            reward += float(state[0])
        assert torch.allclose(row["following"], state, atol=1e-6)
        assert float(row["reward"]) == pytest.approx(reward, abs=1e-5)
    # the second decision of a branch begins where the first one ended, and the policy chooses anew
    first, second = rows.view(2, 3, 2).unbind(2)
    assert torch.equal(second["observation"], first["following"])
    assert not torch.equal(second["command"], first["command"])
    assert torch.equal(first["latent"], latent.unsqueeze(1).expand(2, 3, 2))


def test_nothing_is_imagined_beyond_the_end_of_an_episode():
    spec = plain_spec(termination=lambda following: following[..., 0] > 0)
    spec = replace(spec, reward=lambda o, a, n: torch.ones_like(n[..., 0]))
    search = SoftSearch(spec, config(), 2)
    start = torch.tensor([[[-1e3, 0, 0], [1e3, 0, 0]]])  # the second is over after its first step
    streams = ImaginedStreams(Adds(spec), TensorDict({}, batch_size=[1]), start, 10)
    rows = search.branches(streams, Control(spec, hold=2), torch.zeros(1, 2), 3, generator())
    ended = rows["terminated"].squeeze(-1).bool()
    assert len(rows) == 4
    assert ended.sum() == 1
    assert rows["reward"][ended].tolist() == [[1.0]]
    assert rows["reward"][~ended].unique().tolist() == [2.0]
