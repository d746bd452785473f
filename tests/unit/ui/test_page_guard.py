import asyncio

import pytest

from ftplan.ui.guard import COOKIE, Guard

TOKEN = "a token"


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(guard, path="/", method="GET", query="", scheme="http", **headers):
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


def test_without_the_token_nothing_is_answered():
    guard = Guard(inside, token=TOKEN)
    for path in ("/", "/gradio_api/queue/join", "/file=/etc/passwd"):
        status, _, body = ask(guard, path)
        assert status == 401
        assert "inside" not in body
    assert ask(guard, query="token=wrong")[0] == 401
    assert "not the token" in ask(guard, query="token=wrong")[2]
    assert ask(guard, cookie=f"{COOKIE}={'0' * 64}")[0] == 401
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
    assert ask(guard, "//evil.example/", query="token=a%20token")[1][b"location"] == b"/evil.example/"


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
