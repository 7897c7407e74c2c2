"""Pages that a run leaves for people: one tree of blocks, written as HTML or as Markdown."""
