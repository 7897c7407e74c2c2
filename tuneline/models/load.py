"""Load a causal language model with transformers, and say in our words why it cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError, TunelineError
from tuneline.models.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tuneline.models.folder import CONFIG, read_json, weight_files
from tuneline.models.schemas import ModelConfig
from tuneline.models.tokenizer import load_tokenizer

DAMAGE = (
    OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError,
    ArithmeticError, AssertionError,
)  # fmt: skip
"""The errors of transformers and peft for a folder that is not the model it claims to be. Errors of
safetensors, huggingface_hub and tokenizers come on top; see `damage_named`."""


DOWNLOAD_AGAIN = (
    "Expected config.json and complete safetensors files of a causal language model. Download the "
    "model again if files were cut short."
)
SERVE_QUANTIZED = (
    "The model is quantized, and transformers cannot load every family in every scheme. Try: serve "
    "it with vLLM and give --url, or take the model that it was quantized from. Download it again "
    "if files were cut short."
)

LIMITED = ("gemma2", "vaultgemma", "t5_gemma_module")
GEMMA2_LIMIT = 50.0
"""The limit of attention scores where config.json has none, by transformers' default."""

PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
"""Number formats of weights that are not quantized, as safetensors names them."""


@contextmanager
def damage_named(problem: str, hint: str | None = None) -> Iterator[None]:
    """Turn what a library raises inside the block into an ArtifactError.

    Args:
        problem: The message up to the library's own words, e.g. `DIR: transformers cannot load it`.

    Raises:
        ArtifactError: A library refused the folder.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except TunelineError:
        raise
    except Exception as error:
        known = (*DAMAGE, StrictDataclassError, SafetensorError)
        # tokenizers raises the bare class.
        if not isinstance(error, known) and type(error) is not Exception:
            raise
        raise ArtifactError(f"{problem}: {_first_lines(error)}", hint=hint) from error


def load_network(
    folder: Path,
    dtype: Any,
    *,
    what: str,
    load: Callable[..., tuple[Any, Any]] | None = None,
    ignores: Callable[[Any, str], bool] = lambda _network, _name: True,
    **options: Any,
) -> Any:
    """Return the causal language model of a folder, ready for inference.

    Only safetensors are read, no code of the folder is run, and nothing is downloaded.

    Args:
        dtype: The torch type of the weights in memory.
        what: The folder as messages call it.
        load: Called like `from_pretrained`; None takes `AutoModelForCausalLM`.
        ignores: Whether the network may leave out a tensor of this name; by default any.
        options: Passed on to `load`.

    Raises:
        ArtifactError: The folder cannot be loaded, or its tensors are not those of the network.
    """
    import transformers

    if (folder / ADAPTER_CONFIG).is_file():
        raise ArtifactError(
            f"{what}: has {ADAPTER_CONFIG} next to a model, and transformers would add that "
            "adapter to the weights, which a server does not; expected only a model",
            hint=f"Move {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} to a folder of their own. If the "
            "weights are the base's, merge the two: tuneline export merge --base DIR --adapter DIR "
            "--out DIR",
        )
    load = load or transformers.AutoModelForCausalLM.from_pretrained
    config = read_json(folder / CONFIG, ModelConfig)
    hint = DOWNLOAD_AGAIN
    if is_left_over(folder, config):
        options["config"] = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        del options["config"].quantization_config
    elif config.get("quantization_config"):
        hint = SERVE_QUANTIZED
    with damage_named(f"{what}: transformers cannot load it", hint):
        if "attn_implementation" not in options and limits_scores(config):
            options["attn_implementation"] = "eager"
        network, info = load(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    # transformers fills a missing tensor with random numbers, and goes on.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(kind) or ())
        if kind == "unexpected_keys":
            names = [name for name in names if not ignores(network, name)]
        if names:
            raise ArtifactError(
                f"{what}: the weights have {kind.replace('_', ' ')}: {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            )
    return network.eval()


def limits_scores(config: Mapping[str, Any]) -> bool:
    """Return whether the attention of a network limits its scores by a tanh, as Gemma 2's does.

    transformers 5.19 takes SDPA for such a network, which computes without the limit.

    Args:
        config: The folder's config.json.
    """
    text = config.get("text_config") or config
    default = GEMMA2_LIMIT if text.get("model_type") in LIMITED else None
    return bool(text.get("attn_logit_softcapping", default))


def is_left_over(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a folder's `quantization_config` of bitsandbytes is on plain weights.

    Merges of QLoRA adapters often keep the key. transformers would quantize such weights as it
    loads them.
    """
    from safetensors import SafetensorError, safe_open

    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "bitsandbytes":
        return False
    found = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    found += 1
                    if file.get_slice(name).get_dtype() not in PLAIN_DTYPES:
                        return False
        except (SafetensorError, OSError):
            return False  # the step that reads the weights names the damage
    return found > 0


def served_class(folder: Path) -> Any:
    """Return the transformers class that loads a folder as a server does.

    A server loads a model of text and pictures whole.

    Raises:
        ArtifactError: config.json cannot be read.
    """
    import transformers

    if "text_config" in read_json(folder / CONFIG, ModelConfig):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def check_model(folder: Path, what: str) -> None:
    """Check that transformers can load a model folder and its tokenizer; no weight is read.

    The weights of a quantized model are not compared with its network: their names depend on the
    quantization.

    Raises:
        ArtifactError: transformers cannot load the folder, or the folder lacks weights.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # no weight is read
    config = read_json(folder / CONFIG, ModelConfig)
    load_tokenizer(folder)
    if not config.get("quantization_config") or is_left_over(folder, config):
        load = served_class(folder).from_pretrained
        load_network(folder, torch.float32, what=what, load=load, device_map="meta")


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}".removesuffix(": ")
