"""Which image is read by which rank in which step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeval.config import split_evenly
from dpeval.data.images.augment import DRAWS, middle_square, place, scaled, scaled_box
from dpeval.data.loading.sampler import ShardedSampler
from dpeval.errors import DataError


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_no_image_is_read_twice_and_only_the_ragged_batch_is_dropped(ranks: int) -> None:
    shares = split_evenly(16, ranks)
    for epoch in (0, 1):
        read = [
            index
            for rank in range(ranks)
            for step in ShardedSampler(105, shares, rank, seed=3).epoch(epoch)
            for index in step.indices
        ]
        assert len(read) == len(set(read)) == 105 // 16 * 16


@given(
    images=st.integers(8, 300),
    batch=st.integers(5, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_global_batches_and_their_chance_are_the_same_at_every_rank_count(
    images: int, batch: int, seed: int, epoch: int
) -> None:
    if images < batch:
        with pytest.raises(DataError, match=f"needs {batch}"):
            ShardedSampler(images, [batch], 0, seed)
        return
    seen = []
    for ranks in (1, 2, 3, 5):
        shares = split_evenly(batch, ranks)
        parts = [ShardedSampler(images, shares, rank, seed).epoch(epoch) for rank in range(ranks)]
        steps = list(zip(*parts, strict=True))
        assert all([len(part.indices) for part in step] == shares for step in steps)
        seen.append(
            (
                [list(np.concatenate([part.indices for part in step])) for step in steps],
                np.concatenate([part.draws for step in steps for part in step]),
            )
        )
    for order, draws in seen[1:]:
        assert order == seen[0][0]
        assert np.array_equal(draws, seen[0][1])


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = ShardedSampler(64, [8], 0, seed=0)
    first, second = ([list(step.indices) for step in sampler.epoch(epoch)] for epoch in (0, 1))
    assert first != second
    for steps in (first, second):
        assert sorted(index for step in steps for index in step) == list(range(64))


def test_epochs_follow_each_other_without_end() -> None:
    sampler = ShardedSampler(10, [4], 0, seed=0)
    endless = iter(sampler)
    expected = [step for epoch in range(3) for step in sampler.epoch(epoch)]
    for step in expected:
        assert np.array_equal(next(endless).indices, step.indices)


sizes = st.integers(1, 20_000)


@given(height=sizes, width=sizes, seed=st.integers(0, 99), augment=st.sampled_from(["rrc", "none"]))
def test_a_crop_lies_inside_its_image_at_every_scale(
    height: int, width: int, seed: int, augment: str
) -> None:
    draws = np.random.default_rng(seed).random((4, DRAWS))
    high, wide = [height] * 4, [width] * 4
    boxes, flips = place(high, wide, draws, augment)
    assert flips.shape == (4,)
    squashed = scaled(boxes, high, wide, [256] * 4, [256] * 4)
    for box, one in zip(boxes.tolist(), squashed.tolist(), strict=True):
        assert scaled_box(box, (height, width), (256, 256)) == pytest.approx(one, abs=1)
    for (top, left, tall, broad), (whole_height, whole_width) in [
        *((box, (height, width)) for box in boxes),
        *((box, (256, 256)) for box in squashed),
    ]:
        assert min(top, left) >= 0
        assert min(tall, broad) >= 1
        assert top + tall <= whole_height
        assert left + broad <= whole_width


def test_random_crops_have_the_areas_and_aspects_of_torchvisions() -> None:
    """Compared by quantiles with RandomResizedCrop.get_params on the same size of image."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    count = 4_000
    draws = np.random.default_rng(0).random((count, DRAWS))
    boxes, flips = place([375] * count, [500] * count, draws, "random_resized_crop")
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    for ours_of, theirs_of in (
        (boxes[:, 2] * boxes[:, 3] / 187_500, theirs[:, 2] * theirs[:, 3] / 187_500),
        (np.log(boxes[:, 3] / boxes[:, 2]), np.log(theirs[:, 3] / theirs[:, 2])),
        (boxes[:, 0] / 375, theirs[:, 0] / 375),
        (boxes[:, 1] / 500, theirs[:, 1] / 500),
    ):
        levels = np.linspace(0.05, 0.95, 10)
        assert np.quantile(ours_of, levels) == pytest.approx(
            np.quantile(theirs_of, levels), abs=0.03
        )
    assert flips.mean() == pytest.approx(0.5, abs=0.03)


def test_an_image_that_no_crop_fits_shows_its_largest_allowed_middle() -> None:
    draws = np.full((1, DRAWS), 0.999)
    boxes, _ = place([10], [1000], draws, "random_resized_crop")
    top, left, height, width = boxes[0]
    assert (height, width) == (10, 13)
    assert (top, left) == (0, (1000 - 13) // 2)


def test_the_middle_is_that_of_validation() -> None:
    boxes = middle_square(np.array([256]), np.array([320]))
    assert boxes.tolist() == [[16, 48, 224, 224]]
