"""Ask with the anthropic client: whole, as a stream, and the tokens of a prompt.

python anthropic_messages.py MODEL QUESTION, with ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY set.
"""

import sys

from anthropic import Anthropic


def main(model: str, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    # Newer models of Anthropic take no temperature, so the client sends the field by extra_body.
    greedy = {"temperature": 0}
    with Anthropic() as client:
        whole = client.messages.create(
            model=model, messages=messages, max_tokens=64, extra_body=greedy
        )
        print("whole:", whole.content[0].text)
        with client.messages.stream(
            model=model, messages=messages, max_tokens=64, extra_body=greedy
        ) as stream:
            print("stream:", "".join(stream.text_stream))
        counted = client.messages.count_tokens(model=model, messages=messages)
        print("tokens:", counted.input_tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
