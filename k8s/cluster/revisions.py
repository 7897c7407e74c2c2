"""The record of what was applied, in the cluster: a ConfigMap next to the server.

Each revision holds its manifests whole, so that a roll-back brings back the configuration, the
autoscaler and the route together with the pods. `kubectl rollout undo` restores the pods only.
"""

from __future__ import annotations

import base64
import getpass
import gzip
import json
import os
import socket
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import Field, ValidationError

from k8s.cluster.changes import clean, identity
from k8s.cluster.kubectl import Cluster, Object, apply, create, get
from k8s.cluster.refusals import CHANGED_RECORD
from k8s.render.kustomize import INSTANCE_LABEL
from tuneline import __version__
from tuneline.core.config import StrictModel
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError, ServerError

MAX_REVISIONS = 6
MAX_SIZE_BYTES = 900_000
"""Below the limit of a ConfigMap, which is 1 MiB."""
HISTORY = "history.json"

State = Literal["applying", "deployed", "failed", "interrupted"]


class Revision(StrictModel):
    """One apply."""

    number: int
    state: State
    release: str | None
    """The release's digest; None for manifests that were rendered without one."""
    model_digest: str
    image: str
    applied_at: str
    """UTC, ISO 8601."""
    applied_by: str
    """USER@HOST."""
    process: int
    """The process on that host."""
    until: str
    """UTC; another apply does not begin before, as long as the state is `applying`."""
    tuneline_version: str
    why: str = ""
    """Why it failed."""
    replaces: int = 0
    """The proven revision that ran before it; 0 for none. After a roll-back, that is not the newest
    one: the newest is what somebody went back from."""

    def words(self) -> str:
        """Return the revision in a few words."""
        release = "no release" if self.release is None else f"release {short_digest(self.release)}"
        return f"revision {self.number} ({release}, model {short_digest(self.model_digest)})"

    def applied_by_whom(self) -> tuple[str, int, str]:
        """Return what tells the apply of this revision from any other."""
        return self.applied_by, self.process, self.applied_at


class History(StrictModel):
    """All revisions that are kept, the oldest first."""

    format_version: Literal[1] = 1
    current: int = 0
    """The revision whose objects are in the cluster; 0 before the first."""
    going_to: int = 0
    """The revision that a roll-back began to bring back and has not proven; 0 for none."""
    revisions: list[Revision] = Field(default=[])

    def find(self, number: int) -> Revision | None:
        """Return a revision by its number."""
        return next((one for one in self.revisions if one.number == number), None)

    def now(self) -> Revision | None:
        """Return the revision whose objects are in the cluster."""
        return self.find(self.current)

    def earlier(self) -> Revision | None:
        """Return the proven revision that ran before the current one."""
        now = self.now()
        found = None if now is None else self.find(now.replaces)
        return found if found is not None and found.state == "deployed" else None

    def target(self) -> Revision | None:
        """Return where a roll-back goes: to that of a roll-back that did not end, else to the
        proven revision before the current one."""
        return self.find(self.going_to) or self.earlier()

    def proven(self) -> Revision | None:
        """Return where a failed apply goes back to: to the revision of a roll-back that did not
        end, to the current revision if it is proven, else to the proven one before it."""
        if (begun := self.find(self.going_to)) is not None:
            return begun
        now = self.now()
        return now if now is not None and now.state == "deployed" else self.earlier()


class Record:
    """The history of one server and the manifests of its revisions, as last read."""

    def __init__(self, server: str, run: str, live: Mapping[str, Any] | None) -> None:
        self.server, self.run = server, run
        self.name = record_name(server)
        self.version: str | None = None
        self.history = History()
        self.manifests: dict[int, str] = {}
        if live is not None:
            self._read(live)

    def _read(self, live: Mapping[str, Any]) -> None:
        self.version = live["metadata"].get("resourceVersion")
        labels = live["metadata"].get("labels", {})
        if "data" not in live and labels.get(INSTANCE_LABEL) == self.run:
            return  # the first write was cut off after the record was created
        try:
            self.history = History.model_validate_json(live["data"][HISTORY])
            self.manifests = {
                int(name.partition(".")[0]): value for name, value in live["binaryData"].items()
            }
        except (KeyError, ValueError, ValidationError) as error:
            raise ArtifactError(
                f"ConfigMap/{self.name}: is not the record of a deployment ({error}); expected "
                "the one that `tuneline deploy apply` wrote",
                hint=f"Try: kubectl delete configmap {self.name}; the server keeps running",
            ) from None

    def objects(self, number: int) -> list[Object]:
        """Return the manifests of a revision.

        Raises:
            ArtifactError: The record does not have them, or they are damaged.
        """
        try:
            packed = base64.b64decode(self.manifests[number])
            found: list[Object] = json.loads(gzip.decompress(packed))
        except (KeyError, ValueError, EOFError, OSError, zlib.error) as error:
            raise ArtifactError(
                f"ConfigMap/{self.name}: {number}.json.gz is damaged ({error!r}); expected the "
                f"manifests of revision {number}",
                hint=f"Try: kubectl delete configmap {self.name}; the server keeps running",
            ) from None
        return found

    def current_objects(self) -> list[Object]:
        """Return the manifests whose objects are in the cluster, as they were rendered."""
        now = self.history.now()
        return [] if now is None else self.objects(now.number)

    def surplus(self, wanted: Sequence[Mapping[str, Any]]) -> list[Object]:
        """Return the objects of all revisions that manifests do not have.

        The current revision is not enough: an apply that was interrupted leaves objects of the
        revisions before it.

        Raises:
            ArtifactError: The manifests of a revision are damaged.
        """
        kept = {identity(item) for item in wanted}
        found = {
            identity(item): item
            for revision in self.history.revisions
            for item in self.objects(revision.number)
        }
        return [item for key, item in found.items() if key not in kept]

    def add(self, revision: Revision, objects: Sequence[Mapping[str, Any]]) -> None:
        """Add a revision as the current one, and forget the oldest beyond the limits."""
        text = json.dumps([dict(item) for item in objects]).encode()
        packed = base64.b64encode(gzip.compress(text, mtime=0)).decode()
        keep = [one for one in self.history.revisions if one.number != revision.number]
        self.manifests[revision.number] = packed
        revisions = [*keep, revision]
        proven = self.history.proven()
        while len(revisions) > MAX_REVISIONS or self._size(revisions) > MAX_SIZE_BYTES:
            old = next((o for o in revisions[:-1] if o is not proven), None)
            if old is None:
                break
            revisions.remove(old)
        self.manifests = {one.number: self.manifests[one.number] for one in revisions}
        self.history = self.history.model_copy(
            update={"current": revision.number, "revisions": revisions}
        )

    def _size(self, revisions: Sequence[Revision]) -> int:
        return sum(len(self.manifests[one.number]) for one in revisions)

    def set_state(self, number: int, state: State, why: str = "") -> None:
        """Set the state of a revision."""
        self.history = self.history.model_copy(
            update={
                "revisions": [
                    o.model_copy(update={"state": state, "why": why}) if o.number == number else o
                    for o in self.history.revisions
                ]
            }
        )

    def set_current(self, number: int) -> None:
        """Set the revision whose objects are in the cluster."""
        self.history = self.history.model_copy(update={"current": number})

    def set_going_to(self, number: int) -> None:
        """Set the revision that a roll-back brings back; 0 as soon as a version is proven."""
        self.history = self.history.model_copy(update={"going_to": number})

    def close(
        self, cluster: Cluster, revision: Revision, state: State, why: str = "", *,
        current: int | None = None,
    ) -> None:  # fmt: skip
        """Write how the apply of a revision ended.

        A write that was cut off may be stored. The record then is another one than the last read,
        and its revision still is as this process began it.

        Args:
            current: The revision whose objects are in the cluster, if it is another one.

        Raises:
            ServerError: Somebody else changed the record, or the cluster refuses.
        """
        self._end(revision.number, state, why, current)
        try:
            self.write(cluster)
        except ServerError as error:
            if CHANGED_RECORD not in error.message:
                raise
            stored = read_record(cluster, self.server, self.run)
            if stored.history.revisions:
                found = stored.history.find(revision.number)
                if found is None or found.applied_by_whom() != revision.applied_by_whom():
                    raise
                if stored.history.revisions[-1].number != self.history.revisions[-1].number:
                    raise
                if found.state not in ("applying", state):
                    raise
                self.history, self.manifests = stored.history, stored.manifests
            self.version = stored.version
            self._end(revision.number, state, why, current)
            self.write(cluster)

    def _end(self, number: int, state: State, why: str, current: int | None) -> None:
        self.set_state(number, state, why)
        if current is not None:
            self.set_current(current)
        if state == "deployed" or (state == "failed" and current is not None):
            self.set_going_to(0)

    def write(self, cluster: Cluster) -> None:
        """Write the record; somebody else's write since the last read is a conflict.

        A new record is created empty first: an apply on the server's side would merge with one
        that somebody else creates at the same time.

        Raises:
            ServerError: The record was changed since, or the cluster refuses.
        """
        labels = {
            INSTANCE_LABEL: self.run,
            "app.kubernetes.io/part-of": "tuneline",
            "app.kubernetes.io/managed-by": "tuneline",
        }
        metadata = {"name": self.name, "labels": labels}
        document: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        if self.version is None:
            self.version = create(cluster, document)["metadata"]["resourceVersion"]
        document |= {
            "metadata": {**metadata, "resourceVersion": self.version},
            "data": {HISTORY: self.history.model_dump_json(indent=1)},
            "binaryData": {f"{number}.json.gz": text for number, text in self.manifests.items()},
        }
        (written,) = apply(cluster, [document], force_conflicts=True)
        self.version = written["metadata"].get("resourceVersion")


def record_name(server: str) -> str:
    """Return the name of the ConfigMap."""
    return f"{server}-revisions"


def read_record(cluster: Cluster, server: str, run: str) -> Record:
    """Return the record of a server; an empty one if there is none.

    Raises:
        ArtifactError: The ConfigMap of that name is not a record.
        ServerError: The cluster does not answer, or refuses.
    """
    found = get(cluster, "configmap", record_name(server))
    return Record(server, run, found[0] if found else None)


def new_revision(
    record: Record, *, release: str | None, model_digest: str, image: str, within_s: float
) -> Revision:
    """Return the next revision, in the state `applying`."""
    now = datetime.now(UTC)
    proven = record.history.proven()
    return Revision(
        number=max((one.number for one in record.history.revisions), default=0) + 1,
        state="applying",
        release=release,
        model_digest=model_digest,
        image=image,
        applied_at=now.isoformat(timespec="seconds"),
        applied_by=f"{_user()}@{socket.gethostname()}",
        process=os.getpid(),
        until=(now + timedelta(seconds=within_s)).isoformat(timespec="seconds"),
        tuneline_version=__version__,
        replaces=0 if proven is None else proven.number,
    )


def is_under_way(revision: Revision) -> bool:
    """Return whether another apply has not ended, as far as its limit and its process say."""
    if revision.state != "applying" or datetime.fromisoformat(revision.until) <= datetime.now(UTC):
        return False
    return revision.applied_by.rpartition("@")[2] != socket.gethostname() or _is_alive(
        revision.process
    )


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # this process begins: in a container, every process may have the number 1
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def without_server_fields(item: Mapping[str, Any]) -> Object:
    """Return a live object as a manifest that brings it back."""
    kept = clean(item)
    if kept["kind"] == "Service":
        addresses = ("clusterIP", "clusterIPs", "healthCheckNodePort")
        kept["spec"] = {key: v for key, v in kept["spec"].items() if key not in addresses}
    return kept


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
