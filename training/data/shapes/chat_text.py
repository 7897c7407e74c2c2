"""Plain text that is a chat with the marks of a template, and the command that takes it apart.

As plain text, such a row is trained without the model's chat template, and the server that renders
the template later asks the model in another form than it has learned.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = "((?:.|\\n)*?)"
STOP = "(?:</s>|<[|]endoftext[|]>|[ \\n])*"
END = "\\\\z"


@dataclass(frozen=True)
class ChatText:
    """The marks of one form.

    Attributes:
        marks: Texts that a chat of the form has, all of them.
        pattern: The regular expression of jq for one turn, with a group for role and content; or of
            a question and its answer, if `is_pair`.
    """

    marks: tuple[str, ...]
    pattern: str
    is_pair: bool = False


CHATS = (
    ChatText(("<|im_start|>user", "<|im_start|>assistant"),
             rf"<[|]im_start[|]>([a-z]+)\n{ANY}<[|]im_end[|]>"),
    ChatText(("<|start_header_id|>user", "<|start_header_id|>assistant"),
             rf"<[|]start_header_id[|]>([a-z]+)<[|]end_header_id[|]>\n\n{ANY}<[|]eot_id[|]>"),
    ChatText(("<start_of_turn>user", "<start_of_turn>model"),
             rf"<start_of_turn>([a-z]+)\n{ANY}<end_of_turn>"),
    ChatText(("<|user|>", "<|assistant|>"),
             rf"<[|](system|user|assistant)[|]>\n?{ANY}\n?(?=<[|]|</s>|{END})"),
    ChatText(("[INST]", "[/INST]"),
             rf"[[]INST[]] ?{ANY} ?[[]/INST[]] ?{ANY} ?(?=</s>|<s>|[[]INST|{END})", is_pair=True),
    ChatText(("### Human:", "### Assistant:"),
             rf"### (Human|Assistant): ?{ANY}\n*(?=### (?:Human|Assistant):|{END})"),
    ChatText(("USER:", "ASSISTANT:"),
             rf"(USER|ASSISTANT): ?{ANY}{STOP}(?=USER:|ASSISTANT:|{END})"),
    ChatText(("### Instruction:", "### Response:"),
             rf"### Instruction:\n*{ANY}\n*### Response:\n*{ANY}\n*(?:</s>)?{END}", is_pair=True),
    ChatText(("### 질문:", "### 답변:"),
             rf"### 질문: ?{ANY}\n*### 답변: ?{ANY}\n*{END}", is_pair=True),
    ChatText(("<usr>", "<bot>"), rf"<(usr|bot)> ?{ANY}\n*(?=<usr>|<bot>|{END})"),
)  # fmt: skip


def chat_text(text: str) -> ChatText | None:
    """Return the form whose marks a text has; None for other text."""
    return next((chat for chat in CHATS if all(mark in text for mark in chat.marks)), None)


def as_messages_command(chat: ChatText) -> str:
    """Return the command that writes the chats of a JSON Lines file as messages."""
    turns = (
        '{role: "user", content: .[0]}, {role: "assistant", content: .[1]}'
        if chat.is_pair
        else "{role: .[0], content: .[1]}"
    )
    return f"jq -c '{{messages: [.text | scan(\"{chat.pattern}\") | {turns}]}}' FILE > NEW.jsonl"
