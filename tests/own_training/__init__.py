import pytest

pytest.register_assert_rewrite("tests.own_training.metered_training")
