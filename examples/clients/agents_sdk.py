"""Run an agent with a tool of the OpenAI Agents SDK, by chat completions and by responses.

python agents_sdk.py MODEL QUESTION, with OPENAI_BASE_URL and OPENAI_API_KEY set. The server needs a
parser of tool calls, and serving.routes with responses.
"""

import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI


@function_tool
def opening_hours(team: str) -> str:
    """Return when a team is there."""
    return f"{team}: 9 to 17"


def main(model: str, question: str) -> None:
    set_tracing_disabled(True)  # traces go to OpenAI
    client = AsyncOpenAI()
    settings = ModelSettings(temperature=0, max_tokens=64)
    for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        agent = Agent(
            name="Support",
            model=kind(model=model, openai_client=client),
            model_settings=settings,
            tools=[opening_hours],
        )
        print(f"{name}:", Runner.run_sync(agent, question).final_output)


if __name__ == "__main__":
    main(*sys.argv[1:])
