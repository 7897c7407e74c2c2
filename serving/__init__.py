"""Serving: vLLM's command line, its process, our routes and metrics inside it, the proof that its
answers are the trained model's, adapters that are added while it runs, and a chat with it.

vLLM runs only in a process of its own.
"""

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from serving.adapters.client import (
        add_adapter,
        list_adapters,
        remove_adapter,
        roll_back_adapter,
    )
    from serving.adapters.reconcile import describe_adapter, read_desired, reconcile_adapters
    from serving.chat import Answer, answers, converse
    from serving.classifiers import prove_classifier
    from serving.command.arguments import explain_server, plan_container
    from serving.command.environment import engine_settings
    from serving.command.flags import Flag
    from serving.command.keys import add_key, list_keys, remove_key
    from serving.command.memory import own_length, require_memory
    from serving.command.parser_check import check_flags
    from serving.compare import ask_each, converse_with_each
    from serving.kernels.command import bake_kernels
    from serving.middleware.routes import open_paths
    from serving.parity import compare_served, prove_served
    from serving.relevance import (
        compare_served_relevance,
        prove_relevance,
        recheck_relevance,
    )
    from serving.rewards import compare_served_rewards, prove_rewards, recheck_rewards
    from serving.supervisor.process import RunningServer, require_server, running_server
    from serving.supervisor.restarts import answers_chats, serve_model
    from serving.supervisor.systemd import systemd_unit
    from serving.trained_vectors import (
        compare_trained_vectors,
        prove_trained_vectors,
        recheck_trained_vectors,
    )
    from serving.vectors import prove_vectors

__all__ = [
    "Answer",
    "Flag",
    "RunningServer",
    "add_adapter",
    "add_key",
    "answers",
    "answers_chats",
    "ask_each",
    "bake_kernels",
    "check_flags",
    "compare_served",
    "compare_served_relevance",
    "compare_served_rewards",
    "compare_trained_vectors",
    "converse",
    "converse_with_each",
    "describe_adapter",
    "engine_settings",
    "explain_server",
    "list_adapters",
    "list_keys",
    "open_paths",
    "own_length",
    "plan_container",
    "prove_classifier",
    "prove_relevance",
    "prove_rewards",
    "prove_served",
    "prove_trained_vectors",
    "prove_vectors",
    "read_desired",
    "recheck_relevance",
    "recheck_rewards",
    "recheck_trained_vectors",
    "reconcile_adapters",
    "remove_adapter",
    "remove_key",
    "require_memory",
    "require_server",
    "roll_back_adapter",
    "running_server",
    "serve_model",
    "systemd_unit",
]

__getattr__ = lazy_face(
    __name__,
    {
        "Answer": "serving.chat:Answer",
        "Flag": "serving.command.flags:Flag",
        "RunningServer": "serving.supervisor.process:RunningServer",
        "add_adapter": "serving.adapters.client:add_adapter",
        "add_key": "serving.command.keys:add_key",
        "answers": "serving.chat:answers",
        "answers_chats": "serving.supervisor.restarts:answers_chats",
        "ask_each": "serving.compare:ask_each",
        "bake_kernels": "serving.kernels.command:bake_kernels",
        "check_flags": "serving.command.parser_check:check_flags",
        "compare_served": "serving.parity:compare_served",
        "converse": "serving.chat:converse",
        "converse_with_each": "serving.compare:converse_with_each",
        "describe_adapter": "serving.adapters.reconcile:describe_adapter",
        "engine_settings": "serving.command.environment:engine_settings",
        "explain_server": "serving.command.arguments:explain_server",
        "list_adapters": "serving.adapters.client:list_adapters",
        "list_keys": "serving.command.keys:list_keys",
        "open_paths": "serving.middleware.routes:open_paths",
        "plan_container": "serving.command.arguments:plan_container",
        "prove_classifier": "serving.classifiers:prove_classifier",
        "compare_served_relevance": "serving.relevance:compare_served_relevance",
        "compare_served_rewards": "serving.rewards:compare_served_rewards",
        "compare_trained_vectors": "serving.trained_vectors:compare_trained_vectors",
        "prove_relevance": "serving.relevance:prove_relevance",
        "prove_rewards": "serving.rewards:prove_rewards",
        "prove_served": "serving.parity:prove_served",
        "prove_trained_vectors": "serving.trained_vectors:prove_trained_vectors",
        "prove_vectors": "serving.vectors:prove_vectors",
        "read_desired": "serving.adapters.reconcile:read_desired",
        "recheck_relevance": "serving.relevance:recheck_relevance",
        "recheck_rewards": "serving.rewards:recheck_rewards",
        "recheck_trained_vectors": "serving.trained_vectors:recheck_trained_vectors",
        "reconcile_adapters": "serving.adapters.reconcile:reconcile_adapters",
        "remove_adapter": "serving.adapters.client:remove_adapter",
        "remove_key": "serving.command.keys:remove_key",
        "own_length": "serving.command.memory:own_length",
        "require_memory": "serving.command.memory:require_memory",
        "require_server": "serving.supervisor.process:require_server",
        "roll_back_adapter": "serving.adapters.client:roll_back_adapter",
        "running_server": "serving.supervisor.process:running_server",
        "serve_model": "serving.supervisor.restarts:serve_model",
        "systemd_unit": "serving.supervisor.systemd:systemd_unit",
    },
)
