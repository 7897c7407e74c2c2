"""The gates as JUnit XML, for the test view of a CI system: one test case for each gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from tuneline.core.release import Gate, Outcome
from tuneline.report.facts import Facts

_not_in_xml = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""

EPOCH = "1970-01-01T00:00:00"
"""The time of a run without an artifact; a test suite must have a time."""


def junit_text(facts: Facts) -> str:
    """Return the test suite of a release.

    A failed gate is a failure, and a gate that was waived or not asked is skipped. A run without a
    release has one test case, an error.
    """
    gates = [] if facts.release is None else facts.release.gates
    counts = {outcome: sum(gate.outcome is outcome for gate in gates) for outcome in Outcome}
    made = max((one.manifest.created_at for one in facts.made.values()), default=EPOCH)
    if facts.release is not None:
        made = facts.release.created_at
    totals = {
        "tests": str(max(len(gates), 1)),
        "failures": str(counts[Outcome.FAILED]),
        "errors": str(int(not gates)),
        "skipped": str(counts[Outcome.WAIVED] + counts[Outcome.NOT_ASKED]),
        "time": "0",
    }
    root = ET.Element("testsuites", {"name": "tuneline release", **totals})
    suite = ET.SubElement(
        root,
        "testsuite",
        {"name": facts.name, "timestamp": made[:19], "hostname": "localhost", **totals},
    )
    _add_properties(suite, facts)
    for gate in gates:
        _add_case(suite, facts.name, gate)
    if not gates:
        case = _case(suite, facts.name, "release")
        said = f"The run has no release of its artifacts. Try: {facts.again('release')}"
        ET.SubElement(case, "error", {"message": said, "type": "not released"}).text = said
    ET.indent(root)
    return _not_in_xml.sub("�", f"{ET.tostring(root, encoding='unicode', xml_declaration=False)}\n")


def _add_properties(suite: ET.Element, facts: Facts) -> None:
    if facts.release is None:
        return
    release = facts.release
    values = {"verdict": release.verdict.value, "model": release.model.digest}
    values |= {f"waived.{one.said}": one.why for one in release.waivers}
    properties = ET.SubElement(suite, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": name, "value": value})


def _add_case(suite: ET.Element, run: str, gate: Gate) -> None:
    case = _case(suite, run, gate.name)
    detail = f"{gate.words}\nrequired: {gate.required}\nobserved: {gate.observed}\n{gate.hint}"
    if gate.outcome is Outcome.FAILED:
        failure = ET.SubElement(case, "failure", {"message": gate.words, "type": "failed gate"})
        failure.text = detail.strip()
    elif gate.outcome is Outcome.WAIVED:
        said = f"waived: {gate.why}"
        ET.SubElement(case, "skipped", {"message": said}).text = f"{said}\n{detail}".strip()
    elif gate.outcome is Outcome.NOT_ASKED:
        ET.SubElement(case, "skipped", {"message": f"not asked: {gate.words}"})


def _case(suite: ET.Element, run: str, name: str) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", {"name": name, "classname": f"release.{run}", "time": "0"}
    )
