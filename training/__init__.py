"""From rows of text to an adapter: data intake, fine-tuning, evaluation and the reference.

`prepare_dataset` makes a `dataset` artifact, `train_adapter` an `adapter`, `build_reference` the
trained model's recorded answers, and `evaluate_model` and `evaluate_endpoint` an `evaluation` of a
model in this process or behind an endpoint. `report_evaluations` compares two, and
`measure_forgetting` compares base and tuned model on general skills.
Configuration is in `training.config`.
"""

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from training.adapters.check import check_targets
    from training.check import check_data
    from training.data.augment import augment_data, endpoint_writer, function_writer, writer_name
    from training.data.checks.files import check_files
    from training.data.convert import convert_data
    from training.data.findings import DataFinding, data_findings
    from training.data.measure import DataFacts, measure_data
    from training.data.prepare import dataset_rows, prepare_dataset
    from training.data.recorded.collect import WantedRequests, collect_recorded
    from training.data.rows import read_rows
    from training.data.sources import data_inputs, find_heldout
    from training.estimates.duration import time_lines
    from training.estimates.probe import probe_training
    from training.estimates.report import estimate_lines, estimate_memory, training_line
    from training.estimates.sharing import estimate_sharing
    from training.evaluation.acceptance import measure_acceptance
    from training.evaluation.evaluate import evaluate_endpoint, evaluate_model
    from training.evaluation.forgetting.answers import rejudge_forgetting
    from training.evaluation.forgetting.items import suite_input
    from training.evaluation.forgetting.suite import measure_forgetting
    from training.evaluation.harness import run_harness
    from training.evaluation.metrics.ready import require_metrics
    from training.evaluation.preferences import evaluate_preferences
    from training.evaluation.ranking import evaluate_ranking, has_queries
    from training.evaluation.report.report import report_evaluations
    from training.evaluation.reranking import evaluate_reranking
    from training.evaluation.retrieval import evaluate_retrieval
    from training.evaluation.suspects import find_suspects
    from training.heldout import answered_rows, prompted_rows, require_heldout
    from training.launch.place import is_follower
    from training.reference import build_reference
    from training.rendering.show import ShownToken
    from training.search.figures import (
        comparison_figures,
        evaluation_figures,
        forgetting_figures,
        preference_figures,
        training_figures,
    )
    from training.search.search import search_settings
    from training.search.space import ends_of, is_within
    from training.search.study import num_points, point_folder
    from training.show import show_data
    from training.train import train_adapter

__all__ = [
    "DataFacts",
    "DataFinding",
    "ShownToken",
    "WantedRequests",
    "answered_rows",
    "augment_data",
    "build_reference",
    "check_data",
    "check_files",
    "check_targets",
    "collect_recorded",
    "comparison_figures",
    "convert_data",
    "data_findings",
    "data_inputs",
    "dataset_rows",
    "endpoint_writer",
    "ends_of",
    "estimate_lines",
    "estimate_memory",
    "estimate_sharing",
    "evaluate_endpoint",
    "evaluate_model",
    "evaluate_preferences",
    "evaluate_ranking",
    "evaluate_reranking",
    "evaluate_retrieval",
    "evaluation_figures",
    "find_heldout",
    "find_suspects",
    "forgetting_figures",
    "function_writer",
    "has_queries",
    "is_follower",
    "is_within",
    "measure_acceptance",
    "measure_data",
    "measure_forgetting",
    "num_points",
    "point_folder",
    "preference_figures",
    "prepare_dataset",
    "probe_training",
    "prompted_rows",
    "read_rows",
    "rejudge_forgetting",
    "report_evaluations",
    "require_heldout",
    "require_metrics",
    "run_harness",
    "search_settings",
    "show_data",
    "suite_input",
    "time_lines",
    "train_adapter",
    "training_figures",
    "training_line",
    "writer_name",
]

__getattr__ = lazy_face(
    __name__,
    {
        "DataFacts": "training.data.measure:DataFacts",
        "DataFinding": "training.data.findings:DataFinding",
        "ShownToken": "training.rendering.show:ShownToken",
        "build_reference": "training.reference:build_reference",
        "check_data": "training.check:check_data",
        "augment_data": "training.data.augment:augment_data",
        "endpoint_writer": "training.data.augment:endpoint_writer",
        "function_writer": "training.data.augment:function_writer",
        "writer_name": "training.data.augment:writer_name",
        "check_files": "training.data.checks.files:check_files",
        "find_suspects": "training.evaluation.suspects:find_suspects",
        "convert_data": "training.data.convert:convert_data",
        "collect_recorded": "training.data.recorded.collect:collect_recorded",
        "WantedRequests": "training.data.recorded.collect:WantedRequests",
        "data_findings": "training.data.findings:data_findings",
        "data_inputs": "training.data.sources:data_inputs",
        "check_targets": "training.adapters.check:check_targets",
        "dataset_rows": "training.data.prepare:dataset_rows",
        "probe_training": "training.estimates.probe:probe_training",
        "time_lines": "training.estimates.duration:time_lines",
        "estimate_lines": "training.estimates.report:estimate_lines",
        "training_line": "training.estimates.report:training_line",
        "estimate_memory": "training.estimates.report:estimate_memory",
        "estimate_sharing": "training.estimates.sharing:estimate_sharing",
        "evaluate_endpoint": "training.evaluation.evaluate:evaluate_endpoint",
        "evaluate_model": "training.evaluation.evaluate:evaluate_model",
        "evaluate_preferences": "training.evaluation.preferences:evaluate_preferences",
        "evaluate_reranking": "training.evaluation.reranking:evaluate_reranking",
        "evaluate_ranking": "training.evaluation.ranking:evaluate_ranking",
        "has_queries": "training.evaluation.ranking:has_queries",
        "evaluate_retrieval": "training.evaluation.retrieval:evaluate_retrieval",
        "measure_acceptance": "training.evaluation.acceptance:measure_acceptance",
        "measure_forgetting": "training.evaluation.forgetting.suite:measure_forgetting",
        "find_heldout": "training.data.sources:find_heldout",
        "measure_data": "training.data.measure:measure_data",
        "prepare_dataset": "training.data.prepare:prepare_dataset",
        "read_rows": "training.data.rows:read_rows",
        "show_data": "training.show:show_data",
        "report_evaluations": "training.evaluation.report.report:report_evaluations",
        "run_harness": "training.evaluation.harness:run_harness",
        "point_folder": "training.search.study:point_folder",
        "comparison_figures": "training.search.figures:comparison_figures",
        "evaluation_figures": "training.search.figures:evaluation_figures",
        "forgetting_figures": "training.search.figures:forgetting_figures",
        "preference_figures": "training.search.figures:preference_figures",
        "training_figures": "training.search.figures:training_figures",
        "num_points": "training.search.study:num_points",
        "search_settings": "training.search.search:search_settings",
        "ends_of": "training.search.space:ends_of",
        "answered_rows": "training.heldout:answered_rows",
        "prompted_rows": "training.heldout:prompted_rows",
        "require_heldout": "training.heldout:require_heldout",
        "require_metrics": "training.evaluation.metrics.ready:require_metrics",
        "is_follower": "training.launch.place:is_follower",
        "is_within": "training.search.space:is_within",
        "rejudge_forgetting": "training.evaluation.forgetting.answers:rejudge_forgetting",
        "suite_input": "training.evaluation.forgetting.items:suite_input",
        "train_adapter": "training.train:train_adapter",
    },
)
