"""The record of a run, ``metrics.json``: its schema, its codes, its reading and writing."""

from dpeval.record.io import FILE_NAME, SCHEMA_VERSION, below, json_schema, parse, read, write
from dpeval.record.schema import Record

__all__ = [
    "FILE_NAME",
    "SCHEMA_VERSION",
    "Record",
    "below",
    "json_schema",
    "parse",
    "read",
    "write",
]
