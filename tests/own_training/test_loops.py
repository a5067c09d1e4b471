"""Scripts with a loop of their own."""

from __future__ import annotations

from tests.own_training.metered_training import MeteredTraining


class TestLoops(MeteredTraining):
    names = ("image_classifier", "language_model", "accelerated")
