"""Load testing: what an OpenAI-compatible endpoint does under a known load, and how sure that is.

A run fixes a schedule of absolute arrival times (`arrivals/`) and the request bodies (`workload/`).
Client processes (`client/`) send the requests at those times and keep every read with its time; the
bytes are parsed when the window is over. `judging/` turns the records into figures and judges them
by the objectives and by the client's own limits. `report/` holds the schema of the report and the
forms it is written in. `studies/` measure several runs, `calibration/` measures the client itself,
and `shards/` let several pods act as one client. The room needs no machine-learning library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from loadtest.calibration.calibrate import calibrate_client
    from loadtest.judging.recheck import find_contradictions
    from loadtest.report.files import read_comparison, read_report, read_search
    from loadtest.report.formats import report_text
    from loadtest.report.page import build_load_blocks, build_load_tiles
    from loadtest.report.schema import LoadReport
    from loadtest.report.terminal import calibration_lines, report_lines
    from loadtest.run import run_loadtest
    from loadtest.shards.join import join_shards
    from loadtest.shards.rendezvous import run_together
    from loadtest.shards.shard import run_shard
    from loadtest.studies.compare import compare_endpoints, compare_reports, compare_servers
    from loadtest.studies.cross_check import cross_check
    from loadtest.studies.judgeable_objectives import require_objective
    from loadtest.studies.pareto import Contender, sweep_servers
    from loadtest.studies.recheck import recheck_comparison
    from loadtest.studies.schema import ComparisonReport
    from loadtest.studies.search import search_concurrency, search_rate
    from loadtest.studies.sweep import sweep_loads
    from loadtest.workload.prompts import read_prompts

__getattr__ = lazy_face(
    __name__,
    {
        "build_load_blocks": "loadtest.report.page:build_load_blocks",
        "build_load_tiles": "loadtest.report.page:build_load_tiles",
        "ComparisonReport": "loadtest.studies.schema:ComparisonReport",
        "Contender": "loadtest.studies.pareto:Contender",
        "LoadReport": "loadtest.report.schema:LoadReport",
        "calibrate_client": "loadtest.calibration.calibrate:calibrate_client",
        "calibration_lines": "loadtest.report.terminal:calibration_lines",
        "compare_endpoints": "loadtest.studies.compare:compare_endpoints",
        "compare_reports": "loadtest.studies.compare:compare_reports",
        "compare_servers": "loadtest.studies.compare:compare_servers",
        "cross_check": "loadtest.studies.cross_check:cross_check",
        "find_contradictions": "loadtest.judging.recheck:find_contradictions",
        "join_shards": "loadtest.shards.join:join_shards",
        "read_comparison": "loadtest.report.files:read_comparison",
        "read_prompts": "loadtest.workload.prompts:read_prompts",
        "read_report": "loadtest.report.files:read_report",
        "recheck_comparison": "loadtest.studies.recheck:recheck_comparison",
        "report_lines": "loadtest.report.terminal:report_lines",
        "report_text": "loadtest.report.formats:report_text",
        "require_objective": "loadtest.studies.judgeable_objectives:require_objective",
        "run_loadtest": "loadtest.run:run_loadtest",
        "run_shard": "loadtest.shards.shard:run_shard",
        "run_together": "loadtest.shards.rendezvous:run_together",
        "search_concurrency": "loadtest.studies.search:search_concurrency",
        "search_rate": "loadtest.studies.search:search_rate",
        "read_search": "loadtest.report.files:read_search",
        "sweep_loads": "loadtest.studies.sweep:sweep_loads",
        "sweep_servers": "loadtest.studies.pareto:sweep_servers",
    },
)

__all__ = [
    "ComparisonReport",
    "Contender",
    "LoadReport",
    "build_load_blocks",
    "build_load_tiles",
    "calibrate_client",
    "calibration_lines",
    "compare_endpoints",
    "compare_reports",
    "compare_servers",
    "cross_check",
    "find_contradictions",
    "join_shards",
    "read_comparison",
    "read_prompts",
    "read_report",
    "read_search",
    "recheck_comparison",
    "report_lines",
    "report_text",
    "require_objective",
    "run_loadtest",
    "run_shard",
    "run_together",
    "search_concurrency",
    "search_rate",
    "sweep_loads",
    "sweep_servers",
]
