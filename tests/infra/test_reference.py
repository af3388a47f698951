"""The documentation is complete: settings, commands, events."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.cli import reference, root_command

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(reference.pages(root_command())))
def test_a_generated_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == reference.pages(root_command())[name], (
        "run `make docs` and commit what it wrote"
    )


def test_every_setting_is_documented() -> None:
    page = (DOCS / "settings.md").read_text()
    names = reference.setting_names()
    assert "AFTERCLICK_KAFKA__BOOTSTRAP" in names
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_every_setting_has_a_description() -> None:
    rows = [
        line for line in reference.settings_page().splitlines() if line.startswith("| `AFTERCLICK")
    ]
    assert len(rows) == len(reference.setting_names())
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_command_and_option_has_help() -> None:
    page = reference.commands_page(root_command())
    assert "## afterclick ingest replay" in page
    assert [
        line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")
    ] == []
    assert "None\n" not in page


def test_the_readme_names_the_two_commands_and_the_pages_of_docs() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for word in ("make demo", "make test", "docs/settings.md", "docs/commands.md"):
        assert word in readme, word
