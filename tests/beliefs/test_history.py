"""Networks of histories: what they look at, one reading for several questions, copies that share nothing."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from mbrl_lightning.beliefs.history import HistoryNet


def histories(rows: int = 6, length: int = 4, pair: int = 3, current: int = 2, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) >= torch.randint(length, (rows, 1), generator=generator)
    pairs = torch.randn(rows, length, pair, generator=generator) * mask.unsqueeze(-1)
    return TensorDict(
        {"pairs": pairs, "mask": mask, "current": torch.randn(rows, current, generator=generator)}, batch_size=[rows]
    )


def test_output_is_the_mlp_on_recurrent_state_current_and_extra():
    torch.manual_seed(0)
    net, inputs, extra = HistoryNet(2, 3, 2 + 4, 5, [8]), histories(), torch.randn(1, 6, 4)
    state = net.gru(inputs["pairs"].unsqueeze(0), inputs["mask"])
    joined = torch.cat([state, inputs["current"].expand(2, -1, -1), extra.expand(2, -1, -1)], -1)
    torch.testing.assert_close(net(inputs, extra), net.net(joined))


def test_each_step_of_the_window_counts_unless_it_is_masked():
    net, inputs = HistoryNet(1, 3, 2, 1, [8]), histories()
    before = net(inputs)
    for row, step in ((0, 3), (1, 3), (2, 2)):
        other = inputs.clone()
        other["pairs"][row, step] += 1
        changed = (net(other) != before)[0, :, 0]
        assert changed.nonzero().flatten().tolist() == ([row] if inputs["mask"][row, step] else [])
    other = inputs.clone()
    other["pairs"][~other["mask"]] = 100.0
    assert torch.equal(net(other), before)


def test_without_a_recurrent_unit_the_window_is_ignored_and_need_not_be_there():
    net, inputs = HistoryNet(2, 3, 2, 1, [8], recurrent=0), histories()
    other = inputs.clone()
    other["pairs"] += 1
    assert torch.equal(net(inputs), net(other))
    assert torch.equal(net(inputs), net(inputs.select("current")))
    assert not [name for name, _ in net.named_parameters() if "gru" in name]


def test_frozen_weights_pass_the_gradient_of_the_question_alone():
    net, inputs, extra = HistoryNet(2, 3, 2 + 4, 1, [8]), histories(), torch.randn(1, 6, 4, requires_grad=True)
    net.decide(net.read(inputs).detach(), extra, frozen=True).sum().backward()
    assert extra.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
