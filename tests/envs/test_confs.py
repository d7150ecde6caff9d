"""Every configuration that is shipped names a family that exists, with options that it has."""

from __future__ import annotations

import pytest

from mbrl_lightning.config import available, compose
from mbrl_lightning.envs import make_family


@pytest.mark.parametrize("conf", available())
def test_the_family_of_every_conf_can_be_made(conf):
    env = compose({"conf": conf}).env
    spec = make_family(env.name, **env.options).spec
    assert spec.horizon == env.options.get("horizon", spec.horizon)
