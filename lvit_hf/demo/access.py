"""Who may use the server: visitors who log in, or programs that know a token."""

import hmac
import os
import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


# That the server is up is no secret, and gradio asks for the other one when it starts.
OPEN_PATHS = ("/health", "/gradio_api/startup-events")
REFUSED = "This server answers programs that send its token, in the header Authorization: Bearer TOKEN."


def read_access() -> tuple[tuple[str, str] | None, str | None]:
    """User and password of `LVIT_AUTH=USER:PASSWORD`, and the token `LVIT_TOKEN`, where the environment has them.

    Raises:
        ValueError: If it has both, if one has no user or no password, or if a header cannot carry the token.
    """
    login, token = os.environ.get("LVIT_AUTH"), os.environ.get("LVIT_TOKEN") or None
    user, _, password = (login or "").partition(":")
    auth = (user, password) if login else None
    if auth and not all(auth):
        raise ValueError("LVIT_AUTH must be USER:PASSWORD, with neither of them empty.")
    if auth and token:
        raise ValueError("LVIT_AUTH is for people and LVIT_TOKEN for programs; start one server for each of them.")
    if token and not re.fullmatch("[!-~]+", token):
        raise ValueError("LVIT_TOKEN must be of ASCII characters without spaces, such as openssl rand -hex 32 prints.")
    return auth, token


class TokenGuard:
    """Answers requests without the token with the status 401, pages as well: a browser does not send it.

    Args:
        app: What answers all others.
        token: The token.
    """

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        await JSONResponse({"detail": REFUSED}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
