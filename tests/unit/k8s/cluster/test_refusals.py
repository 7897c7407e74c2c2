"""kubectl's words and the errors that they become."""

from __future__ import annotations

import pytest

from k8s.cluster.refusals import explain_refusal, is_unreachable
from tuneline.core.errors import ServerError

OPTIONS = ["--context=c", "--namespace=n"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ('error: context "x" does not exist', "does not exist", "kubectl config get-contexts"),
        (
            'Error from server (NotFound): namespaces "n" not found',
            "the namespace does not exist",
            "kubectl --context=c create namespace n",
        ),
        (
            "error: You must be logged in to the server (Unauthorized)",
            "does not accept your credentials",
            "auth whoami",
        ),
        (
            'Error from server (Forbidden): pods is forbidden: User "u" cannot list "pods"',
            "kubectl get is forbidden",
            "auth can-i --list",
        ),
        (
            'Error from server (Forbidden): admission webhook "w" denied the request: no label',
            "does not admit the objects",
            None,
        ),
        (
            'The request is invalid: admission webhook "vdeployment.kb.io" denied the request: '
            'metadata.labels[kueue.x-k8s.io/queue-name]: Invalid value: "b": field is immutable',
            "Kueue lets no running server join, change or leave a queue",
            "kubectl --context=c --namespace=n delete deployment",
        ),
        (
            'Error from server: admission webhook "vscaledobject.kb.io" denied the request: the '
            "workload 'x' of type 'apps/v1.Deployment' is already managed by the hpa 'x-hpa'",
            "KEDA takes no server that another autoscaler has",
            "--namespace=n delete horizontalpodautoscaler x-hpa",
        ),
        (
            'error: Apply failed with 1 conflict: conflict with "hpa" using apps/v1: .spec.replicas'
            "\n"
            "Please review the fields above--they currently have other managers.",
            "using apps/v1: .spec.replicas",
            "--force-conflicts",
        ),
        (
            'error: resource mapping not found: no matches for kind "HTTPRoute" in version "v1"',
            "lacks a kind of object",
            "leave out its component",
        ),
        (
            "Error from server (InternalError): Internal error occurred: failed calling webhook "
            '"w.example.com": failed to call webhook: Post "https://w.n.svc:443/x?timeout=10s": '
            "context deadline exceeded",
            "an admission webhook of the cluster does not answer: ",
            "validatingwebhookconfigurations",
        ),
        ("Error from server (BadRequest): what", "kubectl get: Error from server", None),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_type(words: str, message: str, hint: str | None) -> None:
    found = explain_refusal("context c, namespace n", OPTIONS, "get", words)
    assert message in found.message
    assert found.message.startswith("context c, namespace n: ")
    assert "Please review" not in found.message
    assert (hint is None and found.hint is None) or (hint or "") in (found.hint or "")
    assert not is_unreachable(found)


@pytest.mark.parametrize(
    "words",
    [
        "The connection to the server 127.0.0.1:1 was refused",
        "Unable to connect to the server: dial tcp: lookup k.example.com: no such host",
        "Unable to connect to the server: net/http: TLS handshake timeout",
        "error: Get \"https://k/api\": context deadline exceeded (Client.Timeout exceeded)",
        "Error from server: etcdserver: request timed out",
    ],
)  # fmt: skip
def test_a_cluster_that_does_not_answer_is_told_from_one_that_refuses(words: str) -> None:
    found = explain_refusal("w", OPTIONS, "get", words)
    assert isinstance(found, ServerError)
    assert is_unreachable(found)
    assert "the cluster does not answer" in found.message


def test_passwords_and_repeated_notes_are_left_out() -> None:
    words = (
        "E1129 02:00:00.000000  1 memcache.go:265] couldn't get current server API group list\n"
        "Warning: policy/v1beta1 is deprecated\n"
        "Error from server: proxy http://ana:secret@proxy:3128 says no"
    )
    found = explain_refusal("w", OPTIONS, "get", words).message
    assert "memcache" not in found
    assert "Warning" not in found
    assert "secret" not in found
    assert "proxy:3128 says no" in found
