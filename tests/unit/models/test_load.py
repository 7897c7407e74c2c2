"""Which errors of the libraries mean a broken model folder."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError

from tuneline.core.errors import ArtifactError, MissingError
from tuneline.models.load import damage_named


@pytest.mark.parametrize(
    "error",
    [
        OSError("no file"), ValueError("unknown model type"), KeyError("unheard"),
        RuntimeError("shapes"), TypeError("not a mapping"), AttributeError("no attribute"),
        ImportError("needs gptqmodel"), ZeroDivisionError("modulo by zero"),
        AssertionError("padding_idx must be within num_embeddings"), SafetensorError("incomplete"),
        Exception("data did not match any variant"),
        StrictDataclassFieldValidationError("hidden_size", TypeError("text")),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_a_library_raises_on_a_broken_folder_is_an_artifact_error(error: Exception) -> None:
    with pytest.raises(ArtifactError) as caught, damage_named("DIR: cannot be loaded", "Try: this"):
        raise error
    assert caught.value.message.startswith(f"DIR: cannot be loaded: {type(error).__name__}: ")
    assert caught.value.hint == "Try: this"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MissingError("no GPU"), MemoryError(), KeyboardInterrupt()])
def test_what_is_not_the_folder_s_fault_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, damage_named("DIR: cannot be loaded"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "ValueError"), ("one\n\n two \nthree", "ValueError: one two"), ("x" * 999, "x" * 300)],
)
def test_a_library_s_words_are_cut_to_their_first_lines(text: str, said: str) -> None:
    with pytest.raises(ArtifactError) as caught, damage_named("DIR"):
        raise ValueError(text)
    assert caught.value.message.endswith(said)
    assert "three" not in caught.value.message
