"""The `serving` section of `run.yaml`: vLLM's own option names, and how its process is kept."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tuneline.core.config import StrictModel
from tuneline.core.secrets import is_secret_name, variable_name
from tuneline.core.tolerances import Tolerances

# Flags that this room works out itself; two sources for one flag would let one win in silence.
OWN_FLAGS = {
    "config": "write its keys under serving and serving.extra_args",
    "disable_access_log_for_endpoints": "probes are always left out",
    "disable_fastapi_docs": "only the routes of the API are open",
    "disable_log_stats": "the heartbeat and the metrics need the counters",
    "disable_uvicorn_access_log": "the access log is Tuneline's: set serving.log_format",
    "api_key": "keys travel in the environment; set serving.api_key_env",
    "enable_lora": "set serving.mode to adapter, or serving.adapters",
    "generation_config": "it comes from the model's folder",
    "grpc": "the server answers HTTP",
    "headless": "the server answers HTTP",
    "host": "set serving.host",
    "lora_modules": "set serving.mode to adapter",
    "max_cpu_loras": "set serving.adapters.max_adapters",
    "max_lora_rank": "it follows from the adapter, or from serving.adapters.max_lora_rank",
    "max_loras": "set serving.adapters.max_adapters",
    "middleware": "Tuneline's own is the outermost",
    "model": "it is the artifact that is served",
    "model_tag": "it is the artifact that is served",
    "port": "set serving.port",
    "root_path": "the middleware knows routes from the root",
    "runner": "it follows from serving.routes",
    "served_model_name": "it is the run's name and the artifact's digest",
    "enable_sleep_mode": "the routes that it needs are closed",
    "enable_ssl_refresh": "TLS ends in front of the server",
    "ssl_ca_certs": "TLS ends in front of the server",
    "ssl_cert_reqs": "TLS ends in front of the server",
    "ssl_certfile": "TLS ends in front of the server",
    "ssl_keyfile": "TLS ends in front of the server",
    "tokenizer": "it comes from the model's folder",
    "trust_remote_code": "code from a model folder is never run",
    "uds": "the server listens on TCP",
}


ModelAlias = Annotated[str, Field(pattern=r"^[^\s@]+$")]
"""A name without `@`, which separates the run's name from the digest."""

FILE_FLAGS = ("chat_template", "reasoning_parser_plugin", "tool_parser_plugin")
"""Flags of vLLM whose value may be the path of a file."""
ONE_WITH_ADAPTERS = {
    "api_server_count": "vLLM takes adapters at run time with one front end only",
    "data_parallel_size": "the proof of an adapter would reach one engine only",
}
"""Flags of vLLM that must be 1 with `serving.adapters`, by name."""
NOT_SECRET_FLAGS = {"allow_credentials"}
"""Flags of vLLM that are named like a secret and hold none: this flag is a CORS setting."""


def flag_name(name: str) -> str:
    """Return a flag's name with underscores and without leading hyphens."""
    return name.removeprefix("--").replace("-", "_")


RouteName = Literal[
    "responses", "messages", "tokenize", "page", "embeddings", "pooling", "classify", "score"
]
POOLING_ROUTES = frozenset({"embeddings", "pooling", "classify", "score"})
"""Routes of a server that computes vectors or scores in place of text."""


class ServedParityConfig(StrictModel):
    """How the server's answers are compared with the reference."""

    tolerances: Tolerances | None = None
    """None takes the default of the number format that the server computes in: docs/parity.md."""
    concurrency: int = Field(default=1, ge=1)
    """Requests in flight. With more than one, vLLM computes them in batches, and float results
    depend on the batch."""
    request_timeout_s: float = Field(default=120.0, gt=0, json_schema_extra={"keyed": False})


class LimitsConfig(StrictModel):
    """Limits of every request, whatever its key; a request beyond a limit never reaches vLLM."""

    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """A larger body is answered with 413."""
    header_timeout_s: float = Field(default=30.0, gt=0)
    """A connection that has not sent the whole header of a request by then is closed."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """A body that has not come by then is answered with 408."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """A connection is closed if its client takes no byte of an answer for this time. A client that
    reads slowly keeps its connection."""
    max_n: int = Field(default=16, ge=1)
    """Answers that one request may ask for."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of answer that one request may ask for; the limit of a request that gives no number,
    too."""
    max_in_flight: int = Field(default=1024, ge=1)
    """Requests in progress, waiting ones included; one more is answered with 503. A list of prompts
    counts as so many requests."""


class AdaptersConfig(StrictModel):
    """Adapters that an admin key adds to the running server, each proven before it has its name."""

    root: str
    """The only folder from which adapters and their references are read; relative to the
    run.yaml."""
    max_adapters: int = Field(default=4, ge=1)
    """Names at once. The version before each is kept for a roll-back."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 64
    """The highest rank of an adapter. vLLM reserves memory for it."""


class RecordingConfig(StrictModel):
    """Requests with their answers, recorded for the next training: `tuneline data collect` reads
    them. A request's own `store: true` or `store: false` decides, as in OpenAI's API."""

    folder: str
    """Relative to the run.yaml. Its files hold what clients wrote; only their owner may read
    them."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Of the requests without `store`, at random."""
    max_gib: float = Field(default=1.0, ge=0.125)
    """Of the folder; the oldest files are removed."""
    keep_days: float = Field(default=30.0, gt=0)
    """Files in which nothing was written for longer are removed."""


class ServingConfig(StrictModel):
    """Options named as in vLLM reach the flag of that name; None leaves vLLM's default."""

    other_names: ClassVar[dict[str, str]] = {"shutdown_timeout_s": "shutdown_timeout"}

    mode: Literal["merged", "adapter"] = "merged"
    """Serve the merged model, or the base model with the LoRA adapter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the type of the weights; vLLM's own `auto` rounds float32 to 16 bits. bfloat16 is
    slow on a CPU without AMX or AVX512-BF16."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests computed at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """GPUs that share the model."""
    enforce_eager: bool | None = None
    """Skip compilation: a quicker start and slower answers. None compiles, except for LoRA on a
    CPU: vLLM compiles nothing there, and without the flag it takes slower functions."""
    compile_cache: str | None = Field(default=None, json_schema_extra={"keyed": False})
    """A baked compile cache, made by `tuneline serve RUN.yaml --bake DIR`; relative to the
    run.yaml. It fills the user's own cache if that has no kernels, and every file is checked."""
    cpu_kvcache_space_gib: int = Field(default=2, ge=1)
    """Memory for the KV cache on a CPU (`VLLM_CPU_KVCACHE_SPACE`); vLLM's own default takes most of
    the memory. A GPU has `gpu_memory_utilization` instead."""
    host: str = Field(default="127.0.0.1", json_schema_extra={"keyed": False})
    """Beyond loopback a key is required."""
    port: int | None = Field(default=None, ge=1, le=65535, json_schema_extra={"keyed": False})
    """None: a free port from the operating system."""
    api_key_env: Annotated[str, AfterValidator(variable_name)] = Field(
        default="VLLM_API_KEY", json_schema_extra={"keyed": False}
    )
    """The environment variable that holds the key; if it is unset, no key is asked for."""
    keys_file: str | None = Field(default=None, json_schema_extra={"keyed": False})
    """A file of named keys with limits, made by `tuneline keys add`; relative to the run.yaml. It
    is read again when it changes."""
    limits: LimitsConfig = Field(default=LimitsConfig(), json_schema_extra={"keyed": False})
    adapters: AdaptersConfig | None = Field(default=None, json_schema_extra={"keyed": False})
    """Adapters at run time, with `tuneline adapters`; in the cluster with `k8s.adapters`. Needs
    `keys_file` with an admin key."""
    recording: RecordingConfig | None = Field(default=None, json_schema_extra={"keyed": False})
    """Record requests and clients' feedback; nothing is recorded without it. Only `tuneline serve`
    and the cluster record: the line's own requests are left out."""
    routes: list[RouteName] = Field(default_factory=list, json_schema_extra={"keyed": False})
    """Routes that are open next to chat, completions and models: `/v1/responses`; `/v1/messages`,
    which Anthropic's client calls; `/tokenize` and `/detokenize`, for admin keys; `page`, which is
    `/chat` in a browser. Vectors and scores take the place of text: `/v1/embeddings`; `/pooling`;
    `/classify`; `score`, which is `/score`, `/rerank`,
    `/v1/rerank` and `/v2/rerank`."""
    aliases: list[ModelAlias] = Field(default_factory=list, json_schema_extra={"keyed": False})
    """More names of the model, after the run's own. A canary needs the name of the run whose
    requests it gets a share of."""
    log_format: Literal["text", "json"] = Field(default="text", json_schema_extra={"keyed": False})
    """Of the access log."""
    stall_after_s: float = Field(default=12.0, gt=0, json_schema_extra={"keyed": False})
    """An engine that computes nothing for so long while requests run is not ready; for twice as
    long, it is not healthy and its requests end with an error. A slow engine has four times its
    longest step, and before its first step the time that it took to load."""
    ready_timeout_s: float = Field(default=600.0, gt=0, json_schema_extra={"keyed": False})
    """How long loading may take."""
    shutdown_timeout: int = Field(default=30, ge=0, json_schema_extra={"keyed": False})
    """Seconds that answers in progress may take to finish after SIGTERM."""
    max_restarts: int = Field(default=3, ge=0, json_schema_extra={"keyed": False})
    """How often within an hour `tuneline serve` starts a crashed or stuck server again, after a
    pause that doubles from one second to a minute."""
    extra_args: dict[str, bool | int | float | str | list[Any] | dict[str, Any] | None] = Field(
        default_factory=dict
    )
    """Any other vLLM flag by its name: `true` gives `--flag`, `false` `--no-flag`, a list several
    values, a mapping JSON; null leaves the flag out. The path of a chat template, of a parser
    plugin or of a drafter starts from the run.yaml, or else from the current directory."""
    # Only the parity of the served model depends on this section; its stage names it.
    parity: ServedParityConfig = Field(
        default=ServedParityConfig(), json_schema_extra={"keyed": False}
    )

    @model_validator(mode="after")
    def _adapters_have_an_admin_and_one_process(self) -> ServingConfig:
        if self.adapters is None:
            return self
        if self.keys_file is None:
            raise ValueError("adapters: needs keys_file, with an admin key")
        for name, value in self.extra_args.items():
            why = ONE_WITH_ADAPTERS.get(flag_name(name))
            if why is not None and value not in (None, 1, "1"):
                raise ValueError(
                    f"adapters: extra_args.{name} is {value}; expected 1, because {why}. "
                    "Start several servers instead"
                )
        return self

    @model_validator(mode="after")
    def _vectors_or_text(self) -> ServingConfig:
        if not self.pools:
            return self
        vectors = ", ".join(sorted(POOLING_ROUTES & set(self.routes)))
        if text := sorted({"responses", "messages", "page"} & set(self.routes)):
            raise ValueError(f"routes: {vectors} takes the place of text; remove {', '.join(text)}")
        if self.recording is not None:
            raise ValueError(f"recording: needs a server of text; {vectors} takes its place")
        if self.mode == "adapter" or self.adapters is not None:
            raise ValueError(f"routes: {vectors} needs a merged model; LoRA is for text")
        return self

    @property
    def pools(self) -> bool:
        """Return whether the server computes vectors or scores in place of text."""
        return not POOLING_ROUTES.isdisjoint(self.routes)

    @property
    def score_route(self) -> str:
        """Return the route by which the scores of a reward model are asked."""
        return "pooling" if "pooling" in self.routes else "classify"

    @property
    def vector_route(self) -> str:
        """Return the route by which the vectors of an embedding model are asked."""
        return "v1/embeddings" if "embeddings" in self.routes else "pooling"

    @property
    def given_args(self) -> set[str]:
        """Return the flags of `extra_args`, each with underscores and without leading hyphens;
        `flag.key`, which sets one key of a mapping, is that flag."""
        return {flag_name(name).partition(".")[0] for name in self.extra_args}

    @field_validator("extra_args")
    @classmethod
    def _no_flag_twice(cls, extra_args: dict[str, Any]) -> dict[str, Any]:
        problems = []
        for name in extra_args:
            key = flag_name(name).removeprefix("no_")
            if key in OWN_FLAGS:
                problems.append(f"{name} cannot be set here: {OWN_FLAGS[key]}")
            elif key in cls.model_fields:
                problems.append(f"{name} cannot be set here: set serving.{key}")
            elif is_secret_name(key) and key not in NOT_SECRET_FLAGS:
                problems.append(f"{name} cannot be set here: secrets come from the environment")
        if problems:
            raise ValueError("; ".join(problems))
        return extra_args
