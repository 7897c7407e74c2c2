"""Loading exported forms to score tokens and to answer."""
