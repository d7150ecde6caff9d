"""What tests of figures share."""

import pytest


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are saved."""
    from mbrl_lightning.report import canvas

    saved, save = [], canvas.save
    monkeypatch.setattr(canvas, "save", lambda figure, *rest: (saved.append(figure), save(figure, *rest))[1])
    return saved
