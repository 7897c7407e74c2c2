"""Ask with the openai client: whole, as a stream, and under a JSON schema.

python openai_chat.py MODEL QUESTION, with OPENAI_BASE_URL and OPENAI_API_KEY set.
"""

import sys
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    team: Literal["billing", "access", "hardware"]
    urgent: bool


def main(model: str, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    with OpenAI() as client:
        whole = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=64
        )
        print("whole:", whole.choices[0].message.content)
        print("stream: ", end="")
        for chunk in client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=64, stream=True
        ):
            print(chunk.choices[0].delta.content or "", end="")
        print()
        ticket = client.chat.completions.parse(
            model=model, messages=messages, temperature=0, max_tokens=64, response_format=Ticket
        )
        print("schema:", ticket.choices[0].message.parsed)


if __name__ == "__main__":
    main(*sys.argv[1:])
