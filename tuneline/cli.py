"""The command line: the table of contents of Tuneline.

Each command opens its inputs, calls one function and prints a short summary; `--json` prints one
JSON document on stdout instead. Progress and logs go to stderr. A command is imported when it runs,
and the command imports the rooms that it needs.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any, ClassVar, NoReturn

import typer
from typer.exceptions import TyperException

from tuneline import __version__
from tuneline.commands.lazy_group import LazyGroup, Row
from tuneline.commands.printing import (
    PIPE_EXIT,
    Output,
    emit_error,
    goes_on,
    join_streams,
    one_output,
    write_message,
    write_out,
)
from tuneline.core.environment import refuse_fetched_kernels
from tuneline.core.errors import TunelineError
from tuneline.core.progress import log_in_handler, logger, set_up_logging
from tuneline.core.surroundings import explain_os_error

AT = "tuneline.commands."


EXPORT = "Merge the adapter into the base; write the model in other forms."
FORM = "Write a model as one of the forms that a run can export."
LOADTEST = "Measure an endpoint under load."
KEYS = "Write the named API keys of a server, with their limits."
ADAPTERS = "Change the adapters of a live server: proven first, named then."
DEPLOY = "Render a released run, and roll it out on Kubernetes."
DATA = "Read, convert and inspect data files."


class TunelineGroup(LazyGroup):
    table: ClassVar = {
        "init": Row(
            AT + "init:init",
            "Write a run.yaml with choices that fit the data, the base model and this machine.",
        ),
        "check": Row(AT + "up:check", "Validate a run before anything is trained."),
        "plan": Row(AT + "up:plan", "Show what `up` would run, and why."),
        "up": Row(AT + "up:up", "Run the whole line."),
        "train": Row(AT + "up:train", "Train the model of a run, and record its answers."),
        "search": Row(
            AT + "search:search",
            "Find better settings by many trainings, and write the best ones as a run.yaml.",
        ),
        "evaluate": Row(
            AT + "evaluate:evaluate",
            "Score answers to held-out rows: a run's, or any model or URL.",
        ),
        "data": Row("tuneline.cli:data_app", DATA),
        "export": Row("tuneline.cli:export_app", EXPORT),
        "prove": Row(
            AT + "prove:prove", "Compare every form with the trained model, with a verdict."
        ),
        "serve": Row(AT + "serving:serve", "Serve a run's model, or any folder, with vLLM."),
        "chat": Row(
            AT + "serving:chat", "Talk to a run's model, to any endpoint, or to an ONNX artifact."
        ),
        "keys": Row("tuneline.cli:keys_app", KEYS),
        "adapters": Row("tuneline.cli:adapters_app", ADAPTERS),
        "loadtest": Row("tuneline.cli:loadtest_app", LOADTEST),
        "tune": Row(
            AT + "tune:tune",
            "Find vLLM's flags for the highest rate that keeps the objectives of RUN.yaml.",
        ),
        "release": Row(
            AT + "release:release",
            "Judge a finished run by its gates, and write its release.",
        ),
        "deploy": Row("tuneline.cli:deploy_app", DEPLOY),
        "card": Row(
            AT + "artifacts:card",
            "Write the model card of a run's model, or of a model artifact, from the manifests.",
        ),
        "push": Row(
            AT + "artifacts:push",
            "Publish a model with its card, or copy artifacts to object storage.",
        ),
        "pull": Row(
            AT + "artifacts:pull",
            "Copy an artifact, or all artifacts of a run, from object storage.",
        ),
        "report": Row(
            AT + "report:report",
            "Write the report of a run or of its release, whatever its verdict.",
        ),
        "inspect": Row(
            AT + "artifacts:inspect", "Show an artifact's manifest, or every artifact of a run."
        ),
        "verify": Row(
            AT + "verify:verify",
            "Compare every byte with the manifests, and a release with its signature.",
        ),
        "clean": Row(
            AT + "clean:clean",
            "List or remove the artifacts that no configuration of a run leads to any more.",
        ),
        "doctor": Row(AT + "doctor:doctor", "Say what this machine has and lacks."),
    }


class ExportGroup(LazyGroup):
    default = "merge"
    table: ClassVar = {
        "merge": Row(
            AT + "export:export_merge",
            "Merge an adapter into its base: a run's own, or any with --base and --adapter.",
        ),
        "form": Row("tuneline.commands.export_form:form_app", FORM),
        "quantize": Row(
            AT + "export:export_quantize", "Quantize a model's linear layers to compressed-tensors."
        ),
        "install-calibration": Row(
            AT + "export:install_calibration",
            "Make the environment that --method gptq and awq run in: llm-compressor, over 1 GB.",
        ),
    }


class LoadTestGroup(LazyGroup):
    default = "run"
    table: ClassVar = {
        "run": Row(
            AT + "loadtest:loadtest_run",
            "Load-test a run's endpoint, or any OpenAI-compatible server with --url.",
        ),
        "search": Row(
            AT + "load_studies:search",
            "Find the highest rate, or the most streams at once, at which every objective holds.",
        ),
        "sweep": Row(
            AT + "load_studies:sweep",
            "Measure several rates, numbers of streams or servers, and draw latency and "
            "throughput.",
        ),
        "compare": Row(AT + "load_studies:compare", "Say whether B is slower than A."),
        "calibrate": Row(
            AT + "load_studies:calibrate",
            "Measure what the client itself adds, against a bundled server of known delays.",
        ),
        "cross-check": Row(
            AT + "load_studies:cross_check",
            "Send one open-loop schedule with the openai client too, and compare what both saw.",
        ),
        "join": Row(
            AT + "load_reports:join", "Join the shards of several load pods into one report."
        ),
        "report": Row(
            AT + "load_reports:report",
            "Print a load report in another form, or log it to MLflow.",
        ),
    }


class DataGroup(LazyGroup):
    table: ClassVar = {
        "augment": Row(
            AT + "data:data_augment",
            "Write more training rows, by a Python function or a model that rewrites prompts.",
        ),
        "suspects": Row(
            AT + "data:data_suspects",
            "List rows that may be mislabelled, by the trained model's loss.",
        ),
        "check": Row(
            AT + "data:data_check",
            "Find duplicates, leaks, bad answers, personal data and more in data files.",
        ),
        "collect": Row(
            AT + "collect:data_collect",
            "Make rows of training data from the requests and the feedback that a server recorded.",
        ),
        "convert": Row(
            AT + "data:data_convert",
            "Convert a file, a folder or a Hub dataset to JSON Lines of one form, and count its "
            "rows.",
        ),
        "show": Row(
            AT + "data:data_show",
            "Print a row token by token, with the tokens that training learns marked.",
        ),
    }


class KeysGroup(LazyGroup):
    table: ClassVar = {
        "add": Row(AT + "keys:keys_add", "Add a named key to a file, and print the key once."),
        "list": Row(AT + "keys:keys_list", "List the names and limits of a file's keys."),
        "remove": Row(
            AT + "keys:keys_remove",
            "Remove a key; a running server refuses it from the next second on.",
        ),
    }


class AdaptersGroup(LazyGroup):
    table: ClassVar = {
        "add": Row(
            AT + "adapters:adapters_add",
            "Load an adapter, prove it, and only then give it its name.",
        ),
        "apply": Row(
            AT + "adapters:adapters_apply",
            "Make the adapters of a server those of a file, each proven before it has its name.",
        ),
        "list": Row(
            AT + "adapters:adapters_list",
            "List the adapters of a server, with those that failed their proof after a start.",
        ),
        "remove": Row(
            AT + "adapters:adapters_remove", "Remove an adapter; requests in progress finish."
        ),
        "roll-back": Row(
            AT + "adapters:adapters_roll_back",
            "Give the name back to the version before, which is still loaded.",
        ),
    }


class DeployGroup(LazyGroup):
    table: ClassVar = {
        "render": Row(
            AT + "deploy:deploy_render",
            "Write the Kubernetes manifests of a released run, with its image and model filled in.",
        ),
        "diff": Row(
            AT + "deploy_cluster:deploy_diff",
            "Show what an apply would change in the cluster, by a dry run on the server.",
        ),
        "apply": Row(
            AT + "deploy_cluster:deploy_apply",
            "Roll a released run out, prove the server in the cluster, and roll back if it fails.",
        ),
        "status": Row(
            AT + "deploy_cluster:deploy_status",
            "Show the release, the pods, the autoscaler and the revisions of a run in the cluster.",
        ),
        "canary": Row(
            AT + "deploy_cluster:deploy_canary",
            "Roll a second run out, and give it a share of the first run's requests, step by step.",
        ),
        "roll-back": Row(
            AT + "deploy_cluster:deploy_roll_back",
            "Bring an earlier revision back: its pods, its configuration, its autoscaler and its "
            "route.",
        ),
    }


app = typer.Typer(
    cls=TunelineGroup,
    help="From a data file to a proven, load-tested OpenAI-compatible endpoint.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
export_app = typer.Typer(
    cls=ExportGroup, help=EXPORT, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
loadtest_app = typer.Typer(
    cls=LoadTestGroup, help=LOADTEST, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
data_app = typer.Typer(
    cls=DataGroup, help=DATA, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
keys_app = typer.Typer(
    cls=KeysGroup, help=KEYS, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
adapters_app = typer.Typer(
    cls=AdaptersGroup, help=ADAPTERS, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
deploy_app = typer.Typer(
    cls=DeployGroup, help=DEPLOY, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show debugging messages.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    set_up_logging(verbose)
    if version:
        write_out(f"tuneline {__version__}")
        raise typer.Exit


class Interrupted(SystemExit):
    """The end of a command by a signal, with the exit code that a shell gives it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.exit_code = 128 + signum
        self.message = f"{signal.Signals(signum).name} ended the command"
        self.hint = "The same command goes on from what is finished." if goes_on() else None


def main() -> NoReturn:
    """Run the command line; the only place that turns errors into exit codes."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, _interrupt)
    refuse_fetched_kernels()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log has lines, not bars
    join_streams()
    # Rows and answers may hold half a surrogate pair, which UTF-8 cannot write.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with one_output() as output:
        try:
            code = app(standalone_mode=False)
        except TunelineError as error:
            _end_with(error, output)
        except TyperException as error:
            # A usage error, which says itself how the command is used.
            error.show()  # type: ignore[attr-defined]  # the class that has it is not public
            output.error = error.message = error.format_message()
            emit_error(error)
            sys.exit(error.exit_code)
        except Interrupted as ended:
            emit_error(ended)
            raise
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # typer ends so, `--help | head`
                sys.exit(PIPE_EXIT)
            raise
        except Exception as error:
            if isinstance(error, OSError) and (known := explain_os_error(error)) is not None:
                logger.debug("the place of the error:", exc_info=error)
                _end_with(known, output)
            # A bug: its traceback goes to stderr.
            emit_error(error)
            raise
        finally:
            write_message(output)
    sys.exit(code or 0)


def _end_with(error: TunelineError, output: Output) -> NoReturn:
    output.error = str(error)
    emit_error(error)
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _interrupt(signum: int, _frame: Any) -> NoReturn:
    """Unwind, so that servers are ended and half-written artifacts removed, then exit as killed."""
    signal.signal(signum, signal.SIG_DFL)
    more = "; the same command goes on from what is finished" if goes_on() else ""
    log_in_handler(f"interrupted{more}")
    raise Interrupted(signum)
