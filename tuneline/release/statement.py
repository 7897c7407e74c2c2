"""The in-toto statement: the files of the model as subjects, the release as predicate.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import json
from typing import Any

from tuneline.core.release import Release

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://tuneline.dev/release/v1"


def statement_of(release: Release) -> dict[str, Any]:
    """Return the statement as JSON."""
    model = release.model
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": f"{model.directory}/{entry.path}", "digest": {"sha256": entry.sha256}}
            for entry in model.files
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": release.model_dump(mode="json"),
    }


def statement_text(release: Release) -> str:
    """Return the text of `statement.json`."""
    return json.dumps(statement_of(release), indent=2) + "\n"
