"""Errors: one tree, drawn on top of its module, with an exit code each."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from afterclick import errors
from afterclick.errors import redact


def tree() -> list[type[errors.AfterclickError]]:
    found = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    return [cls for cls in found if issubclass(cls, errors.AfterclickError)]


def test_the_drawing_names_every_error_and_no_other() -> None:
    drawn = re.findall(r"(?:^|[├└]── )(\w+)", errors.__doc__ or "", re.MULTILINE)
    assert {cls.__name__ for cls in tree()} == set(drawn) & {cls.__name__ for cls in tree()}
    in_tree = [name for name in drawn if hasattr(errors, name)]
    assert sorted(in_tree) == sorted(cls.__name__ for cls in tree())


def test_exit_codes_tell_the_kinds_apart_and_are_never_success() -> None:
    kinds = [cls for cls in tree() if cls.__bases__ == (errors.AfterclickError,)]
    codes = [cls.exit_code for cls in kinds]
    assert len(set(codes)) == len(codes)
    assert all(code > 1 for code in codes)


def test_the_client_without_its_extra_names_it() -> None:
    code = "import sys; sys.modules['httpx2'] = None; import afterclick.io.client"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "afterclick.errors.MissingExtra" in done.stderr
    assert "pip install 'afterclick[client]'" in done.stderr
    assert "ModuleNotFoundError" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:se:cret@host:1/0", "redis://user:***@host:1/0"),
        (
            "at postgresql+psycopg://:secret@host/db: refused",
            "at postgresql+psycopg://:***@host/db: refused",
        ),
        ("host=h password=secret dbname=shop", "host=h password=*** dbname=shop"),
        ("{'sasl.password': 'secret'}", "{'sasl.password': '***'}"),
        ("http://127.0.0.1:8000/users/a@b", "http://127.0.0.1:8000/users/a@b"),
    ],
)
def test_messages_have_no_passwords(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(errors.Unavailable(text)) == shown
    assert str(RuntimeError(text)) == text  # the control
