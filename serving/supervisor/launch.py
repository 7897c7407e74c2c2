"""`python -m serving.supervisor.launch ARGS` runs `vllm serve ARGS` for any distribution of vLLM.

The console script of the CPU distribution ends before it begins (it asks for the metadata of a
distribution named `vllm`), so the same parser and the same `serve` command are called here.

Where `TUNELINE_LIFELINE` names a file descriptor, the process group ends as soon as the other end
of that pipe is closed. The kernel closes it when the supervisor is gone, however it went: a server
that outlives its supervisor would hold its GPU and its port for nobody.
"""

from __future__ import annotations

import os
import signal
import threading

LIFELINE = "TUNELINE_LIFELINE"


def main() -> None:
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is not None:
        threading.Thread(target=_end_with, args=(int(descriptor),), daemon=True).start()
    _serve()


def _end_with(descriptor: int) -> None:
    os.read(descriptor, 1)  # nothing is ever written: it returns when the other end is closed
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _serve() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    args = parser.parse_args()
    configure_logging_from_args(args)
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()
