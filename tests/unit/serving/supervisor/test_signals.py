"""A stop signal may come at any moment, and while another is being taken."""

import subprocess
import sys
from pathlib import Path

BOMBARDED = """
import os, subprocess, sys, time
from serving.supervisor.signals import STOP_SIGNALS, stop_signals

SENDER = '''
import os, sys
for number in range(100_000):
    os.kill(int(sys.argv[1]), int(sys.argv[2 + number % 2]))
'''
numbers = [str(int(number)) for number in STOP_SIGNALS]
with stop_signals() as stops:
    sender = subprocess.Popen([sys.executable, "-c", SENDER, str(os.getpid()), *numbers])
    while sender.poll() is None:
        time.sleep(0)
print(stops.requested)
"""


def test_signals_that_come_in_each_others_way_do_not_hang_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBARDED], cwd=Path(__file__).parents[3],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The kernel joins equal signals that wait: fewer are heard than were sent.
    assert int(done.stdout) >= 2
