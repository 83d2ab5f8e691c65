"""The template of Envoy's configuration: reads it, fills it, and writes the result as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("envoy.yaml")


class Placeholder(str):
    """The name of a value in the template; `fill` inserts the value."""


class _TemplateLoader(yaml.SafeLoader):
    """Reads `!put name` in the template as a Placeholder."""


_TemplateLoader.add_constructor("!put", lambda _, node: Placeholder(node.value))


class _PlainDumper(yaml.SafeDumper):
    """A YAML dumper that writes no aliases.

    It repeats shared patterns, because people read the result too.
    """

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: no value is written as an alias."""
        return True


_PlainDumper.add_multi_representer(StrEnum, lambda dumper, value: dumper.represent_str(value.value))


def read() -> tuple[Any, Mapping[str, Any]]:
    """Returns the configuration with its placeholders, and the patterns for its parts."""
    configuration, patterns = yaml.load_all(TEMPLATE.read_text(), _TemplateLoader)
    return configuration, patterns


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """Returns a part of the template with the values of its placeholders.

    A key whose value is None is left out. A list as a value becomes several items of the list that it is in.
    """
    match node:
        case Placeholder():
            return values[node]
        case dict():
            filled_items = ((key, fill(value, values)) for key, value in node.items())
            return {key: value for key, value in filled_items if value is not None}
        case list():
            filled: list[Any] = []
            for item in node:
                value = fill(item, values)
                filled.extend(value if isinstance(item, Placeholder) and isinstance(value, list) else [value])
            return filled
        case _:
            return node


def dump(configuration: Any) -> str:
    """Returns a filled configuration as YAML."""
    return yaml.dump(configuration, Dumper=_PlainDumper, sort_keys=False, width=120)
