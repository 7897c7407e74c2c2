"""The section `k8s` of run.yaml. No machine-learning imports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from k8s.placement_config import Placement
from k8s.training_config import TrainingJob
from k8s.value_types import (
    GPU,
    DnsLabel,
    DnsSubdomain,
    GpuResource,
    Image,
    LabelKey,
    LabelValue,
    Quantity,
    slices_problem,
)
from tuneline.core.config import StrictModel
from tuneline.core.secrets import has_secrets

# Values that the base fixes for the server's container; the arguments must match them.
MODEL_DIR = "/model"
HOST = "0.0.0.0"  # noqa: S104 (the pod's own network; a NetworkPolicy and a key guard it)
PORT = 8000
ADAPTERS_DIR = "/adapters"
RECORDING_DIR = "/recorded"


class Resources(StrictModel):
    """The resources of one server pod; a field that is left out keeps the overlay's value."""

    cpu: Quantity | None = None
    """Cores, e.g. `4`: requested, and on the CPU overlay also the limit."""
    cpu_limit: Quantity | None = None
    """A limit of cores on the GPU overlay, for a namespace whose quota asks for one. The overlay's
    request of 4 is lowered to it."""
    memory: Quantity | None = None
    """Requested and limit, e.g. `24Gi`."""
    ephemeral_storage: Quantity | None = None
    """The limit of the node's disk: above the emptyDirs, which have 11 GiB."""
    gpus: int | None = Field(default=None, ge=1)
    """GPUs of one pod, only with the overlay `gpu`."""
    gpu_resource: GpuResource = GPU
    """The name by which NVIDIA's device plugin offers them: `nvidia.com/mig-3g.40gb` for a slice by
    MIG, `nvidia.com/gpu.shared` for a share of time. A pod uses one slice."""


class LoadTestResources(StrictModel):
    """The resources of one load pod, requested and limit."""

    cpu: Quantity = "2"
    """Whole cores: a throttled client measures itself."""
    memory: Quantity = "2Gi"


class HubModel(StrictModel):
    """A model that an init container downloads from the Hugging Face Hub."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """A commit: a branch or a tag may name other content tomorrow."""
    secret_name: DnsLabel | None = None
    """A Secret whose key `token` may read the repository."""
    size: Quantity = "50Gi"
    """The limit of the folder on the node's disk."""


class FetchedModel(StrictModel):
    """A model that an init container copies from object storage into the folder `/model`."""

    image: Image
    """An image that holds the storage's own client, e.g. of S3, GCS or Azure."""
    command: tuple[str, ...] = Field(min_length=1)
    """Its whole command, e.g. `[aws, s3, cp, --recursive, s3://models/tickets, /model]`."""
    secret_name: DnsLabel | None = None
    """A Secret whose keys become environment variables of the init container."""
    port: int = Field(default=443, ge=1, le=65535)
    """The storage's port, which the NetworkPolicy opens."""
    size: Quantity = "50Gi"
    """The limit of the folder on the node's disk."""

    @model_validator(mode="after")
    def _fills_the_folder(self) -> FetchedModel:
        if not any(MODEL_DIR in part for part in self.command):
            raise ValueError(f"command does not name {MODEL_DIR}, the folder that is served")
        if has_secrets(self.command):
            raise ValueError(
                "command has a secret, which manifests and releases would show; expected it in the "
                "Secret secret_name, whose keys are variables, such as $(TOKEN)"
            )
        return self


class Autoscaling(StrictModel):
    """A number of pods that follows the load. The targets come from the run's load report."""

    by: Literal["hpa", "keda"]
    """`hpa`: HorizontalPodAutoscaler on the requests in flight, which needs an adapter that serves
    `tuneline_requests_in_flight` as a metric of pods. `keda`: ScaledObject on the requests in
    flight and on the worse of TTFT and TPOT against their objectives."""
    min_replicas: int = Field(default=1, ge=0)
    """0 only with `by: keda` and `wake_query`."""
    max_replicas: int = Field(ge=1)
    headroom: float = Field(default=0.8, gt=0, le=1)
    """The share of the measured requests in flight that one pod gets: a new pod takes a start-up
    until it serves."""
    ready_s: float = Field(default=120.0, gt=0)
    """Seconds from a pod's start until it serves; `tuneline_ready_seconds` shows them. Pods are
    taken away after a pause of four times this long, at least 450 s and at most an hour."""
    prometheus_url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """KEDA's source, e.g. `http://prometheus-operated.monitoring.svc:9090`."""
    wake_query: str | None = None
    """A PromQL query above 0 when requests come although no pod runs, e.g. of a gateway's rate."""

    @model_validator(mode="after")
    def _consistent(self) -> Autoscaling:
        problems = []
        if self.min_replicas > self.max_replicas:
            problems.append("min_replicas is above max_replicas")
        if (self.by == "keda") != (self.prometheus_url is not None):
            problems.append("prometheus_url goes with by: keda")
        if (self.min_replicas == 0) != (self.wake_query is not None):
            problems.append("min_replicas: 0 and wake_query go together")
        if self.wake_query is not None and self.by != "keda":
            problems.append("wake_query goes with by: keda")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Canary(StrictModel):
    """A second run that gets a share of the requests."""

    run: DnsLabel
    """Its name; its manifests are applied in the same namespace."""
    weight: int = Field(ge=1, le=99)
    """Percent of the requests."""


class Gateway(StrictModel):
    """An HTTPRoute (Gateway API) to the server."""

    name: DnsSubdomain
    """The Gateway."""
    namespace: DnsLabel
    """The Gateway's namespace."""
    hostnames: tuple[DnsSubdomain, ...] = ()
    pods_namespace: DnsLabel | None = None
    """Where the gateway's own pods run, if it is another namespace, e.g. `envoy-gateway-system`:
    the NetworkPolicy lets it in."""
    canary: Canary | None = None
    route: bool = True
    """False for a canary's own run: the gateway's pods get in, and the first run has the route."""

    @model_validator(mode="after")
    def _consistent(self) -> Gateway:
        if self.canary is not None and not self.route:
            raise ValueError("canary is a share of a route; give route: true")
        return self


class ClusterAdapters(StrictModel):
    """The adapters that the server has at run time, with `serving.adapters`."""

    claim: DnsLabel
    """The PersistentVolumeClaim with a copy of `serving.adapters.root`. The server also keeps its
    list and its copies there."""
    secret_name: DnsSubdomain = "tuneline-admin-key"  # noqa: S105 (a name)
    """The Secret whose key `api-key` is an admin key of `keys_secret_name`."""
    desired: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], str] = Field(default={})
    """By the name that clients ask for, the adapter's folder below `serving.adapters.root`."""


class CanaryJudge(StrictModel):
    """A Job in the cluster that judges this run as the canary of another run: its answers against
    the reference, then its speed against the other run's."""

    stable: DnsLabel
    """The run that has the route, in the same namespace and with the same API key."""
    by: Literal["job", "analysis-template"] = "job"
    """`job`: `deploy canary` runs it at each step. `analysis-template`: an AnalysisTemplate of Argo
    Rollouts has the same Job."""


class EndpointPicker(StrictModel):
    """An InferencePool (Gateway API Inference Extension) with an endpoint picker of yours."""

    name: DnsLabel
    """The endpoint picker's Service in the same namespace."""
    port: int = Field(default=9002, ge=1, le=65535)
    failure_mode: Literal["FailOpen", "FailClose"] = "FailOpen"
    """`FailClose` answers nothing while the endpoint picker is away."""


class ReleaseKey(StrictModel):
    """The public key that must have signed the model. It is created by hand, next to the manifests:
    who may change the manifests must not choose the key."""

    config_map: DnsSubdomain | None = None
    """A ConfigMap with the key. Exclusive with `secret_name`."""
    secret_name: DnsSubdomain | None = None
    """A Secret with the key."""
    file: str = Field(default="release.pub", pattern=r"^[\w-][\w.-]*$")
    """The entry that holds the PEM text."""

    @model_validator(mode="after")
    def _consistent(self) -> ReleaseKey:
        if (self.config_map is None) == (self.secret_name is None):
            raise ValueError("expected one of config_map and secret_name")
        return self


class DeployConfig(StrictModel):
    """The values that `tuneline deploy render` fills into the manifests."""

    namespace: DnsLabel = "tuneline"
    overlay: Literal["cpu", "gpu"] = "gpu"
    image: Image | None = None
    """The server's image, built from `k8s/images/Dockerfile.server`; needed to
    render. Pin it by digest for production."""
    loadtest_image: Image | None = None
    """The image of `k8s/images/Dockerfile.loadtest`; without it no load-test Job is rendered."""
    load_pods: int = Field(default=1, ge=1, le=256)
    """How many pods share the load test's schedule; more than one if one client's cores do not
    carry the rate. The load test then runs one scenario."""
    results_claim: DnsLabel | None = None
    """The PersistentVolumeClaim that keeps the load test's reports; with several load pods it is
    needed, and all of them mount it (ReadWriteMany)."""
    loadtest_resources: LoadTestResources = LoadTestResources()
    loadtest_prompts: Literal["config-map", "claim"] = "config-map"
    """Where the load test's prompts are. A ConfigMap is readable by everybody who may view the
    namespace; with `claim`, you copy a file `<run name>-prompts.jsonl` to `results_claim`."""
    workload: Literal["deployment", "leader-worker-set", "llm-inference-service"] = "deployment"
    """`leader-worker-set`: one model over `hosts` hosts (LeaderWorkerSet v1).
    `llm-inference-service`: KServe makes the Deployment (LLMInferenceService v1alpha2)."""
    hosts: int = Field(default=1, ge=1, le=64)
    """Hosts of one model, with `workload: leader-worker-set`. `serving.tensor_parallel_size` times
    vLLM's `pipeline_parallel_size` is the number of all their GPUs."""
    replicas: int = Field(default=1, ge=1)
    surge: bool = False
    """Start a new pod before the old one ends. It needs a free node or GPU."""
    scheduling_s: int = Field(default=300, ge=1)
    """Seconds for scheduling a pod and pulling its image, before a rollout counts as failed; more
    if a node has to be added first."""
    autoscaling: Autoscaling | None = None
    """In place of `replicas`."""
    model_claim: DnsLabel | None = None
    """The PersistentVolumeClaim that holds the model folder. Exclusive with `model_image`."""
    model_claim_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"] = "ReadWriteOnce"
    """The claim's access mode. With `ReadWriteOnce`, all pods run on one node."""
    model_path: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)*$")
    """The model folder inside the claim; `<run name>-<first 12 digits of the digest>` by default,
    so that versions lie side by side and a rollback finds the earlier one."""
    model_image: Image | None = None
    """An OCI image that holds the model folder at its root, mounted as an image volume
    (Kubernetes 1.35 or later). Exclusive with `model_claim`."""
    model_hub: HubModel | None = None
    """In place of a claim or an image; needs access to the Hub from the cluster and
    `verify_model`."""
    model_fetch: FetchedModel | None = None
    """In place of a claim or an image; needs `verify_model`."""
    verify_model: bool = False
    """An init container compares every byte of the model with its manifest, and the manifest with
    the digest of this run, before vLLM starts. It uses `loadtest_image`."""
    release_key: ReleaseKey | None = None
    """The init container of `verify_model` also checks the signature of the release, with this
    public key. The manifests then come from a signed release."""
    cache_claim: DnsLabel | None = None
    """A PersistentVolumeClaim for compiled kernels, so that a new pod does not compile them again.
    Mounted by every pod; more than one pod needs ReadWriteMany."""
    secret_name: DnsLabel = "tuneline-api-key"  # noqa: S105 (a name)
    """The Secret whose key `api-key` is the server's API key; it is created by hand."""
    keys_secret_name: DnsSubdomain | None = None
    """The Secret whose key `keys.toml` is the file of named keys that `serving.keys_file` is here;
    it is created by hand. The key of `secret_name` then stays valid, without limits."""
    image_pull_secrets: tuple[DnsSubdomain, ...] = ()
    """Secrets of type `kubernetes.io/dockerconfigjson` in the namespace, for images in a private
    registry: the server's, the model's and the load test's."""
    resources: Resources = Resources()
    run_as_user: int | None = Field(default=10001, ge=1)
    """The user and group of all pods. null leaves them to the cluster, as OpenShift asks."""
    placement: Placement = Placement()
    queue_name: DnsLabel | None = None
    """A Kueue LocalQueue that admits the server, the load test and the training."""
    training: TrainingJob | None = None
    """The training in the cluster; `deploy render --training` writes its manifests."""
    gateway: Gateway | None = None
    adapters: ClusterAdapters | None = None
    """Adapters at run time, as a ConfigMap that a Job brings to the server. Needs
    `keys_secret_name` and `loadtest_image`; the server has one pod."""
    recording_claim: DnsLabel | None = None
    """The PersistentVolumeClaim to which the server records requests, with `serving.recording`;
    more than one pod needs ReadWriteMany."""
    judge: CanaryJudge | None = None
    """In the section of a canary's own run. It uses `loadtest_image` and `results_claim`, to which
    you copy the reference of the run."""
    endpoint_picker: EndpointPicker | None = None
    monitoring_namespace: DnsLabel | None = None
    """Where a Prometheus operator runs: adds a ServiceMonitor, alerts and a Grafana dashboard, and
    lets that namespace scrape."""
    monitoring_labels: dict[LabelKey, LabelValue] = Field(default={})
    """Labels by which your Prometheus picks monitors and rules, e.g. `release: prometheus`."""

    @field_validator("model_path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and {".", ".."} & set(path.split("/")):
            raise ValueError(f"{path!r} leaves the volume; expected a folder inside it")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> DeployConfig:
        sources = ("model_claim", "model_image", "model_hub", "model_fetch")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude one another; give one of them")
        if self.model_path is not None and self.model_claim is None:
            raise ValueError("model_path is a folder inside model_claim; give model_claim too")
        copied = [name for name in given if name in ("model_hub", "model_fetch")]
        if copied and not self.verify_model:
            raise ValueError(
                f"{copied[0]} may copy another model than this run's; give verify_model: true too"
            )
        if self.verify_model and self.loadtest_image is None:
            raise ValueError("verify_model uses loadtest_image; give loadtest_image too")
        if self.release_key is not None and not self.verify_model:
            raise ValueError("release_key is read by the init container; give verify_model: true")
        # A resolved run.yaml names every key, so the default is not a mistake.
        if self.autoscaling is not None and self.replicas != 1:
            raise ValueError(
                f"replicas: {self.replicas} has no effect with autoscaling; expected "
                "autoscaling.min_replicas"
            )
        if self.loadtest_prompts == "claim" and self.results_claim is None:
            raise ValueError("loadtest_prompts: claim needs results_claim")
        if self.monitoring_labels and self.monitoring_namespace is None:
            raise ValueError("monitoring_labels needs monitoring_namespace")
        if self.autoscaling is not None and self.monitoring_namespace is None:
            raise ValueError(
                "autoscaling reads metrics that a ServiceMonitor scrapes; give "
                "monitoring_namespace too"
            )
        if self.load_pods > 1 and self.results_claim is None:
            raise ValueError(
                "load_pods above 1 needs results_claim: the volume claim (ReadWriteMany) through "
                "which the load pods begin together and join their results"
            )
        if (self.hosts > 1) != (self.workload == "leader-worker-set"):
            raise ValueError("hosts above 1 and workload: leader-worker-set go together")
        if self.hosts > 1 and self.overlay == "cpu":
            raise ValueError("hosts above 1 needs overlay: gpu")
        if self.hosts > 1 and self.model_claim and self.model_claim_mode == "ReadWriteOnce":
            raise ValueError(
                "model_claim_mode: ReadWriteOnce is for one host; hosts above 1 needs "
                "ReadWriteMany or ReadOnlyMany"
            )
        if self.workload == "llm-inference-service" and self.autoscaling is not None:
            raise ValueError("autoscaling scales a Deployment that KServe owns; leave it out")
        is_slice = self.resources.gpu_resource != GPU
        if (self.resources.gpus is not None or is_slice) and self.overlay == "cpu":
            name = "gpu_resource" if is_slice else "gpus"
            raise ValueError(f"resources.{name} needs overlay: gpu")
        if problem := slices_problem(self.resources.gpu_resource, self.resources.gpus):
            raise ValueError(f"resources.{problem}")
        if self.resources.cpu_limit is not None and self.overlay == "cpu":
            raise ValueError("resources.cpu is the limit too on overlay: cpu; leave out cpu_limit")
        if self.placement.gpu_product is not None and self.overlay == "cpu":
            raise ValueError("placement.gpu_product needs overlay: gpu")
        return self

    @model_validator(mode="after")
    def _have_what_their_jobs_use(self) -> DeployConfig:
        if self.adapters is not None:
            if None in (self.loadtest_image, self.keys_secret_name):
                raise ValueError("adapters uses loadtest_image and keys_secret_name; give both too")
            if (self.replicas, self.surge, self.autoscaling) != (1, False, None):
                raise ValueError(
                    "adapters are those of one pod; expected replicas: 1, no surge and no "
                    "autoscaling"
                )
            if self.workload != "deployment":
                raise ValueError("adapters goes with workload: deployment")
        if self.judge is not None and None in (self.loadtest_image, self.results_claim):
            raise ValueError("judge uses loadtest_image and results_claim; give both too")
        return self

    @property
    def most_pods(self) -> int:
        """Return how many pods of the server may run at one time."""
        replicas = self.autoscaling.max_replicas if self.autoscaling else self.replicas
        return replicas + (1 if self.surge else 0)
