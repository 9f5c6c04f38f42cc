"""Who may ask: hosts, origins, other pages, the token, sizes."""

import asyncio
import json

import pytest

from gmodiff.web.guard import COOKIE, HEADERS, Guard


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def ask(guard: Guard, path: str = "/api/jobs", method: str = "GET", query: str = "", **headers: str):
    """(status, body, headers) of one request; header names with _ for -."""
    sent = {"host": "127.0.0.1:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()],
    }
    messages = []

    async def send(message):
        messages.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(guard(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in messages)
    return messages[0]["status"], body, {k.decode(): v.decode() for k, v in messages[0]["headers"]}


LOCAL = Guard(app, port=8000, names=["127.0.0.1", "localhost", "::1"])
OPEN = Guard(app, port=8000, names=["localhost", "studio"], any_address=True, token="secret-token")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000"])
def test_own_hosts_are_answered_and_nothing_from_elsewhere_may_be_loaded(host):
    status, body, headers = ask(LOCAL, host=host)
    assert (status, body) == (200, b"in")
    assert {k: headers[k] for k in HEADERS} == HEADERS


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "192.168.0.5:8000", "", "localhost:8000@evil.example", "a b", "[::1", "x" * 3000],
)
def test_a_name_that_was_pointed_here_is_refused(host):
    status, body, _ = ask(LOCAL, host=host)
    assert status == 403
    assert "gmodiff serve" in json.loads(body)["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8000", "http://127.0.0.1:9", "http://localhost:8000"])
def test_a_request_of_another_page_is_refused(origin):
    assert ask(LOCAL, method="POST", origin=origin)[0] == 403


def test_the_own_page_may_ask():
    assert ask(LOCAL, method="POST", origin="http://127.0.0.1:8000", sec_fetch_site="same-origin")[0] == 200


def test_an_image_of_another_page_is_refused_but_a_link_to_the_page_is_not():
    assert ask(LOCAL, sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask(LOCAL, sec_fetch_site="same-site", sec_fetch_mode="navigate")[0] == 403
    assert ask(LOCAL, path="/", sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200


def test_a_bare_address_is_ours_only_where_others_may_connect():
    assert ask(LOCAL, host="10.0.0.7:8000")[0] == 403
    assert ask(OPEN, host="10.0.0.7:8000", authorization="Bearer secret-token")[0] == 200
    assert ask(OPEN, host="evil.example:8000", authorization="Bearer secret-token")[0] == 403


def test_without_the_token_nothing_is_answered():
    assert ask(OPEN, host="studio:8000")[0] == 401
    assert ask(OPEN, host="studio:8000", path="/")[0] == 401
    assert ask(OPEN, host="studio:8000", cookie=f"{COOKIE.format(port=8000)}=wrong")[0] == 401
    assert ask(OPEN, host="studio:8000", authorization="Bearer ")[0] == 401
    assert ask(OPEN, host="studio:8000", query="token=secret-token")[0] == 401  # in the page's own address only


def test_the_printed_address_signs_in_and_hides_the_token():
    status, _, headers = ask(OPEN, host="studio:8000", path="/", query="token=secret-token")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    assert ask(OPEN, host="studio:8000", cookie=headers["set-cookie"].split(";")[0])[0] == 200


def test_cookies_of_other_programs_and_ports_do_no_harm():
    own = f"{COOKIE.format(port=8000)}=secret-token"
    odd = ['odd[name]={"a": 1}; ' + own, f"=; ;a; {own}; b=,\xe9", f"{COOKIE.format(port=9)}=other; {own}"]
    assert [ask(OPEN, host="studio:8000", cookie=c)[0] for c in odd] == [200] * 3
    assert ask(OPEN, host="studio:8000", cookie=f"{COOKIE.format(port=9)}=secret-token")[0] == 401


@pytest.mark.parametrize("headers", [{"content_length": "200001"}, {"content_length": "many"}, {"transfer_encoding": "chunked"}])
def test_only_uploads_may_be_large(headers):
    assert ask(LOCAL, method="POST", **headers)[0] == 413
    assert ask(LOCAL, path="/api/photos", method="POST", **headers)[0] == 200
