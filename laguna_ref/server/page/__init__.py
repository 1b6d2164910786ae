"""The page at ``/``: plain files beside this one, no build step, nothing from elsewhere.

Everything it does goes over the API that other clients use, so it holds no data of its own and
needs no key to be shown.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent
MEDIA = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
}  # fmt: skip
FILES = {
    "/": FOLDER / "index.html",
    **{f"/page/{file.name}": file for file in sorted(FOLDER.iterdir())
       if file.suffix in MEDIA and file.name != "index.html"},
}  # fmt: skip
"""What is served under which path, and nothing else is."""
HEADERS = {
    # No inline scripts or styles, nothing from another origin, not within another site's frame.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """One for each file, read once."""
    return [_route(path, file) for path, file in FILES.items()]


def _route(path: str, file: Path) -> Route:
    data, media = file.read_bytes(), MEDIA[file.suffix]

    async def answer(request: Request) -> Response:
        return Response(data, media_type=media, headers=HEADERS)

    return Route(path, answer, methods=["GET"])
