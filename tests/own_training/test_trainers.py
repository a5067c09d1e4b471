"""Scripts whose loop belongs to a library."""

from __future__ import annotations

from tests.own_training.metered_training import MeteredTraining


class TestTrainers(MeteredTraining):
    names = ("hf_trainer", "lightning_module")
