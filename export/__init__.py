"""Export: from an adapter to a model that any server loads, to further forms, and their proofs.

These functions are the room's public face; nothing outside the room imports anything else but
`export.config`. Importing the room loads no machine-learning library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from export.find_form import (
        form_name,
        open_chat,
        resolve_form,
        resolve_weights,
        weights_of_folder,
    )
    from export.forms import (
        FORMS,
        CalibrationData,
        make_form,
        missing_modules,
        prepare_form,
    )
    from export.merge.merge import merge as merge_adapter
    from export.merge.merge import require_mergeable
    from export.parity import prove_model, weight_tolerances
    from export.publish.model_card import write_model_card
    from export.publish.push import push_model
    from export.quantize.llm_compressor import quantize_calibrated
    from export.quantize.llm_compressor_environment import install_calibration
    from export.quantize.quantize import quantize_model
    from export.weights.model_folder import read_base

__all__ = [
    "FORMS",
    "CalibrationData",
    "form_name",
    "install_calibration",
    "make_form",
    "merge_adapter",
    "missing_modules",
    "open_chat",
    "prepare_form",
    "prove_model",
    "push_model",
    "quantize_calibrated",
    "quantize_model",
    "read_base",
    "require_mergeable",
    "resolve_form",
    "resolve_weights",
    "weight_tolerances",
    "weights_of_folder",
    "write_model_card",
]

__getattr__ = lazy_face(
    __name__,
    {
        "FORMS": "export.forms:FORMS",
        "CalibrationData": "export.forms:CalibrationData",
        "form_name": "export.find_form:form_name",
        "install_calibration": "export.quantize.llm_compressor_environment:install_calibration",
        "make_form": "export.forms:make_form",
        "merge_adapter": "export.merge.merge:merge",
        "missing_modules": "export.forms:missing_modules",
        "open_chat": "export.find_form:open_chat",
        "prepare_form": "export.forms:prepare_form",
        "prove_model": "export.parity:prove_model",
        "push_model": "export.publish.push:push_model",
        "quantize_calibrated": "export.quantize.llm_compressor:quantize_calibrated",
        "quantize_model": "export.quantize.quantize:quantize_model",
        "read_base": "export.weights.model_folder:read_base",
        "require_mergeable": "export.merge.merge:require_mergeable",
        "resolve_form": "export.find_form:resolve_form",
        "resolve_weights": "export.find_form:resolve_weights",
        "weight_tolerances": "export.parity:weight_tolerances",
        "weights_of_folder": "export.find_form:weights_of_folder",
        "write_model_card": "export.publish.model_card:write_model_card",
    },
)
