"""Bounds of keys: declared in a key's type, checked by pydantic, reported in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError, core_schema

from dpeval.config.suggestions import suggest_value
from dpeval.errors import ConfigError

BOUNDS_CONFIG = ConfigDict(allow_inf_nan=False, revalidate_instances="always")
"""Set on the outermost dataclass; nested ones inherit it. OmegaConf builds the instance and checks
types but not bounds, so pydantic has to revalidate it."""

_IMPORT_PATH = "an import path (package.name)"


@dataclass(frozen=True, init=False)
class OneOf:
    """The valid values of a key: ``Annotated[str, OneOf("a", "b")]``.

    With `or_import_path`, an import path is valid too. OmegaConf 2.3 rejects ``Literal``; it reads
    this annotation as ``str``, while pydantic reads it as ``Literal``.
    """

    choices: tuple[str, ...]
    or_import_path: bool

    def __init__(self, *choices: str, or_import_path: bool = False) -> None:
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "or_import_path", or_import_path)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        if not self.or_import_path:
            return core_schema.literal_schema(list(self.choices))
        return core_schema.no_info_after_validator_function(
            self._checked, core_schema.str_schema(), metadata={"examples": self.choices}
        )

    def _checked(self, value: str) -> str:
        if value in self.choices or "." in value:
            return value
        expected = ", ".join(f"'{choice}'" for choice in self.choices)
        raise PydanticKnownError("literal_error", {"expected": f"{expected} or {_IMPORT_PATH}"})


def check_bounds(node: Any, prefix: str = "") -> None:
    """Check a dataclass against the types and bounds that its fields declare.

    Args:
        node: an instance whose class sets ``__pydantic_config__ = BOUNDS_CONFIG``.
        prefix: put before field names to form the key, for example ``hydra.launcher.``.

    Raises:
        ConfigError: the first invalid value, with its key and the valid values.
    """
    kind: type = type(node)
    try:
        _adapter(kind).validate_python(node)
    except ValidationError as error:
        raise ConfigError(_message(error.errors(include_url=False)[0], prefix)) from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _message(error: ErrorDetails, prefix: str) -> str:
    key = prefix + ".".join(map(str, error["loc"]))
    value, context = error["input"], error.get("ctx", {})
    asked = f"{key}={value}"
    match error["type"]:
        case "literal_error":
            choices = _choices(context)
            other = f" or {_IMPORT_PATH}" if _IMPORT_PATH in context["expected"] else ""
            suggestion = suggest_value(str(value), choices)
            return f"{asked} is not one of {', '.join(choices)}{other}{suggestion}"
        case "finite_number":
            return f"{asked} is not a finite number; give a finite one"
        case "greater_than_equal":
            return f"{asked} is too small; the smallest valid value is {context['ge']}"
        case "greater_than" if isinstance(context["gt"], int) and isinstance(value, int):
            return f"{asked} is too small; the smallest valid value is {context['gt'] + 1}"
        case "greater_than":
            return f"{asked} is too small; it must be above {context['gt']:g}"
        case "less_than_equal":
            return f"{asked} is too large; the largest valid value is {context['le']}"
    return f"{asked}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _choices(context: Mapping[str, Any]) -> list[str]:
    """The choices, parsed from pydantic's ``'a', 'b' or 'c'``."""
    return str(context["expected"]).split("'")[1::2]
