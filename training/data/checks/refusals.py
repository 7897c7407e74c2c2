"""Answers that are the standard phrase of a refusal, as assistants of other vendors write it.

"I am an AI assistant" says who answers; it is a refusal only with words such as "cannot".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from training.config.checks import RefusalsCheck
from training.data.checks.check import Check, Found
from training.data.row import Row
from tuneline.core.messages import content_of

# The phrases are at the beginning of an answer; further on they may be quoted.
NUM_CHARACTERS = 200
_PHRASES = re.compile(
    r"""
    (?:\bas\ an?\ (?:ai|artificial\ intelligence)(?:\ (?:language\ )?(?:model|assistant))?\b
     | \bi(?:'|’)?\s?a?m\ (?:just\ |only\ )?an?\ (?:ai|artificial\ intelligence)
       \ (?:language\ )?(?:model|assistant)\b)
    (?=.*?(?:\b(?:not|cannot|unable|no)\b|n['’]t\b))
  | \bi(?:\ cannot|\ can(?:'|’)t|\ am\ (?:unable|not\ able)\ to|(?:'|’)m\ (?:unable|not\ able)\ to)
    \ (?:assist|help|comply|fulfil+|engage)\b(?:\ \w+){0,3}\ (?:that|this|request|such)
  | \bi\ (?:do\ not|don(?:'|’)t)\ have\ (?:personal\ )?(?:opinions|feelings|beliefs)\b
  | \b(?:against|violates)\ (?:my|our|openai(?:'|’)s)\ (?:programming|guidelines|usage\ polic)
  | \b(?:my|the)\ knowledge\ cut-?\s?off\b
  | (?:(?:저는|나는|본)\s*(?:AI|인공지능)\s*(?:언어\s*)?(?:모델|어시스턴트|비서)
     | (?:AI|인공지능)\s*(?:언어\s*)?모델(?:로서|이기\s*때문))(?=.*?(?:없|않|못|어렵))
  | 죄송(?:하지만|합니다[만.,]*)[^.!?\n]{0,40}
    (?:도와\s*드릴|도움을\s*드릴|답변(?:해)?\s*드릴|응할|제공할)\s*수\s*(?:는\s*)?없
  | (?:AI|人工知能)(?:言語)?(?:モデル|アシスタント)(?:として|ですので|なので)
    (?=.*?(?:ません|ない|なく|かね))
  | 申し訳(?:ございません|ありません)[^。\n]{0,40}(?:お手伝い|お答え|対応)(?:は)?(?:でき|いたしかね)
  | [作身][为為](?:一[个個]|一名)?\s*(?:AI|人工智[能慧])(?:语言|語言)?(?:模型|助手|助理)
    (?=.*?(?:[无無]法|不能|不[会會]|不具|不可|[没沒]有))
  | (?:抱歉|[对對]不起)[^。\n]{0,20}(?:[无無]法|不能)(?:[协協]助|[帮幫](?:助|您|你)|提供|回答)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# One of these is in every phrase; most answers have none, and need no search by the pattern.
_PARTS = (
    "an ai", "a ai", "an artificial", "cannot", "can't", "unable", "not able", "opinions",
    "feelings", "beliefs", "against", "violates", "knowledge cut", "인공지능", "ai 모", "ai모",
    "ai 언", "ai언", "ai 어", "ai어", "ai 비", "ai비", "죄송", "人工", "ai言", "aiモ", "aiア",
    "申し訳", "作为", "作為", "身为", "身為", "抱歉", "对不起", "對不起",
)  # fmt: skip


def find_refusals(row: Row, _config: RefusalsCheck) -> Iterator[Found]:
    """Return the answers that begin with a refusal's standard phrase.

    Of a preference pair, only the chosen answer counts: a rejected refusal is good data. So is a
    refusal with the label false.
    """
    if not row.completion or row.label is False or row.is_query:
        return
    text = content_of(row.completion[-1])[:NUM_CHARACTERS]
    folded = text.casefold().replace("’", "'")
    found = _PHRASES.search(text) if any(part in folded for part in _PARTS) else None
    if found:
        name = "chosen" if row.rejected else "completion"
        yield Found(f"{name}[{len(row.completion) - 1}].content", "refusal", found.group())


CHECK = Check(
    "refusals",
    "answers that are a standard refusal",
    find=find_refusals,
    advice="Try: data.checks.refusals: fix, which drops these rows.",
)
