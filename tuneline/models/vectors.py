"""The vectors that a model gives to texts, by transformers in float32.

An embedding model pools the states of a text's tokens into one vector. The files of
sentence-transformers say how: `modules.json` and the folders that it names. A model that writes
text gives the normalized state of the last token, as vLLM serves it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.core.errors import ArtifactError
from tuneline.models.companion_files import MODULES, SENTENCE_FILES, SENTENCE_FOLDERS
from tuneline.models.folder import CONFIG, WEIGHTS, read_json, write_json
from tuneline.models.load import damage_named, load_network
from tuneline.models.own_code import copy_without_code
from tuneline.models.prompts import PROMPTS_FILE
from tuneline.models.schemas import ModelConfig
from tuneline.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

TEXT_CLASSES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ChatModel")
"""How the names of classes that write text end."""

_TOKENS = {
    "cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens",
    "mean_sqrt_len": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
}  # fmt: skip
"""The modes whose key of a Pooling module has another name."""

Pool = Callable[["Tensor"], "Tensor"]
"""`pool(states)`: one vector from the states of a text's tokens, of shape (tokens, dimensions)."""


def _weighted_mean(states: Tensor) -> Tensor:
    weights = states.new_tensor(range(1, len(states) + 1))
    return (states * weights[:, None]).sum(0) / weights.sum()


POOLINGS: dict[str, Pool] = {
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.max(0).values,
    "mean_sqrt_len": lambda states: states.sum(0) / math.sqrt(len(states)),
    "weightedmean": _weighted_mean,
}
"""The modes of sentence-transformers' Pooling."""


@dataclass(frozen=True)
class Recipe:
    """How a model's states become a vector."""

    pooling: str
    """A mode of POOLINGS."""
    is_normalized: bool
    dense: tuple[str, ...] = ()
    """Folders of the linear layers after the pooling."""
    lowers_case: bool = False
    max_tokens: int | None = None
    """Tokens beyond which sentence-transformers cuts a text."""

    @property
    def words(self) -> str:
        """Return the recipe for people."""
        layers = f", {len(self.dense)} dense layers" if self.dense else ""
        return f"{self.pooling} pooling{layers}, {'' if self.is_normalized else 'not '}normalized"


def writes_text(folder: Path) -> bool:
    """Return whether the files of a model folder leave open that the model writes text."""
    names = read_json(folder / CONFIG, ModelConfig).get("architectures") or []
    is_text = not names or any(name.endswith(TEXT_CLASSES) for name in names)
    return is_text and not (folder / MODULES).is_file()


def read_recipe(folder: Path, *, pooling: str | None = None) -> Recipe:
    """Return how a model folder makes vectors.

    Args:
        pooling: A mode of POOLINGS in the place of the folder's own.

    Raises:
        ArtifactError: The folder does not say it, or has a module that is not known here.
    """
    if not (folder / MODULES).is_file():
        names = read_json(folder / CONFIG, ModelConfig).get("architectures") or []
        if any(name.endswith(TEXT_CLASSES) for name in names):
            return Recipe(pooling or "lasttoken", is_normalized=True)
        if pooling is not None:
            return Recipe(pooling, is_normalized=True)
        raise ArtifactError(
            f"{folder}: has no {MODULES}, so nothing says how its vectors are made; expected a "
            "folder of sentence-transformers",
            hint=f"Try: download the model again with {MODULES} and the folder 1_Pooling",
        )
    modules = _read_modules(folder)
    unknown = {kind for kind, _ in modules} - {"Transformer", "Pooling", "Dense", "Normalize"}
    poolings = [path for kind, path in modules if kind == "Pooling"]
    if unknown or len(poolings) != 1:
        found = ", ".join(kind for kind, _ in modules)
        raise ArtifactError(
            f"{folder / MODULES}: the modules are {found}; expected Transformer, one Pooling, and "
            "Dense or Normalize after it"
        )
    file = folder / "sentence_bert_config.json"
    values = read_json(file) if file.is_file() else {}
    limit = values.get("max_seq_length")
    return Recipe(
        pooling or _mode_of(folder / poolings[0] / CONFIG),
        is_normalized=any(kind == "Normalize" for kind, _ in modules),
        dense=tuple(path for kind, path in modules if kind == "Dense"),
        lowers_case=values.get("do_lower_case") is True,
        max_tokens=limit if isinstance(limit, int) else None,
    )


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return the last word of each module's type, and its folder."""
    path = folder / MODULES
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in entries]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        raise ArtifactError(
            f"{path}: expected a JSON list of modules, each with type and path"
        ) from None
    for _, place in modules:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ArtifactError(f"{path}: path is {place!r}; expected a folder in {folder}")
    return modules


def _mode_of(path: Path) -> str:
    """Return the pooling mode in the configuration of a Pooling module."""
    values = read_json(path)
    modes = [
        name.removeprefix("pooling_mode_")
        for name, value in values.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    modes = [str(values["pooling_mode"])] if "pooling_mode" in values else modes
    named = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if len(named) != 1 or named[0] not in POOLINGS:
        raise ArtifactError(
            f"{path}: the pooling is {', '.join(modes) or 'not given'}; expected one of "
            f"{', '.join(POOLINGS)}"
        )
    return named[0]


def write_recipe(base: Path, folder: Path, recipe: Recipe, prompts: Mapping[str, str]) -> None:
    """Write how a trained model makes vectors, as sentence-transformers reads it.

    The base's own files are copied; pooling and prompts are those of the training.

    Args:
        prompts: The text before each `query` and each `document`.

    Raises:
        ArtifactError: A file of the base cannot be read.
    """
    has_modules = (base / MODULES).is_file()
    if has_modules:
        names = [base / name for name in SENTENCE_FILES if (base / name).is_file()]
        names += [path for pattern in SENTENCE_FOLDERS for path in sorted(base.glob(pattern))]
        for path in names:
            out = folder / path.parent.relative_to(base)
            out.mkdir(exist_ok=True)
            copy_without_code(path, out, base)
    else:
        kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
        kinds += [("Normalize", "2_Normalize")] if recipe.is_normalized else []
        modules = [
            {
                "idx": place, "name": str(place), "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, (kind, path) in enumerate(kinds)
        ]  # fmt: skip
        text = json.dumps(modules, indent=2) + "\n"
        (folder / MODULES).write_text(text, encoding="utf-8")
    pooling = "1_Pooling"
    if has_modules:
        pooling = next(path for kind, path in _read_modules(base) if kind == "Pooling")
    if not has_modules or read_recipe(base).pooling != recipe.pooling:
        (folder / pooling).mkdir(exist_ok=True)
        values = {
            "word_embedding_dimension": _dimensions(base),
            **{f"pooling_mode_{_TOKENS.get(mode, mode)}": mode == recipe.pooling
               for mode in POOLINGS},
            "include_prompt": True,
        }  # fmt: skip
        write_json(folder / pooling / CONFIG, values)
    path = folder / PROMPTS_FILE
    known = read_json(path) if path.is_file() else {"default_prompt_name": None}
    if prompts != dict.fromkeys(prompts, "") or "prompts" in known:
        own = {**(known.get("prompts") or {}), **prompts}
        write_json(path, {**known, "prompts": own})


def _dimensions(folder: Path) -> int:
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return int(config.get_text_config().hidden_size)


@dataclass(frozen=True)
class States:
    """The states of one text's tokens, of shape (tokens, dimensions)."""

    num_tokens: int
    states: Tensor


def load_states(folder: Path, recipe: Recipe) -> Callable[[str, bool], States]:
    """Return a function of a text, with or without the special tokens, that gives its states.

    Raises:
        ArtifactError: transformers cannot load the folder.
    """
    import torch

    tokenizer = load_tokenizer(folder)
    network = load_network(folder, torch.float32, what=str(folder), load=load_encoder)

    def states_of(text: str, special: bool) -> States:
        words = text.lower() if recipe.lowers_case else text
        inputs = tokenizer(words, return_tensors="pt", add_special_tokens=special)
        with torch.no_grad(), damage_named(f"{folder}: transformers cannot compute a vector"):
            found = network(**inputs).last_hidden_state[0]
        return States(inputs["input_ids"].shape[1], found.float())

    return states_of


def load_encoder(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Load a folder as a network without a head, called like `from_pretrained`.

    BERT's pooler is left out: no vector needs that layer, and many folders lack it.
    """
    import transformers

    network, info = transformers.AutoModel.from_pretrained(folder, **options)
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    missing = [one for one in info["missing_keys"] if not str(one).startswith("pooler.")]
    return network, {**info, "missing_keys": missing}


def load_dense(folder: Path, recipe: Recipe) -> Pool:
    """Return the function of the linear layers after the pooling.

    Raises:
        ArtifactError: A layer cannot be read, or has an activation that is not known here.
    """
    import torch
    from safetensors.torch import load_file

    layers = []
    for place in recipe.dense:
        path = folder / place
        name = str(read_json(path / CONFIG).get("activation_function", "")).rpartition(".")[2]
        activation = {"Identity": torch.nn.Identity(), "Tanh": torch.nn.Tanh()}.get(name)
        if activation is None:
            raise ArtifactError(
                f"{path / CONFIG}: activation_function is {name!r}; expected Identity or Tanh"
            )
        with damage_named(f"{path}: cannot be read as a dense layer in {WEIGHTS}"):
            tensors = load_file(path / WEIGHTS)
            weight, bias = tensors["linear.weight"].float(), tensors.get("linear.bias")
        layers.append((weight, None if bias is None else bias.float(), activation))

    def apply(vector: Tensor) -> Tensor:
        for weight, bias, activation in layers:
            moved = bias if bias is None else bias.to(vector.device)
            linear = torch.nn.functional.linear(vector, weight.to(vector.device), moved)
            vector = activation(linear)
        return vector

    return apply


def vector_of(states: Tensor, recipe: Recipe, dense: Pool) -> Tensor:
    """Return the vector that a recipe makes of a text's states."""
    vector = dense(POOLINGS[recipe.pooling](states))
    return vector / vector.norm().clamp_min(1e-12) if recipe.is_normalized else vector


def pooled(states: Tensor, mask: Tensor, recipe: Recipe, dense: Pool) -> Tensor:
    """Return the vectors of a batch, of shape (texts, dimensions), as `vector_of` makes each.

    Args:
        states: Of shape (texts, tokens, dimensions), padded on the right.
        mask: Of shape (texts, tokens): 1 where a text has a token.
    """
    import torch

    if recipe.pooling == "cls":
        found = states[:, 0]
    elif recipe.pooling == "lasttoken":
        last = mask.sum(1) - 1
        found = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
    else:
        pool = POOLINGS[recipe.pooling]
        sizes = mask.sum(1).tolist()
        found = torch.stack([pool(one[:size]) for one, size in zip(states, sizes, strict=True)])
    vectors = dense(found)
    if not recipe.is_normalized:
        return vectors
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
