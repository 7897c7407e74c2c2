"""Ask with LangChain: whole, as a stream, and under a JSON schema.

python langchain_chat.py MODEL QUESTION, with OPENAI_BASE_URL and OPENAI_API_KEY set.
"""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    """Where a ticket goes."""

    team: Literal["billing", "access", "hardware"]
    urgent: bool


def main(model: str, question: str) -> None:
    chat = ChatOpenAI(model=model, temperature=0, max_tokens=64)
    print("whole:", chat.invoke(question).content)
    print("stream:", "".join(chunk.content for chunk in chat.stream(question)))
    print("schema:", chat.with_structured_output(Ticket, method="json_schema").invoke(question))


if __name__ == "__main__":
    main(*sys.argv[1:])
