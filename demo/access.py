"""Whose requests the demo page answers: those of its own pages, not of other sites in the same browser."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class SameOrigin:
    """Refuse requests that a page of another origin has sent; browsers say in ``Origin`` which it was.

    Args:
        app: what answers the others.
        origins: further origins that are allowed, such as ``https://demo.example.org``.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin")
        if origin is None or origin in self.origins or urlsplit(origin).netloc == headers.get(b"host"):
            await self.app(scope, receive, send)
            return
        await PlainTextResponse("Requests of other sites are not answered.", 403)(scope, receive, send)


def access_rules(host: str, origins: Sequence[str]) -> list[Middleware]:
    """What stands before the page.

    Args:
        host: address that the page is served on. A page for this computer alone has no other name than those of
            this computer: a name of somebody's domain that leads here is refused.
        origins: addresses under which visitors reach the page besides, such as that of a proxy.
    """
    rules = [Middleware(SameOrigin, origins=origins)]
    if host in LOCAL_HOSTS:
        names = [urlsplit(origin).hostname or origin for origin in origins]
        rules.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, *names]))
    return rules
