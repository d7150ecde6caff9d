"""Members that stop, or keep their best, each by its own held-out error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mbrl_lightning.models.stopping import EarlyStopping, RollingStop


def checks(kind: type, errors: list[list[float]], setting: float) -> tuple[list[bool], list[float]]:
    """What checks with the given errors say, a check after each epoch; parameters are what epoch it is, and then restored."""
    own = [torch.nn.Parameter(torch.zeros(2, *shape)) for shape in ((), (3, 1))]
    stop = kind(SimpleNamespace(members=2, parameters=lambda: iter(own)), setting)
    done = []
    for row in errors:
        done.append(stop.check(torch.tensor(row)))
        with torch.no_grad():
            torch._foreach_add_(own, 1)
    stop.restore()
    assert torch.equal(own[1], own[0].view(2, 1, 1).expand(2, 3, 1))
    return done, own[0].tolist()


# averages with persistence 0.5: member 0 from 1.5 -> 1.25, 1.1, 2.1 (rises at the third); member 1 falls throughout
RISING = [[1.0, 1.0], [1.0, 0.9], [3.0, 0.8], [0.1, 0.7]]


@pytest.mark.parametrize(
    ("errors", "persistence", "expected"),
    [
        (RISING, 0.5, ([False] * 4, [2, 4])),  # the first is set back to its third check
        ([[1.0, 1.0], [5.0, 5.0]], 0.5, ([False, True], [1, 1])),
        ([[1.0, 1.0]], 0.99, ([False], [1, 1])),  # a first error does not stop anything
    ],
)
def test_a_member_stops_when_its_rolling_average_rises_and_is_set_back_to_there(errors, persistence, expected):
    assert checks(RollingStop, errors, persistence) == expected


def test_every_member_keeps_its_own_best_and_waits_by_itself():
    errors = [[1.0, 1.0], [2.0, 0.5], [2.0, 0.499], [2.0, 0.6]]  # less than a per cent is no improvement
    assert checks(EarlyStopping, errors, 2) == ([False, False, False, True], [0, 1])
