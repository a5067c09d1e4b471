"""Tokens for language models: the user's files, or generated ones.

A file holds token ids only, without a header, so it is memory-mapped and never read as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpeval.config import DatasetConfig
from dpeval.data.sources.progress import Report
from dpeval.data.sources.source import Source, making
from dpeval.errors import ConfigError, DataError

Dtype = np.dtype[np.unsignedinteger[Any]]
DTYPES: dict[str, Dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
CHECKED_TOKENS = 4_000_000
"""Number of tokens at the beginning of a file that are checked against the vocabulary."""
SHIFT = 2.7
"""Zipf and Mandelbrot: the frequency of the word of rank r falls as 1 / (r + 2.7) (Piantadosi 2014,
Psychonomic Bulletin & Review 21, equation 2)."""
_CHUNK_TOKENS = 1 << 20


def token_files(
    config: DatasetConfig, root: Path, report: Report, file: str = "train.bin",
    dtype: str = "uint16",
) -> Source:  # fmt: skip
    """The user's file of tokens.

    Args:
        config: the keys of ``dataset``; ``num_classes`` is the size of the vocabulary.
        root: the folder of the file.
        report: prints what was found.
        file: its name.
        dtype: type of the token ids: uint16 or uint32.

    Raises:
        ConfigError: the type is not known.
        DataError: the file is missing or too short, or its type or vocabulary does not match.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dataset.args.dtype={dtype} is not known; use {' or '.join(DTYPES)}")
    path = root / file
    if not path.is_file():
        raise DataError(
            f"dataset={config.name}: {path} does not exist; set dataset.root and dataset.args.file"
        )
    source = _source(config, path, DTYPES[dtype])
    report(
        f"{path}: {path.stat().st_size // DTYPES[dtype].itemsize:,} tokens, {source.sequences:,} "
        f"sequences of {config.seq_len} to train on"
    )
    return source


def generated_tokens(
    config: DatasetConfig, root: Path, report: Report, tokens: int = 4_000_000
) -> Source:
    """Random tokens with the frequencies of words (Zipf's law), generated once.

    Args:
        config: the keys of ``dataset``; ``num_classes`` is the size of the vocabulary.
        root: folder for the data.
        report: prints one line.
        tokens: number of tokens to generate.

    Raises:
        DataError: they are too few for one sequence.
    """
    dtype = "uint16" if config.num_classes <= 1 << 16 else "uint32"
    path = root / f"generated_tokens-{config.num_classes}-{tokens}" / f"train.{dtype}.bin"
    if not path.exists():
        with making(path, report):
            if not path.exists():
                report(f"generating {tokens:,} tokens in {path.parent}")
                _generate(path, config.num_classes, tokens, DTYPES[dtype])
    return _source(config, path, DTYPES[dtype])


def _generate(path: Path, vocabulary: int, tokens: int, dtype: Dtype) -> None:
    """Write `path`, which exists only once it is complete."""
    generator = np.random.default_rng(vocabulary)
    edges = np.cumsum(1 / (np.arange(vocabulary) + SHIFT))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for begin in range(0, tokens, _CHUNK_TOKENS):
            count = min(_CHUNK_TOKENS, tokens - begin)
            drawn = np.searchsorted(edges, generator.random(count) * edges[-1])
            drawn.clip(0, vocabulary - 1).astype(dtype).tofile(file)
    partial.rename(path)


def _source(config: DatasetConfig, path: Path, dtype: Dtype) -> Source:
    nbytes, length = path.stat().st_size, config.seq_len
    if nbytes % dtype.itemsize:
        raise DataError(
            f"{path} has {nbytes:,} bytes, not a whole number of {dtype.name} tokens; set "
            "dataset.args.dtype, and remove the header if the file has one"
        )
    # The targets are the inputs shifted by one token.
    sequences = (nbytes // dtype.itemsize - 1) // length
    if sequences < 1:
        raise DataError(
            f"{path} has {nbytes // dtype.itemsize:,} tokens, but one sequence needs {length + 1}; "
            "use a smaller dataset.seq_len or more tokens"
        )
    begin = np.fromfile(path, dtype, count=CHECKED_TOKENS)
    if int(begin.max()) >= config.num_classes:
        raise DataError(
            f"{path} has token {begin.max()}, but dataset.num_classes={config.num_classes}; set it "
            "to the size of the vocabulary, and dataset.args.dtype to the type of the tokens"
        )
    return Source(
        root=str(path.parent),
        num_classes=config.num_classes,
        tokens=path.name,
        token_type=dtype.str,
        sequences=sequences,
        loader="dpeval.data.loading.token_loader.TokenLoader",
    )
