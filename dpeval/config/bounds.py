"""Bounds of keys: declared as types where the key is, checked by pydantic, told in one line."""

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
"""For the dataclass at the top; the ones inside follow it. An instance was made by OmegaConf,
which knows the types and nothing of the bounds, so it is validated once more."""

_IMPORT_PATH = "an import path (package.name)"


@dataclass(frozen=True, init=False)
class OneOf:
    """The choices of a key: ``Annotated[str, OneOf("a", "b")]``, or an import path instead.

    OmegaConf 2.3 refuses ``Literal``; it reads this annotation as ``str``, pydantic as ``Literal``.
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
    """Check the types and bounds that the fields of a dataclass declare.

    Args:
        node: an instance of a dataclass, with others inside.
        prefix: what stands before its fields in a key, as ``hydra.launcher.``.

    Raises:
        ConfigError: on the first value that is not allowed, naming its key and what is.
    """
    kind: type = type(node)
    try:
        _adapter(kind).validate_python(node)
    except ValidationError as error:
        raise ConfigError(_wording(error.errors(include_url=False)[0], prefix)) from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _wording(error: ErrorDetails, prefix: str) -> str:
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
            return f"{asked} is not a finite number; give one that is"
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
    """The choices in pydantic's ``'a', 'b' or 'c'``."""
    return str(context["expected"]).split("'")[1::2]
