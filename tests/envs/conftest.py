"""What all tests of environments share."""

import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No test may leave MuJoCo's log file behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("MUJOCO_LOG.TXT"))
