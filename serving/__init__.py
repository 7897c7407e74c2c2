"""Serving: vLLM's command line, its process, our routes and metrics inside it, the proof that its
answers are the trained model's, and a chat with it.

vLLM runs only in a process of its own.
"""

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from serving.chat import Answer, answers, converse
    from serving.command.arguments import plan_container
    from serving.command.keys import add_key, list_keys, remove_key
    from serving.parity import prove_served
    from serving.supervisor.process import RunningServer, require_server, running_server
    from serving.supervisor.restarts import answers_chats, serve_model

__all__ = [
    "Answer",
    "RunningServer",
    "add_key",
    "answers",
    "answers_chats",
    "converse",
    "list_keys",
    "plan_container",
    "prove_served",
    "remove_key",
    "require_server",
    "running_server",
    "serve_model",
]

__getattr__ = lazy_face(
    __name__,
    {
        "Answer": "serving.chat:Answer",
        "RunningServer": "serving.supervisor.process:RunningServer",
        "add_key": "serving.command.keys:add_key",
        "answers": "serving.chat:answers",
        "answers_chats": "serving.supervisor.restarts:answers_chats",
        "converse": "serving.chat:converse",
        "list_keys": "serving.command.keys:list_keys",
        "plan_container": "serving.command.arguments:plan_container",
        "prove_served": "serving.parity:prove_served",
        "remove_key": "serving.command.keys:remove_key",
        "require_server": "serving.supervisor.process:require_server",
        "running_server": "serving.supervisor.process:running_server",
        "serve_model": "serving.supervisor.restarts:serve_model",
    },
)
