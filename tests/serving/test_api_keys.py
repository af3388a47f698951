"""API keys are created and revoked while the API runs; unknown callers are rejected."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import delete, select, update
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from afterclick.errors import AlreadyThere, BadInput, NotFound
from afterclick.settings import ApiKey, ServingSettings, Settings
from serving.app import run
from serving.control.api_keys import (
    KEYS_REQUIRED,
    ApiKeyStore,
    KeyDraft,
    KeyTable,
    StoredKey,
    add_key,
    new_key,
    read_keys,
    revoke_key,
)
from serving.control.auth import check_address
from serving.control.store import Database, api_keys
from serving.routes.sockets import INVALID
from tests.serving.running import Running
from tests.serving.test_auth import bearer
from tests.waiting import PATIENCE_S, wait_until

UNREACHABLE = "postgresql://user@127.0.0.1:1/absent"


def serving(settings: Settings, **more: object) -> Settings:
    return settings.model_copy(update={"serving": ServingSettings(**more)})


def status(api: Running, key: str | None, path: str = "/popular") -> int:
    answer: httpx2.Response = api.http.get(path, headers=bearer(key) if key else {})
    return answer.status_code


def test_keys_are_read_back_from_sql_and_revoked_once(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    kept, key = add_key(
        database, KeyDraft(name="shop", scopes=("recommend",), note="the shop's server")
    )
    with database.begin() as connection:
        assert read_keys(connection) == ((kept,), 1)
        assert key not in str(connection.execute(select(api_keys)).all()), "only the hash is kept"
    assert kept.sha256 == hashlib.sha256(key.encode()).hexdigest()
    with pytest.raises(AlreadyThere, match="shop"):
        add_key(database, KeyDraft(name="shop"))
    revoke_key(database, "shop")
    for name in ("shop", "unknown"):
        with pytest.raises(NotFound, match=name):
            revoke_key(database, name)
    with pytest.raises(AlreadyThere, match="shop"):
        add_key(database, KeyDraft(name="shop"))
    with database.begin() as connection:
        assert read_keys(connection).keys[0].revoked
    database.close()


def test_keys_created_and_revoked_by_another_process_take_effect(
    settings: Settings,
) -> None:
    database = Database(settings.database)
    with Running(settings) as api:
        assert status(api, None) == 200, "without keys this machine is answered"
        _, key = add_key(database, KeyDraft(name="shop"))
        wait_until(lambda: status(api, None) == 401)
        assert (status(api, key), status(api, key, "/rules")) == (200, 403)
        url = f"{api.ws}/ws/recommendations?user_id=bob"
        with connect(url, additional_headers=bearer(key)) as socket:
            assert socket.recv(PATIENCE_S)
            revoke_key(database, "shop")
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(PATIENCE_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == INVALID
        wait_until(lambda: status(api, key) == 401)
        with pytest.raises(InvalidStatus), connect(url, additional_headers=bearer(key)):
            pass
        assert status(api, None) == 401, "the last key's end does not open the service to everyone"
    database.close()


def test_keys_created_by_http_work_next_to_those_of_the_settings(settings: Settings) -> None:
    root, sha256 = new_key()
    with Running(serving(settings, keys={"root": ApiKey(sha256=sha256, scopes=("admin",))})) as api:
        made = api.http.post(
            "/keys", json={"name": "page", "scopes": ["recommend"]}, headers=bearer(root)
        )
        assert made.status_code == 201, made.text
        key = made.json()["key"]
        assert status(api, key) == 200
        listed = api.http.get("/keys", headers=bearer(root)).json()["keys"]
        assert [(row["name"], row["scopes"], row["revoked"]) for row in listed] == [
            ("page", ["recommend"], None)
        ]
        assert "sha256" not in listed[0]
        assert "key" not in listed[0]
        for name in ("page", "root"):
            taken = api.http.post("/keys", json={"name": name}, headers=bearer(root))
            assert taken.status_code == 409, (name, taken.text)
        assert api.http.delete("/keys/page", headers=bearer(root)).status_code == 200
        assert status(api, key) == 401
        assert api.http.delete("/keys/page", headers=bearer(root)).status_code == 404
        assert status(api, root, "/keys") == 200


def test_a_page_of_another_origin_cannot_create_a_key(settings: Settings) -> None:
    with Running(settings) as api:
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            assert api.http.post("/keys", json={"name": "k"}, headers=headers).status_code == 403
        assert api.get("/keys") == {"keys": []}


def test_unknown_callers_are_rejected_until_the_keys_have_been_read(
    settings: Settings,
) -> None:
    root, sha256 = new_key()
    own = {"root": ApiKey(sha256=sha256, scopes=("admin",))}
    with Running(serving(settings, database=UNREACHABLE)) as api:
        answer = api.http.get("/popular")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert api.http.get("/health/live").status_code == 200
    with Running(serving(settings, database=UNREACHABLE, keys=own)) as api:
        assert (status(api, root), status(api, "another"), status(api, None)) == (200, 503, 503)


def test_the_keys_read_last_stay_valid_while_the_database_is_down(tmp_path: Path) -> None:
    keys = ApiKeyStore(ServingSettings(), tmp_path)
    assert (keys.required, keys.uncertain) == (False, True)
    kept, key = StoredKey.of(KeyDraft(name="shop"))
    keys.replace(KeyTable((kept,), 1))
    assert (keys.required, keys.uncertain) == (True, False)
    assert keys.find(key.encode()) == ("shop", ("recommend", "feedback"))
    assert keys.find(b"") == (None, None)
    assert ApiKeyStore(ServingSettings(open=True), tmp_path).uncertain is False


def test_a_key_in_sql_allows_an_address_beyond_loopback(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", serving=ServingSettings(host="203.0.113.7"))
    with pytest.raises(BadInput, match="api-key add"):
        run(settings)
    add_key(Database(settings.database), KeyDraft(name="shop"))
    with pytest.raises(Exception, match="cannot listen on"):  # no address of this machine
        run(settings)
    check_address(settings.serving, lambda: True)


def test_an_emptied_table_does_not_open_the_api(settings: Settings) -> None:
    database = Database(settings.database)
    with Running(settings) as api:
        assert status(api, None) == 200
        _, key = add_key(database, KeyDraft(name="shop"))
        wait_until(lambda: status(api, key) == 200 and status(api, None) == 401)
        with database.begin() as connection:
            connection.execute(delete(api_keys))
        wait_until(lambda: status(api, key) == 401)
        assert status(api, None) == 401
    with Running(settings) as api:
        wait_until(lambda: api.service.control.available)
        assert (status(api, None), status(api, key)) == (401, 401), "nor the next start"
    (settings.home / KEYS_REQUIRED).unlink()
    with Running(settings) as api:
        wait_until(lambda: api.service.control.available)
        assert status(api, None) == 200, "the control: without the record it opens"
    database.close()


def test_rows_that_cannot_be_read_count_as_keys(settings: Settings) -> None:
    database = Database(settings.database)
    database.upgrade()
    _, key = add_key(database, KeyDraft(name="shop"))
    with database.begin() as connection:
        connection.execute(update(api_keys).values(scopes=["of a newer version"]))
        assert read_keys(connection) == ((), 1)
    with Running(settings) as api:
        wait_until(lambda: api.service.control.available)
        assert (status(api, None), status(api, key)) == (401, 401)
    database.close()


def test_keys_are_required_without_any_row_if_settings_or_address_ask_for_it(
    tmp_path: Path,
) -> None:
    def required(home: Path = tmp_path, rows: int = 0, **settings: object) -> bool:
        keys = ApiKeyStore(ServingSettings.model_validate(settings), home)
        keys.replace(KeyTable((), rows))
        return keys.required

    assert not required()
    assert not required(host="0.0.0.0", open=True)
    assert required(host="0.0.0.0")
    assert required(require_keys=True)
    assert required(require_keys=True, open=True)
    (tmp_path / "file").touch()
    assert required(tmp_path / "file", rows=1), "also where the record cannot be written"
    assert not required()
    assert required(rows=1)
    assert required(), "the record in the home folder"
    check_address(ServingSettings(host="0.0.0.0", require_keys=True))
