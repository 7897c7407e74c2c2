#!/usr/bin/env bash
# elote 1.5.1: a leaderboard that goes on from its saved state forgets every game before, in four methods.
#
# An arena of models saves its ratings by export_state and takes them up again by initial_state.
# Bradley-Terry, Colley, Massey and Keener compute each rating from all games of its group. The state holds the ratings
# and the counts of wins, and not who played whom. The next game makes a group of its two players, fits it
# to that one game and puts the result in place of what was there. A model that loses one game falls from the
# top to below models that it has beaten. Nothing warns; the documentation offers the state to save and
# resume ratings. Elo, Glicko-2 and others go on exactly.
#
# Seen for six games, after which the arena plays on at once, or from its state saved before the last game
# (method: order of the models, largest change of a rating by the stop, over the spread of the ratings):
#   EloCompetitor            b a c d -> b a c d  0.00
#   Glicko2Competitor        b a c d -> b a c d  0.00
#   BradleyTerryCompetitor   a b c d -> b c a d  1.19
#   ColleyMatrixCompetitor   a b c d -> b c a d  1.01
#   MasseyCompetitor         a b c d -> b c a d  1.02
#   KeenerCompetitor         b a c d -> b c a d  1.04
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet elote==1.5.1
cd "$work"
"$work/env/bin/python" - 2> log <<'PYTHON' || { cat log; exit 1; }
import json
import logging
import warnings

import elote

warnings.simplefilter("error")
logging.getLogger("elote").setLevel(logging.WARNING)
GAMES = [(*pair, True) for pair in ("ab", "bc", "ac", "cd")] + [("d", "b", False)]
LAST = [("b", "a", True)]


def play(method, games, state=None):
    arena = elote.LambdaArena(
        lambda a, b, attributes=None: attributes, base_competitor=method, initial_state=state
    )
    for first, second, first_wins in games:
        arena.matchup(first, second, attributes=first_wins)
    return arena


def ratings(arena):
    return {row["competitor"]: row["rating"] for row in arena.leaderboard()}


EXACT = elote.EloCompetitor, elote.Glicko2Competitor
FITTED = (
    elote.BradleyTerryCompetitor, elote.ColleyMatrixCompetitor, elote.MasseyCompetitor,
    elote.KeenerCompetitor,
)
for method in EXACT + FITTED:
    whole = ratings(play(method, GAMES + LAST))
    saved = json.loads(json.dumps(play(method, GAMES).export_state(), default=str))
    resumed = ratings(play(method, LAST, saved))
    spread = max(whole.values()) - min(whole.values())
    change = max(abs(whole[name] - resumed[name]) for name in whole) / spread
    before, after = " ".join(whole), " ".join(resumed)
    print(f"{method.__name__:23}  {before} -> {after}  {change:.2f}")
    if method in EXACT:
        assert change < 0.01
    else:
        assert change > 0.3 and before != after, "changed"
PYTHON
test ! -s log || { cat log; exit 1; }
