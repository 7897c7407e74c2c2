"""The release: everything that a line proved, judged by gates, in one signed folder.

`make_release` walks a run's artifacts from the data to the load report, applies the gates and
writes an artifact of kind `release`. `verify_release` checks such a folder later and elsewhere. The
schema of `release.json` is `tuneline.core.release`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from tuneline.release.make import make_release, require_released
    from tuneline.release.parties import Signer, Trust
    from tuneline.release.sign import check_signature
    from tuneline.release.verify import check_agreement, verify_release

__all__ = [
    "Signer",
    "Trust",
    "check_agreement",
    "check_signature",
    "make_release",
    "require_released",
    "verify_release",
]

__getattr__ = lazy_face(
    __name__,
    {
        "Signer": "tuneline.release.parties:Signer",
        "Trust": "tuneline.release.parties:Trust",
        "check_agreement": "tuneline.release.verify:check_agreement",
        "check_signature": "tuneline.release.sign:check_signature",
        "make_release": "tuneline.release.make:make_release",
        "require_released": "tuneline.release.make:require_released",
        "verify_release": "tuneline.release.verify:verify_release",
    },
)
