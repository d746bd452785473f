import asyncio

import pytest

from ftplan.ui import serving
from ftplan.ui.guard import COOKIE, Guard
from ftplan.ui.session import Settings

TOKEN = "a token"


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(guard, path="/", method="GET", query="", scheme="http", root_path="", server=("127.0.0.1", 7860), **headers):
    """Status, headers and body of an answer."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "scheme": scheme,
        "root_path": root_path,
        "server": server,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(guard(scope, None, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


LOCAL = ("localhost", "127.0.0.1", "[::1]")


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "LOCALHOST:1", "[::1]:7860"])
def test_loopback_answers_to_its_own_names(host):
    status, headers, body = ask(Guard(inside, names=LOCAL), host=host)
    assert (status, body) == (200, "inside")
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:7860"])
def test_no_other_name_reaches_it(host):
    assert ask(Guard(inside, names=LOCAL), host=host)[0] == 421


def test_another_site_changes_nothing():
    guard = Guard(inside, names=LOCAL)
    assert ask(guard, method="POST", host="localhost:7860", origin="https://evil.example")[0] == 403
    assert ask(guard, method="POST", host="localhost:7860", origin="http://localhost:1")[0] == 403
    assert ask(guard, method="POST", host="localhost:7860", origin="null")[0] == 403
    assert ask(guard, method="POST", host="localhost:7860", origin="http://localhost:7860")[0] == 200
    assert ask(guard, method="POST", host="localhost:7860")[0] == 200  # no browser


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://page.example", "page.example"),
        ("https://page.example", "page.example:443"),
        ("https://page.example:443", "page.example"),
        ("http://page.example", "Page.Example:80"),
        ("http://[::1]", "[::1]:80"),
        ("https://page.example:8443", "page.example:8443"),
    ],
)
def test_default_ports_may_be_left_out(origin, host):
    assert ask(Guard(inside), method="POST", host=host, origin=origin)[0] == 200


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://page.example", "page.example:80"),
        ("http://page.example", "page.example:443"),
        ("https://page.example:8443", "page.example"),
        ("https://page.example", "page.example:8443"),
        ("https://page.example.evil.example", "page.example"),
        ("https://evil.example", "page.example:443"),
        ("https://page.example@evil.example", "page.example"),
        ("https://page.example:x", "page.example"),
        ("https://[", "page.example"),
        ("ftp://page.example", "page.example"),
        ("null", ""),
        ("https://", ""),
    ],
)
def test_another_port_or_name_is_another_site(origin, host):
    guard = Guard(inside)
    assert ask(guard, method="POST", host=host, origin=origin)[0] == 403
    assert (
        ask(guard, method="POST", host=host, origin=origin, x_forwarded_proto="https", x_forwarded_host=host)[0] == 403
    )


def test_where_nothing_is_protected_a_proxy_may_rewrite_the_host():
    guard = Guard(inside, own_origin=False)
    assert ask(guard, method="POST", host="127.0.0.1:7860", origin="https://page.example")[0] == 200


@pytest.mark.parametrize(
    ("hosted", "token", "status"), [(True, "", 200), (True, "t", 403), (False, "", 403), (False, "t", 403)]
)
def test_origins_count_where_something_is_protected(monkeypatch, hosted, token, status):
    monkeypatch.setattr(serving, "application", lambda settings: inside)
    guard = serving._guarded(Settings(hosted=hosted), None, token)
    assert ask(guard, method="POST", host="127.0.0.1:7860", origin="https://page.example")[0] == status


def test_without_the_token_nothing_is_answered():
    guard = Guard(inside, token=TOKEN)
    for path in ("/", "/gradio_api/queue/join", "/file=/etc/passwd"):
        status, _, body = ask(guard, path)
        assert status == 401
        assert "inside" not in body
    assert ask(guard, query="token=wrong")[0] == 401
    assert "not the token" in ask(guard, query="token=wrong")[2]
    assert ask(guard, cookie=f"{COOKIE}_7860={'0' * 64}")[0] == 401
    assert ask(guard, method="POST", cookie="x=1")[0] == 401


def test_the_token_is_given_once():
    guard = Guard(inside, token=TOKEN)
    status, headers, _ = ask(guard, "/", query="token=a%20token")
    assert status == 303
    assert headers[b"location"] == b"/"
    cookie = headers[b"set-cookie"].decode()
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask(guard, cookie=f"other=1; {cookie.split(';')[0]}")[0] == 200
    assert ask(Guard(inside, token="another"), cookie=cookie.split(";")[0])[0] == 401
    assert "Secure" in ask(guard, scheme="https", query="token=a%20token")[1][b"set-cookie"].decode()


def test_the_way_in_leads_nowhere_else():
    guard = Guard(inside, token=TOKEN)
    for path in ("//evil.example/", "/\\evil.example/", "\\\\evil.example/"):
        assert ask(guard, path, query="token=a%20token")[1][b"location"] == b"/evil.example/"


@pytest.mark.parametrize(
    ("path", "root_path", "location"),
    [
        ("/ftplan/", "/ftplan", b"/ftplan/"),
        ("/ftplan", "/ftplan", b"/ftplan"),
        ("/", "/ftplan", b"/ftplan/"),
        ("/ftplans", "/ftplan", b"/ftplan/ftplans"),
        ("/ftplan/", "/ftplan/", b"/ftplan/"),
        ("//evil.example/", "/", b"/evil.example/"),
    ],
)
def test_the_way_in_keeps_the_prefix_once(path, root_path, location):
    guard = Guard(inside, token=TOKEN)
    assert ask(guard, path, query="token=a%20token", root_path=root_path)[1][b"location"] == location


def test_the_way_in_is_one_header():
    location = ask(Guard(inside, token=TOKEN), "/a b\r\nX: ä?#", query="token=a%20token")[1][b"location"]
    assert location == b"/a%20b%0D%0AX%3A%20%C3%A4%3F%23"


def test_pages_on_two_ports_keep_a_cookie_each():
    guard = Guard(inside, token=TOKEN)
    cookie = ask(guard, query="token=a%20token", server=("::1", 7861))[1][b"set-cookie"].decode().split(";")[0]
    assert cookie.startswith(f"{COOKIE}_7861=")
    assert ask(guard, server=("::1", 7861), cookie=f"{COOKIE}_7860={'0' * 64}; {cookie}")[0] == 200
    assert ask(guard, server=("::1", 7860), cookie=cookie)[0] == 401


@pytest.mark.parametrize("server", [None, ("/run/page.sock", None)])
def test_a_server_without_a_port_has_a_cookie(server):
    guard = Guard(inside, token=TOKEN)
    cookie = ask(guard, query="token=a%20token", server=server)[1][b"set-cookie"].decode().split(";")[0]
    assert ask(guard, server=server, cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (421, {"host": "evil.example"}),
        (403, {"host": "localhost", "method": "POST", "origin": "https://evil.example"}),
        (401, {"host": "localhost"}),
        (303, {"host": "localhost", "query": "token=a%20token"}),
    ],
)
def test_what_the_guard_answers_has_the_headers_of_the_page(status, asked):
    found, headers, _ = ask(Guard(inside, names=LOCAL, token=TOKEN), **asked)
    assert found == status
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"referrer-policy"] == b"no-referrer"


def test_websockets_are_refused_alike():
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"x")], "query_string": b""}
    asyncio.run(Guard(inside, token=TOKEN)(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_lifespan_is_handed_on():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Guard(app, names=LOCAL, token=TOKEN)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
