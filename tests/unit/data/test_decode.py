"""Images as they come: each is read, or named in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpeval.data.images.augment import DRAWS
from dpeval.data.images.decode import decode, open_file, read_batch, without_bottom
from dpeval.errors import DataError

NAME = "größer als schön/an image ✓.jpg"


def read(path: Path, px: int = 32, augment: str = "random_resized_crop") -> torch.Tensor:
    out = torch.zeros(1, px, px, 3, dtype=torch.uint8)
    read_batch([path], np.random.default_rng(0).random((1, DRAWS)), augment, out)
    return out[0]


def written(folder: Path, image: Image.Image, kind: str = "JPEG", **keys: object) -> Path:
    path = folder / NAME
    path.parent.mkdir(exist_ok=True)
    image.save(path, kind, **keys)
    return path


def photograph(height: int = 200, width: int = 300) -> Image.Image:
    from dpeval.data.sources.synthetic import _field

    generator = np.random.default_rng(0)
    parts = [128 + 40 * _field(height, width, None, generator) for _ in range(3)]
    return Image.fromarray(np.clip(np.stack(parts, axis=-1), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "size"),
    [("L", (50, 40)), ("CMYK", (50, 40)), ("RGB", (1, 1)), ("RGB", (3000, 2)), ("RGB", (2, 3000))],
)
def test_unusual_jpegs_are_read(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    colour: Any = {"L": 100, "CMYK": (0, 255, 255, 0), "RGB": (200, 30, 40)}[mode]
    path = written(tmp_path, Image.new(mode, size, colour))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))[0, 0].astype(int)
    for augment in ("random_resized_crop", "none"):
        shown = read(path, augment=augment).numpy()
        assert np.abs(shown.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("BMP", "RGB")],
)
def test_other_formats_are_read(tmp_path: Path, kind: str, mode: str) -> None:
    path = written(tmp_path, photograph().convert(mode), kind)
    assert read(path).float().std() > 10


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    path = tmp_path / f"deep.{kind}"
    if kind == "pgm":  # Pillow reads 16 bits of it earlier than it writes them
        path.write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    decoded = torch.empty(64, 64, 3, dtype=torch.uint8)
    decode(open_file(path), np.array([0, 0, 64, 64]), False, decoded)
    for colour in range(3):
        assert np.array_equal(decoded[..., colour].numpy(), values >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_whose_range_is_unknown_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.full((8, 8), 1e6, dtype)).save(path)
    with pytest.raises(DataError, match=r"x\.tif is not a readable image .*32 bits"):
        decode(open_file(path), np.array([0, 0, 8, 8]), False, torch.empty(8, 8, 3).byte())


def test_progressive_jpegs_and_unusual_sampling_are_read_as_pil_reads_them(tmp_path: Path) -> None:
    for keys in ({"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}):
        path = written(tmp_path, photograph(), quality=90, **keys)
        with Image.open(path) as image:
            image.load()
            box = [40, 60, 120, 100]
            theirs = np.asarray(
                image.convert("RGB").resize(
                    (32, 32), Image.Resampling.BILINEAR, box=(60, 40, 160, 160)
                )
            )
        out = torch.zeros(32, 32, 3, dtype=torch.uint8)
        decode(open_file(path), np.array(box), False, out)
        assert np.abs(out.numpy().astype(int) - theirs).mean() < 4  # colour is coarser


def test_a_jpeg_of_twenty_thousand_pixels_is_read_without_decoding_it_wholly(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, Image.new("L", (20_000, 20_000), 77))
    assert (read(path) == 77).all()


def test_an_image_too_large_to_be_true_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(DataError, match=r"an image ✓\.jpg is not a readable image \(.*bomb"):
        read(path)


@pytest.mark.parametrize("damage", ["empty", "text", "header", "truncated", "tail", "png"])
def test_a_damaged_image_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, photograph(), quality=95)
    whole = path.read_bytes()
    png = io.BytesIO()
    photograph().save(png, "PNG")
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "header": whole[:100],
            "truncated": whole[: len(whole) // 2],
            "tail": whole[:-500],
            "png": png.getvalue()[:5000],
        }[damage]
    )
    with pytest.raises(DataError, match=r"an image ✓\.jpg is not a readable image") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg .*No such file or directory"):
        read(tmp_path / "gone.jpg")


def test_harmless_blemishes_are_read_past_as_pil_does(tmp_path: Path) -> None:
    path = written(tmp_path, photograph())
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\x00" * 7 + whole[-2:])
    assert read(path).float().std() > 10


@given(top=st.integers(0, 150), height=st.integers(1, 50), sampling=st.sampled_from([0, 1, 2]))
def test_what_is_left_of_the_bottom_changes_no_pixel_of_the_crop(
    top: int, height: int, sampling: int
) -> None:
    import simplejpeg

    buffer = io.BytesIO()
    photograph().save(buffer, "JPEG", quality=90, subsampling=sampling)
    data = buffer.getvalue()
    short, rows = without_bottom(data, 200, top + height)
    assert rows == 200 or top + height < rows <= top + height + (16 if sampling == 2 else 8)
    whole = simplejpeg.decode_jpeg(data)
    upper = simplejpeg.decode_jpeg(short, strict=rows == 200)
    assert upper.shape[0] == rows
    assert np.array_equal(upper[: top + height], whole[: top + height])


def test_progressive_files_keep_their_bottom(tmp_path: Path) -> None:
    path = written(tmp_path, photograph(), progressive=True)
    data = path.read_bytes()
    assert without_bottom(data, 200, 50) == (data, 200)
    assert without_bottom(data[:-2], 200, 50) == (data[:-2], 200)
