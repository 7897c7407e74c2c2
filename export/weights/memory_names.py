"""The names that transformers gives to the tensors of a model's files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def memory_names(network: Any) -> Callable[[str], tuple[str, str, Any]]:
    """Return a function from a name in the files to the name in a network of transformers.

    The function also returns the pattern and the converter that join, split or turn the tensor on
    its way; an empty pattern and None if it is only renamed. If a converter splits the tensor, the
    name is that of the first part.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(network)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    in_memory = network.state_dict()

    def memory_name(stored: str) -> tuple[str, str, Any]:
        name, pattern = rename_source_key(
            stored, renamings, converters, network.base_model_prefix, in_memory
        )
        return name, pattern or "", by_pattern.get(pattern)

    return memory_name
