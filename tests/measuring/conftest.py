"""A run that was trained for two iterations."""

from __future__ import annotations

import pytest


@pytest.fixture
def trained(make_loop):
    def make(algorithm: str = "gssm_aps", **options):
        loop = make_loop(algorithm, **{"loop": {"iterations": 2}} | options)
        loop.fit()
        return loop

    return make
