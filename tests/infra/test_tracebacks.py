"""No command ends in a traceback: without optional packages, with wrong input, without servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.cli import root_command
from infra.cli.reference import command_names
from infra.embedded.server import free_port

ROOT = Path(__file__).parents[2]
RUN = '''
import contextlib, io, json, sys
from infra.cli import app
from infra.cli.output import one_line_errors


def run(words):
    """[exit code, standard error] of a command; a traceback where it raises."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with one_line_errors():
                app(words)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"Traceback: {error!r}"
    return code or 0, err.getvalue()
'''
BLOCKED = '''
import importlib.abc, importlib.util
ALLOWED = {allowed!r}

class Blocker(importlib.abc.MetaPathFinder):
    """Only the standard library, this project and its base dependencies can be imported."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ALLOWED or top.startswith("_"):
            return None
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import sys
sys.meta_path.insert(0, Blocker())
'''
BASE = (
    *("afterclick", "ingest", "streaming", "training", "serving", "ui", "infra"),
    *("numpy", "orjson", "pydantic", "pydantic_core", "pydantic_settings", "rich", "structlog"),
    *("typer", "click", "shellingham", "annotated_types", "annotated_doc", "typing_extensions"),
    *("typing_inspection", "dotenv", "pygments", "markdown_it", "mdurl", "filelock", "cachetools"),
)
INSTALL = re.compile(r"pip install 'afterclick\[|run `make setup`")
REQUIRED = {
    "api-key add": "shop",
    "api-key revoke": "shop",
    "api-token": "bob",
    "benchmark": "--split absent --model als",
    "data split": "--to split",
    "experiments create": "first --arm a --arm b --metric conversion --users 100",
    "experiments show": "first",
    "experiments stop": "first",
    "forget": "bob",
    "models diff": "m1 m2",
    "models promote": "m1",
    "models show": "m1",
    "rules add": "boost brand:Sony",
    "rules rm": "r1",
}
"""Arguments without which a command does not run."""
NO_PACKAGE = {
    "data make",
    "docs",
    "down",
    "ingest pause",
    "ingest resume",
    "ingest status",
    "status",
}
"""Commands that need no optional package."""


def python(script: str, home: Path, **env: str) -> Any:
    """Run a script in a fresh interpreter whose servers are unreachable; its JSON output."""
    own = {
        "AFTERCLICK_HOME": str(home / "home"),
        "AFTERCLICK_JARS": str(home / "jars"),
        "AFTERCLICK_KAFKA__BOOTSTRAP": f"127.0.0.1:{free_port(together=2)}",
        "AFTERCLICK_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "AFTERCLICK_SERVING__PORT": str(free_port()),
        "AFTERCLICK_UI__API_URL": f"http://127.0.0.1:{free_port()}",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **own, **env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_optional_packages_every_command_names_what_to_install(tmp_path: Path) -> None:
    names = [name.removeprefix("afterclick ") for name in command_names(root_command())]
    lines = [f"{name} {REQUIRED.get(name, '')}".strip() for name in names if name not in NO_PACKAGE]
    run_all = f"print(json.dumps({{line: run(line.split()) for line in {lines!r}}}))"
    answers = python(BLOCKED.format(allowed=BASE) + RUN + run_all, tmp_path)
    assert len(answers) >= 45
    wrong = {
        line: (code, error)
        for line, (code, error) in answers.items()
        if code != 3 or error.count("\n") != 1 or not INSTALL.search(error)
    }
    assert not wrong


@pytest.mark.parametrize("extra", ["streaming", "training", "serving"])
def test_the_images_that_document_forget_have_its_packages(tmp_path: Path, extra: str) -> None:
    """It gets as far as Redis, which is down. The control: the image of the API lacks a package."""
    allowed = (*BASE, *modules_of(extra))
    script = BLOCKED.format(allowed=allowed) + RUN + "print(json.dumps(run(['forget', 'bob'])))"
    code, error = python(script, tmp_path)
    assert code == 3
    assert error.count("\n") == 1
    assert bool(INSTALL.search(error)) is (extra == "serving"), error
    assert ("Redis" in error) is (extra != "serving"), error


def modules_of(extra: str) -> set[str]:
    """Top-level modules of the packages of an extra and of what they require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"][extra]]
    names: set[str] = set()
    while waiting:
        required = Requirement(waiting.pop())
        name = canonicalize_name(required.name)
        marks = [{"extra": each} for each in (required.extras or {""})]
        if name not in names:
            names.add(name)
            more = [Requirement(line) for line in metadata.requires(name) or ()]
            waiting += [
                str(one)
                for one in more
                if one.marker is None or any(one.marker.evaluate(mark) for mark in marks)
            ]
    distributions = metadata.packages_distributions()
    return {
        module
        for module, owners in distributions.items()
        if any(canonicalize_name(owner) in names for owner in owners)
    }


WRONG: dict[str, int] = {
    "api-key add shop --setting --scope everything": 2,
    "api-key add shop": 3,
    "api-key add s@hop --setting": 2,
    "api-key ls": 3,
    "api-key revoke shop": 3,
    "api-token bob": 2,
    "als search --dataset absent.csv": 2,
    "bench nothing": 2,
    "benchmark --split absent --model als": 2,
    "benchmark --split absent --model magic": 2,
    "benchmark --split absent --model als --protocol odd": 2,
    "console --host 0.0.0.0": 2,
    "data get nothing": 2,
    "data info absent.csv": 2,
    "data make --users none": 2,
    "data split absent.csv --to split": 2,
    "evaluate --dataset absent.csv": 2,
    "experiments create a --arm old:policy --metric conversion": 2,
    "experiments create a --arm b --metric ctr": 2,
    "experiments ls": 3,
    "experiments show a --level 7": 2,
    "ingest items absent.csv": 2,
    "ingest pause": 3,
    "ingest replay absent.csv": 2,
    "ingest replay absent.csv --speed fast": 2,
    "rules add lift brand:Sony": 2,
    "rules ls": 3,
    "rules rm x/y": 3,
    "serve --host 0.0.0.0": 2,
    "serve --port 99999": 2,
    "simulate --shoppers 2 --visits 1 --api-url http://127.0.0.1:9": 3,
    "simulate --shoppers 1": 2,
    "status": 1,
    "topics": 3,
    "train": 3,
    "ui --port 99999": 2,
    "up --port-offset 99999": 2,
    "up --replay --dataset absent.csv": 2,
}


def test_wrong_input_ends_in_one_line_and_the_exit_code_of_its_error(tmp_path: Path) -> None:
    run_all = f"print(json.dumps({{words: run(words.split()) for words in {list(WRONG)!r}}}))"
    answers = python(RUN + run_all, tmp_path)
    codes = {words: code for words, (code, _) in answers.items()}
    assert codes == WRONG, {w: answers[w] for w in WRONG if codes[w] != WRONG[w]}
    for words, (_, error) in answers.items():
        assert "Traceback" not in error, (words, error)


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql://user:secret@127.0.0.1:1/absent", "oracle://x/y"]
)
def test_a_wrong_database_is_one_line_without_its_password(tmp_path: Path, url: str) -> None:
    script = RUN + "print(json.dumps({'db': run(['db', 'status'])}))"
    answers = python(script, tmp_path, AFTERCLICK_SERVING__DATABASE=url)
    code, error = answers["db"]
    assert code in (2, 3), error
    assert "Traceback" not in error
    assert "secret" not in error
