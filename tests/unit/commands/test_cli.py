"""The command line: instant help, one error format, exit codes, JSON as the only stdout."""

import contextlib
import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import huggingface_hub.constants
import pytest

from tests.commands import kept_signals, tuneline_here
from tuneline import cli
from tuneline.cli import (
    AdaptersGroup,
    DataGroup,
    DeployGroup,
    ExportGroup,
    KeysGroup,
    LoadTestGroup,
    TunelineGroup,
)
from tuneline.commands import up as up_commands
from tuneline.commands.lazy_group import LazyGroup, load_command
from tuneline.core.artifact import new_artifact

EXAMPLE = Path(__file__).parents[3] / "examples" / "support-tickets" / "run.yaml"
BASE = EXAMPLE.parents[1] / "tiny-base"
ROWS = EXAMPLE.parents[1] / "preferences" / "heldout.jsonl"
TRAINING = (
    "--set", "k8s.training.image=registry.example.com/tuneline-training:1",
    "--set", "k8s.training.work_claim=work",
)  # fmt: skip
GROUPS: tuple[type[LazyGroup], ...] = (
    TunelineGroup, DataGroup, ExportGroup, LoadTestGroup, KeysGroup, AdaptersGroup,
    DeployGroup,
)  # fmt: skip
COMMANDS = (
    "check", "plan", "up", "train", "evaluate", "export", "prove", "serve", "chat", "keys",
    "loadtest", "inspect", "verify", "doctor", "deploy", "card", "push", "pull", "data", "init",
    "adapters", "release", "report", "search", "tune", "clean",
)  # fmt: skip


def tuneline(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in this process: what it answers, prints and exits with."""
    with contextlib.chdir(cwd or Path.cwd()):
        return tuneline_here(*map(str, args))


def tuneline_process(
    *args: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneline", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120
    )


def write_artifact(out: Path) -> None:
    with new_artifact(out, "dataset", config={}) as draft:
        (draft.dir / "a.txt").write_text("a")
        draft.metrics["num_train"] = 3


def test_help_lists_every_command() -> None:
    shown = tuneline("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    assert len(TunelineGroup.table) == len(COMMANDS)


def test_help_imports_no_command_and_no_library_but_typer() -> None:
    """The imports of `--help` decide how long it takes, also on a busy machine."""
    loaded = modules_after("--help")
    assert "typer" in loaded
    heavy = {
        "pydantic", "yaml", "rich", "jinja2", "asyncio", "importlib.metadata", "email", "http",
        "urllib.request", "tuneline.pipeline", "tuneline.core.config", "training", "export",
        "serving", "loadtest", "k8s",
    }  # fmt: skip
    assert heavy & loaded == set()
    commands = {name for name in loaded if name.startswith("tuneline.commands.")}
    assert commands == {"tuneline.commands.lazy_group", "tuneline.commands.printing"}


def test_help_is_instant() -> None:
    best_s = min(_cpu_of_help() for _ in range(5))
    print(f"tuneline --help: {best_s:.3f} s of processor time")
    assert best_s < 0.3


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in GROUPS for name in group.table],
)
def test_a_command_of_the_table_is_there_and_says_what_the_table_says(
    group: type[LazyGroup], name: str
) -> None:
    row = group.table[name]
    command = load_command(name, row.where)
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == row.help


def modules_after(*args: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import sys; sys.argv = ['tuneline', *sys.argv[1:]]\n"
        "import atexit\n"
        "atexit.register(lambda: print('LOADED', *sorted(sys.modules)))\n"
        "from tuneline.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, timeout=60
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    return set(line.split()[1:])


def _cpu_of_help() -> float:
    """Processor time: the wall time of a shared machine is not the command's own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert tuneline_process("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", [("--help",), ("plan", str(EXAMPLE))])
def test_no_machine_learning_library_is_loaded(command: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['tuneline', *sys.argv[1:]]\n"
        "import atexit\n"
        "heavy = {'torch', 'transformers', 'vllm', 'peft', 'trl', 'numpy', 'matplotlib'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        "from tuneline.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = tuneline(command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_plan_of_the_example(tmp_path: Path) -> None:
    done = tuneline("plan", EXAMPLE, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert [entry["stage"] for entry in planned] == [
        "dataset", "evaluation-base", "adapter", "evaluation-tuned", "evaluation-report",
        "reference", "model", "parity-merged", "parity-served", "evaluation-served", "loadtest",
    ]  # fmt: skip
    assert planned[0]["state"] == "stale"
    assert {entry["state"] for entry in planned[1:]} == {"waiting"}
    assert list(tmp_path.iterdir()) == []
    estimate = planned[2]["estimate"]
    assert estimate["training"]["weights"] == 4 * 2_934_528  # parameters of the tiny base, float32
    assert estimate["fits"] is True and estimate["change"] is None
    assert {choice["key"] for choice in estimate["choices"]} == {
        "dtype", "attn_implementation", "gradient_checkpointing",
    }  # fmt: skip


def test_plan_prints_memory_and_the_reason_of_each_default(tmp_path: Path) -> None:
    run = ["--set", "training.gradient_checkpointing=auto"]
    done = tuneline("plan", EXAMPLE, *run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (
        "training takes ",
        "merging takes ",
        "KV cache",
        "gradient_checkpointing: false (",
    ):
        assert text in done.stdout


def test_unknown_keys_are_named_with_a_suggestion(tmp_path: Path) -> None:
    done = tuneline(
        "plan", EXAMPLE, "--set", "trainning.r=4", "--set", "training.lrr=1", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "trainning: unknown key (did you mean training?)" in done.stderr
    assert "training.lrr: unknown key" in done.stderr
    assert done.stdout == ""


def test_errors_are_json_too(tmp_path: Path) -> None:
    done = tuneline("plan", tmp_path / "none.yaml", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ConfigError"
    assert error["exit_code"] == 2
    assert "none.yaml: no such file" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up",), "Missing argument 'RUN.yaml'"),
        (("up", EXAMPLE, "--jsno"), "No such option: --jsno"),
        (("nonsense",), "No such command 'nonsense'"),
        (("loadtest", "cros-check"), "No such command 'cros-check'. Did you mean 'cross-check'?"),
        (("evaluate", "--suite", "nope"), "Invalid value for '--suite'"),
        (("export", "form", "pruned"), "Missing option '--model'"),
        (("export", "form"), "No such option: --json"),
    ],
)
def test_a_usage_error_is_json_too(arguments: tuple[str | Path, ...], message: str) -> None:
    done = tuneline(*arguments, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert message in error["message"] and error["exit_code"] == 2
    assert message in done.stderr and "Usage:" in done.stderr
    assert done.stderr.count("Possible options") <= 1


def test_a_log_has_no_bars_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.delenv("TQDM_DISABLE")
    assert tuneline("--version").returncode == 0
    assert os.environ["TQDM_DISABLE"] == "1"


def test_a_bug_is_json_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(sys, "argv", ["tuneline", "plan", "--json"])
    # The interpreter prints it and ends with 1.
    with kept_signals(), pytest.raises(ZeroDivisionError):
        cli.main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {
        "type": "ZeroDivisionError", "message": "a bug", "hint": None, "exit_code": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "stdout", "code"),
    [
        (("keys", "list", "--file", "/dev/null"), "closed pipe", 141),
        (("--help",), "closed pipe", 141),
        (("--version",), "closed pipe", 141),
        (("--version",), "/dev/full", 4),
        (("keys", "list", "--file", "/dev/null"), "/dev/full", 4),
        (("plan", "none.yaml", "--json"), "/dev/full", 2),
    ],
)
def test_a_stdout_that_takes_nothing_is_not_a_bug(
    command: tuple[str, ...], stdout: str, code: int
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    if stdout == "/dev/full":
        os.dup2(os.open(stdout, os.O_WRONLY), write_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tuneline", *command],
            stdout=write_end, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(write_end)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("stdout: the disk is full" in done.stderr) == (code == 4)


def test_a_character_that_stdout_cannot_write_is_no_bug(tmp_path: Path) -> None:
    """An answer may hold half a surrogate pair, and a log may be written in Latin-1."""
    row = {"prompt": "in", "completion": "\u2192"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    written = io.BytesIO()
    latin = io.TextIOWrapper(written, encoding="latin-1")
    rows = str(tmp_path / "rows.jsonl")
    done = tuneline_here("data", "show", rows, written_to=latin)
    assert done.returncode == 0, done.stderr
    latin.flush()
    # Each token is a part of the arrow.
    assert rb"\ufffd" in written.getvalue()


def test_a_lost_terminal_ends_a_command_as_a_signal_does() -> None:
    code = (
        "import os, signal, sys\n"
        "from tuneline import cli\n"
        "cli.app = lambda **_: os.kill(os.getpid(), signal.SIGHUP)\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + 1
    error = json.loads(done.stdout)["error"]
    assert (error["message"], error["exit_code"]) == ("SIGHUP ended the command", 129)


@pytest.mark.parametrize("goes_on", [True, False])
def test_only_a_command_that_goes_on_says_so(goes_on: bool) -> None:
    said = "printing.set_goes_on(); " if goes_on else ""
    code = (
        "import os, signal\n"
        "from tuneline import cli\n"
        "from tuneline.commands import printing\n"
        "from tuneline.core.progress import set_up_logging\n"
        "set_up_logging(False)\n"
        f"cli.app = lambda **_: exec('{said}os.kill(os.getpid(), signal.SIGINT)')\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + 2 and "interrupted" in done.stderr
    assert ("the same command goes on" in done.stderr) == goes_on
    hint = json.loads(done.stdout)["error"]["hint"]
    assert hint == ("The same command goes on from what is finished." if goes_on else None)


def test_a_signal_inside_a_write_to_stderr_is_not_lost() -> None:
    """Nobody reads the log for a moment, so the command waits in a write when the signal comes."""
    code = (
        "from tuneline import cli\n"
        "from tuneline.core.progress import logger, set_up_logging\n"
        "set_up_logging(False)\n"
        "cli.app = lambda **_: [logger.info('x' * 99) for _ in range(2000)]\n"
        "cli.main()"
    )
    # Without its own buffer, stderr can be entered twice.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=env)
    with process:
        assert process.stderr is not None
        size = -1
        while size <= 0 or size < _num_unread(process.stderr):
            size = _num_unread(process.stderr)
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        text = process.stderr.read().decode()
    assert process.returncode == 128 + 2
    assert text.splitlines()[-1] == "interrupted"
    assert "reentrant" not in text


def _num_unread(pipe: IO[bytes]) -> int:
    """The bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)


@pytest.mark.parametrize("command", ["export", "prove", "loadtest"])
def test_a_reward_model_has_no_later_stages(command: str, tmp_path: Path) -> None:
    """Without a name of a stage, the whole line would run."""
    preferences = EXAMPLE.parents[1] / "preferences" / "run.yaml"
    method = ("--set", "training.method={type: reward}")
    done = tuneline(command, preferences, *method, cwd=tmp_path)
    assert done.returncode == 2
    assert "training.method reward makes a model that answers no prompt" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "next_lines"),
    [
        ("sft", ["tuneline chat {run} --set training.r=4 --runs-dir 'my runs'",
                 "tuneline serve {run} --set training.r=4 --runs-dir 'my runs' --port 8000"]),
        ("reward", []),
    ],
)  # fmt: skip
def test_the_next_commands_are_about_the_same_run(
    method: str, next_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_commands, "run_stages", lambda *_, **__: None)
    sets = ["training.r=4"] if method == "sft" else [f"training.method.type={method}"]
    options = [part for one in sets for part in ("--set", one)]
    done = tuneline("up", EXAMPLE, *options, "--runs-dir", "my runs")
    assert done.returncode == 0, done.stderr
    found = [line.strip() for line in done.stderr.splitlines() if "tuneline" in line]
    assert found == [line.format(run=EXAMPLE) for line in next_lines]


def test_a_card_that_cannot_be_written(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "model", "model", config={}) as draft:
        (draft.dir / "config.json").write_text("{}")
    done = tuneline("card", tmp_path / "model", "--out", tmp_path / "none" / "README.md")
    assert done.returncode == 3, done.stderr
    assert "none/README.md: cannot be written" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify", "report"])
def test_the_folder_of_a_run_is_not_to_be_removed(command: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "my run" / "dataset-0123456789")
    done = tuneline(command, tmp_path / "my run")
    assert done.returncode == 3
    assert "rm -r" not in done.stderr


def test_a_base_model_that_does_not_exist(tmp_path: Path) -> None:
    done = tuneline("plan", EXAMPLE, "--set", "base_model=./nowhere", cwd=tmp_path)
    assert done.returncode == 4
    assert "no such folder" in done.stderr


@pytest.mark.parametrize(
    ("verb", "run", "hint"),
    [
        ("plan", tuneline_process, "tuneline check RUN.yaml and tuneline up RUN.yaml download it"),
        ("check", tuneline, "a gated model also needs HF_TOKEN"),
        ("up", tuneline, "a gated model also needs HF_TOKEN"),
    ],
)
def test_a_hub_id_that_is_not_to_be_had(
    verb: str,
    run: Callable[..., subprocess.CompletedProcess[str]],
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    # In this process the library has read these variables already.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "hub"))
    done = run(verb, EXAMPLE, "--set", "base_model=nobody/nothing", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "error: model 'nobody/nothing': not a folder here" in done.stderr
    assert hint in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("check", EXAMPLE, "--set", "data.path=README.md/x"), 2, "Not a directory"),
        (("check", "list-as-key.yaml"), 2, "a key is a list or a mapping"),
        (("up", EXAMPLE, "--runs-dir", "file"), 3, "cannot be written"),
        (("serve", BASE, "--runs-dir", "file"), 3, "cannot be written"),
        (("push", "--model", BASE, "--to", "file/x"), 3, "cannot be written"),
        (("data", "convert", ROWS, "--out", "file/x.jsonl"), 3, "file/x.jsonl: cannot be written"),
        (("data", "check", ROWS, "--picture", "no/x.png"), 3, "no/x.png: cannot be written"),
        (("deploy", "render", EXAMPLE, "--training", "--out", "file/x", *TRAINING), 3,
         "file/x: cannot be written"),
        (("export", "quantize", "--model", BASE, "--scheme", "int8", "--out", "file/x"), 3,
         "cannot be written"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_is_not_a_fault_of_tuneline(
    arguments: tuple[str | Path, ...], code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "list-as-key.yaml").write_text("? [a]\n: 1\n")
    done = tuneline(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_data_file(tmp_path: Path) -> None:
    done = tuneline("plan", EXAMPLE, "--set", "data.path=none.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.path: no such file" in done.stderr


def test_inspect_and_verify_an_artifact(tmp_path: Path) -> None:
    write_artifact(tmp_path / "x")
    shown = tuneline("inspect", tmp_path / "x", "--json")
    assert json.loads(shown.stdout)["metrics"] == {"num_train": 3}
    assert "sha256:" in tuneline("inspect", tmp_path / "x").stdout
    assert tuneline("verify", tmp_path / "x").returncode == 0
    digest = json.loads((tmp_path / "x" / "manifest.json").read_text())["digest"]
    assert tuneline("verify", tmp_path / "x", "--digest", digest).returncode == 0
    other = tuneline("verify", tmp_path / "x", f"--digest=sha256:{'0' * 64}")
    assert other.returncode == 3
    assert f"has digest {digest}; expected sha256:000" in other.stderr
    assert tuneline("verify", EXAMPLE, "--digest", digest).returncode == 2
    assert tuneline("verify", EXAMPLE, "--ignore=*").returncode == 2
    (tmp_path / "x" / "added.md").write_text("c")
    assert tuneline("verify", tmp_path / "x").returncode == 3
    assert tuneline("verify", tmp_path / "x", "--ignore=*.md").returncode == 0
    (tmp_path / "x" / "a.txt").write_text("b")
    (tmp_path / "x" / "added.md").unlink()
    # A listed file is compared, whatever is ignored.
    assert tuneline("verify", tmp_path / "x", "--ignore=*").returncode == 3
    tampered = tuneline("verify", tmp_path / "x")
    assert tampered.returncode == 3
    assert "a.txt: sha256" in tampered.stderr
    assert tuneline("inspect", tmp_path).returncode == 3


def test_inspect_of_a_run_that_was_never_made(tmp_path: Path) -> None:
    done = tuneline("inspect", EXAMPLE, cwd=tmp_path)
    assert done.returncode == 3
    assert "tuneline up" in done.stderr


@pytest.mark.parametrize(
    "command", [("serve",), ("export", "quantize", "--scheme", "int8", "--out", "x", "--model")]
)
def test_an_adapter_is_not_a_model(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    done = tuneline(*command, "adapter", cwd=tmp_path)
    assert done.returncode == 3
    assert "adapter: holds an adapter; expected a model folder" in done.stderr
    assert "tuneline export merge --base BASE --adapter adapter --out DIR" in done.stderr


def test_serve_says_how_a_model_of_the_hub_is_downloaded(tmp_path: Path) -> None:
    done = tuneline("serve", "Qwen/Qwen3-0.6B", cwd=tmp_path)
    assert done.returncode == 2
    assert "Qwen/Qwen3-0.6B: no such file or folder" in done.stderr
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in done.stderr


def test_the_url_of_a_server_is_an_option_of_chat(tmp_path: Path) -> None:
    done = tuneline("chat", "http://127.0.0.1:8000", cwd=tmp_path)
    assert done.returncode == 2
    assert "Try: tuneline chat --url http://127.0.0.1:8000" in done.stderr


def test_serving_beyond_loopback_needs_a_key(tmp_path: Path) -> None:
    base = EXAMPLE.parents[1] / "tiny-base"
    done = tuneline("serve", base, "--host", "0.0.0.0", cwd=tmp_path)  # noqa: S104
    assert done.returncode == 2
    assert "a key is required beyond loopback" in done.stderr


def test_a_workload_file_does_not_reach_a_cluster(tmp_path: Path) -> None:
    workload = ("loadtest.workload.source=sharegpt", "loadtest.workload.path=chats.json")
    options = [part for one in workload for part in ("--set", one)]
    done = tuneline("deploy", "render", EXAMPLE, "--out", tmp_path / "m", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "chats.json" in done.stderr
    assert "loadtest.workload.source=prompts" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_rendered_without_an_artifact(tmp_path: Path) -> None:
    image = "k8s.training.image=registry.example.com/tuneline-training:1"
    options = ["--training", "--out", "m", "--set", image, "--set", "k8s.training.work_claim=work"]
    done = tuneline("deploy", "render", EXAMPLE, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kubectl apply -k m" in done.stdout
    assert f"{EXAMPLE.parent / 'train.jsonl'} -> /work/data/train.jsonl" in done.stdout
    assert (tmp_path / "m" / "workload.yaml").exists()
    done = tuneline("deploy", "render", EXAMPLE, *options, "--helm", cwd=tmp_path)
    assert done.returncode == 2
    assert "--helm: has no meaning with --training" in done.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("push", EXAMPLE, "--to", "s3://"), "is not a place in object storage"),
        (("push", EXAMPLE, "--model", BASE, "--to", "s3://b/p"), "--model: has no meaning with a"),
        (("push", "--to", "s3://b/p"), "--model is required"),
        (("push", "--model", BASE, "--to", "x.tar.gz"), "archive of type .gz; expected a FILE.tar"),
        (("deploy", "status", "."), "no kustomization.yaml; expected a directory of deploy render"),
        (("plan", ROWS), "A run.yaml is read. Try: tuneline init --data FILE"),
        (("export", "form", "pruned", "--model", BASE, "--out", "x"), "pruned: give sparsity or"),
        (("push", EXAMPLE), "Try: --to s3://BUCKET/PATH"),
        (("pull", EXAMPLE), "Try: --from s3://BUCKET/PATH"),
        (("pull", "s3://b/p"), "Try: --out DIR"),
        (("pull", "s3://b/p", "--from", "s3://b/p", "--out", "x"), "--from: has no meaning with a"),
        (("pull", EXAMPLE, "--from", "s3://b/p", "--files"), "--files: has no meaning with a run"),
        (("train", EXAMPLE, "--push-to", "models"), "models: is not a place in object storage"),
    ],
)
def test_a_place_or_file_that_cannot_be_used_is_refused(
    args: tuple[str | Path, ...], expected: str, tmp_path: Path
) -> None:
    done = tuneline(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("push", EXAMPLE, "--to"), "s3://***@b/runs: has a password in the URL"),
        (("pull", "--out", "x"), "s3://***@b/runs: has a password in the URL"),
        (("train", EXAMPLE, "--push-to"), "s3://***@b/runs: has a password in the URL"),
        (("deploy", "render", EXAMPLE, "--training", "--out", "m", "--set"), "push_to: a URL has"),
    ],
)
def test_a_password_in_the_url_of_a_place_is_refused_and_not_shown(
    args: tuple[str | Path, ...], expected: str, tmp_path: Path
) -> None:
    url = "s3://AKIAEXAMPLE:ab/cd+ef@b/runs"
    value = f"k8s.training={{image: i, push_to: '{url}'}}" if args[-1] == "--set" else url
    done = tuneline(*args, value, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "AKIAEXAMPLE" not in done.stderr and "ab/cd" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_options_that_are_needed_together() -> None:
    done = tuneline("chat", "--json", EXAMPLE)
    assert done.returncode == 2
    assert "--message" in done.stderr
    assert tuneline("prove").returncode == 2
    assert tuneline("nonsense").returncode == 2


def test_doctor_names_what_is_here() -> None:
    done = tuneline("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {entry["what"]: entry for entry in json.loads(done.stdout)}
    assert findings["python"]["ok"]
    assert findings["room train"]["ok"]


def test_doctor_names_the_forms_that_cannot_be_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = tuneline("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {entry["what"]: entry["found"] for entry in json.loads(done.stdout)}
    lacking = [what for what in findings if what.startswith("form ")]
    assert lacking == ["form gptq-int8", "form gptq-w4a16", "form awq-w4a16"]
    assert "tuneline export install-calibration" in findings["form awq-w4a16"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", EXAMPLE, "--dtype", "bfloat16"),
        ("prove", EXAMPLE, "--out", "x"),
        ("evaluate", EXAMPLE, "--model", "x"),
        ("loadtest", EXAMPLE, "--rate", "3"),
        ("chat", EXAMPLE, "--url", "http://127.0.0.1:1/v1", "--model", "x"),
        ("chat", EXAMPLE, "--model", "x"),
        ("prove", EXAMPLE, "--api-key-env", "X"),
        ("prove", "--reference", "x", "--candidate", BASE, "--set", "training.r=4"),
        ("export", "--base", BASE, "--adapter", "x", "--out", "y", "--set", "training.r=4"),
        ("inspect", BASE, "--set", "training.r=4"),
        ("card", BASE, "--set", "training.r=4"),
        ("verify", BASE, "--set", "training.r=4"),
        ("report", BASE, "--set", "training.r=4"),
        ("doctor", "--set", "training.r=4"),
        ("data", "check", ROWS, "--max-length", "9"),
        ("loadtest", "report", BASE, "--format", "html", "--json"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: tuple[str | Path, ...], tmp_path: Path
) -> None:
    done = tuneline(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "has no meaning" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_file_that_is_not_a_file() -> None:
    done = tuneline("plan", EXAMPLE / "run.yaml")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
