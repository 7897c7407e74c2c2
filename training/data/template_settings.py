"""The file of a dataset that says how its conversations are rendered."""

from __future__ import annotations

import json
from pathlib import Path

from training.config.template import TemplateConfig

SETTINGS_FILE = "chat_template.json"


def write_template_settings(config: TemplateConfig, folder: Path) -> None:
    """Write the variables and the date that a run sets; no file if it sets none.

    With the file, the settings are part of the dataset's digest: other settings train again.
    """
    values = config.model_dump(mode="json", include=set(TemplateConfig.model_fields))
    if any(values.values()):
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
