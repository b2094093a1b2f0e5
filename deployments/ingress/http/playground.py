"""The playground: a page to try the models by hand, as plain files."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from configs.app import PlaygroundArgs
from deployments.contracts.errors import NotFound

FOLDER = Path(__file__).with_name("playground")
INDEX = FOLDER / "index.html"
FILES = {
    file.relative_to(FOLDER).as_posix(): file
    for kind in ("*.js", "*.css")
    for file in sorted(FOLDER.rglob(kind))
}
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
HEADERS = {
    # Nothing of another host, and no script within the page, whatever a picture or a prompt holds.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for each time whether they have changed
}


def playground_routes(args: PlaygroundArgs) -> APIRouter:
    """The page, its files, and what it says of the service."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        """Its paths are relative: below a prefix it has to be asked for with the slash."""
        if not request.url.path.endswith("/"):
            return RedirectResponse(f"{request.url.path}/")
        return FileResponse(INDEX, headers=HEADERS)

    @router.get("/playground/about", response_model=PlaygroundArgs)
    async def about() -> PlaygroundArgs:
        return args

    @router.get("/playground/{name:path}")
    async def file(name: str) -> Response:
        found = FILES.get(name)
        if found is None:
            raise NotFound(f"the page has no file {name!r}")
        return FileResponse(found, media_type=MEDIA_TYPES[found.suffix], headers=HEADERS)

    return router
