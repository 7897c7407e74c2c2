"""A page with every kind of block, and text that tries to become markup."""

from tuneline.core.page.blocks import (
    Answer,
    Badge,
    Block,
    Code,
    Column,
    Command,
    Commands,
    Document,
    Example,
    Examples,
    Fold,
    Listing,
    Pairs,
    Paragraph,
    Plots,
    Section,
    Source,
    Table,
    Tile,
    Tone,
)
from tuneline.core.page.plot import Axis, Series, line_plot

HOSTILE = (
    "</code></pre></details></td></script><script>document.title='broken'</script>"
    "<img src=http://127.0.0.1:9/x onerror=\"document.title='broken'\"><!-- "
    "| a | b |\n\n# heading\n- [ ] task\n```\nfence ~~~ `code` **bold** _it_ [link](http://a.b) "
    "![i](http://a.b/i.png) @octocat #12 https://evil.example www.evil.example $x$ \\ &lt; \u202e"
)


def document(text: str) -> Document:
    """Return a page that has `text` at every place."""
    plot = line_plot(text, [Series(text, [(0, 1), (1, 2)])], Axis(text), Axis(text))
    blocks: tuple[Block, ...] = (
        Paragraph((text, Badge(text, Tone.GOOD), Code(text))),
        Paragraph(text, Tone.WARN),
        Listing((text, text)),
        Table(text, (Column(text), Column(text, True)), ((text, Code(text)), (text, text))),
        Table(text, (Column(text), Column(text)), ((Code(text), text),), is_stacked=True, head=1),
        Pairs(((text, text), (text, Code(text)))),
        Plots((plot,)),
        Examples((Example(text, text, (Answer(text, text, True), Answer(text, text))),)),
        Commands((Command(text, text),)),
        Source(text),
        Fold(text, (Paragraph(text), Source(text))),
    )
    sections = (
        Section("one", text, blocks, ((text, text),), text),
        Section("two", f"{text} again", (Paragraph(text),)),
    )
    return Document(
        text, text, Badge(text, Tone.BAD), text, (Paragraph(text, Tone.BAD),),
        (Tile(text, text, text),), sections, text,
    )  # fmt: skip
