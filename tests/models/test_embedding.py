"""FAMLE's model: Reptile by hand, the most likely embedding, and steps that always begin at what was meta-trained."""

import pytest
import torch
from fakes import generator, plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.methods import FAMLEConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.models.embedding import EmbeddingDynamics

SPEC = plain_spec(2, 2)


def model(situations: int = 3, members: int = 1, **changes) -> EmbeddingDynamics:
    torch.manual_seed(0)
    settings = {"embedding": 2, "inner_steps": 2, "inner_lr": 0.1, "online_steps": 3, "online_lr": 0.1} | changes
    cfg = DynamicsConfig(hidden=8, layers=0, members=members)
    return EmbeddingDynamics(SPEC, cfg, FAMLEConfig(**settings), situations)


def batch(chosen: list[int], steps: int = 2) -> TensorDict:
    draws, shape = generator(4), (len(chosen), steps, 6)
    rows = {"inputs": torch.randn(*shape, 4, generator=draws), "target": torch.randn(*shape, 2, generator=draws)}
    return TensorDict(rows | {"situation": torch.tensor(chosen)}, batch_size=[len(chosen)])


def descended(dynamics: EmbeddingDynamics, situation: int, inputs, target, size: float = 0.1):
    """Weights and embedding of one situation after a plain step on each of the rows `[k, N, ...]`, by autograd."""
    point = [
        *(p.detach().clone() for p in dynamics.decoder.parameters()),
        dynamics.table[:, situation].detach().clone(),
    ]
    names = [name for name, _ in dynamics.decoder.named_parameters()]
    for x, y in zip(inputs, target, strict=True):
        point = [p.requires_grad_() for p in point]
        joined = torch.cat([x, point[-1].expand(len(x), -1)], -1).unsqueeze(0)
        out = dynamics.decoder.evaluate(joined, dict(zip(names, point, strict=False)))
        slopes = torch.autograd.grad((out - y).square().mean(), point)
        point = [(p - size * slope).detach() for p, slope in zip(point, slopes, strict=True)]
    return point


@pytest.mark.parametrize("chosen", [[1], [2, 0]])
def test_a_meta_step_is_reptile_on_weights_and_on_the_embeddings_chosen(chosen):
    dynamics, data = model(), batch(chosen)
    before = [p.detach().clone() for p in dynamics.decoder.parameters()]
    table = dynamics.table.detach().clone()
    optimizer = dynamics.configure_optimizers()
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.3, 0.4 * len(chosen)
    dynamics.training_step(data)["loss"].backward()
    optimizer.step()
    ends = [descended(model(), i, data["inputs"][b], data["target"][b]) for b, i in enumerate(chosen)]
    for index, (old, new) in enumerate(zip(before, dynamics.decoder.parameters(), strict=True)):
        mean = torch.stack([end[index] for end in ends]).mean(0)
        torch.testing.assert_close(new.detach(), old + 0.3 * (mean - old))
    for situation in range(3):
        old, new = table[:, situation], dynamics.table[:, situation].detach()
        wanted = old + 0.4 * (ends[chosen.index(situation)][-1] - old) if situation in chosen else old
        torch.testing.assert_close(new, wanted)


@pytest.mark.parametrize("members", [1, 2])
def test_the_most_likely_embedding_is_the_one_that_predicts_best(members):
    dynamics, draws = model(situations=5, members=members), generator(5)
    inputs = torch.randn(5, 9, 4, generator=draws)
    with torch.no_grad():
        for value in dynamics.parameters():  # members that agree
            value.copy_(value[:1].expand_as(value))
        codes = dynamics.table.unsqueeze(2).expand(-1, -1, 9, -1).flatten(1, 2)
        joined = torch.cat([inputs.flatten(0, 1).expand(members, -1, -1), codes], -1)
        target = dynamics.decoder(joined).mean(0).view(5, 9, 2)
    mask = torch.ones(5, 9, dtype=torch.bool)
    assert dynamics.likely(inputs, target, mask).tolist() == [0, 1, 2, 3, 4]
    target[:, 4:] += 100.0  # not among the last ones
    assert dynamics.likely(inputs, target, mask & (torch.arange(9) < 4)).tolist() == [0, 1, 2, 3, 4]


def test_online_steps_start_at_the_meta_trained_copy_whatever_was_adapted_before():
    dynamics, data = model(), batch([0, 1], steps=1)
    inputs, target, mask = data["inputs"][:, 0], data["target"][:, 0], torch.ones(2, 6, dtype=torch.bool)
    state = {name: value.clone() for name, value in dynamics.state_dict().items()}
    first, again = (dynamics.believe(inputs, target, mask) for _ in range(2))
    assert all(value.equal(again["weights", name]) for name, value in first["weights"].items())
    assert all(value.equal(state[name]) for name, value in dynamics.state_dict().items())
    for row, situation in enumerate(dynamics.likely(inputs, target, mask).tolist()):
        end = descended(dynamics, situation, inputs[row].expand(3, -1, -1), target[row].expand(3, -1, -1))
        for found, wanted in zip(first["weights"].values(), end, strict=True):
            torch.testing.assert_close(found[row].flatten(), wanted.flatten())


def test_without_transitions_the_model_is_that_of_the_first_situation():
    dynamics, draws = model(members=2), generator(6)
    observation, action = torch.randn(3, 4, 2, generator=draws), torch.rand(3, 4, 2, generator=draws)
    nothing = dynamics.believe(torch.ones(3, 6, 4), torch.ones(3, 6, 2), torch.zeros(3, 6, dtype=torch.bool))
    seen = dynamics.believe(torch.ones(3, 6, 4), torch.ones(3, 6, 2), torch.ones(3, 6, dtype=torch.bool))
    found = [dynamics.predict(observation, action, belief) for belief in (TensorDict({}, [3]), nothing, seen)]
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
