"""A flame graph says where the time goes, and nothing of the machine it was made on."""

from __future__ import annotations

from xml.etree import ElementTree

from infra.benches.flame import draw, read

START = "thread (1): MainThread;main (/srv/app/.venv/lib/python3/site-packages/uvicorn/run.py:3)"
RAW = f"""\
{START};rank (serving/rank.py:10) 60
{START};rank (serving/rank.py:12) 20
{START};<reply> (/opt/tool.py:1) 20
thread (2): other;work (elsewhere.py:1) 900
"""


def test_frames_are_as_wide_as_their_share() -> None:
    root = ElementTree.fromstring(draw(read(RAW)))
    titles = [node.text or "" for node in root.iter() if node.tag.endswith("title")]
    assert titles == [
        "main (uvicorn/run.py): 100.0%",
        "rank (serving/rank.py): 80.0%",
        "<reply> (tool.py): 20.0%",
    ]


def test_no_folder_of_the_machine_is_in_it() -> None:
    svg = draw(read(RAW))
    assert "/srv/" not in svg
    assert "/opt/" not in svg
