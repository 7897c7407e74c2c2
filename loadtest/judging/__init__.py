"""From records to figures, intervals and a verdict."""
