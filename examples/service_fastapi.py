"""A service with FastAPI: it follows the catalog and embeds queries through the API on a free event loop.

    pip install -c constraints.txt '.[serve]'
    make demo
    CATALOG=demo/catalog .venv/bin/uvicorn --app-dir examples service_fastapi:app
    curl 'http://127.0.0.1:8000/search?text=sepeda+merah&k=3'
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/search?kind=image'

For a catalog of the emulator it starts an emulator; otherwise it reads the key from the variable that the job names.
With `--workers 4` each process opens the catalog; the mapped files are in memory once.
`epithre-beam serve` adds limits, metrics and a page.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from epithre_beam.errors import ApiError, ArgumentError
from epithre_beam.index import FollowingCatalog, Hit, open_catalog
from epithre_beam.transforms.query.searcher import Searcher

MAX_IMAGE_BYTES = 10_000_000
Kinds = Annotated[list[Literal["image", "text"]] | None, Query(alias="kind")]
Count = Annotated[int, Query(ge=1, le=100)]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    every_s = float(os.environ.get("FOLLOW_EVERY_S", "30"))
    with open_catalog(os.environ["CATALOG"], follow=True, follow_every_s=every_s) as catalog:
        async with Searcher.from_catalog(catalog) as searcher:
            app.state.catalog, app.state.searcher = catalog, searcher
            yield


app = FastAPI(lifespan=lifespan)


@app.get("/search")
async def search_by_text(request: Request, text: str, k: Count = 10, kinds: Kinds = None) -> dict[str, Any]:
    return await answer(request, text, k, kinds)


@app.post("/search")
async def search_by_image(request: Request, k: Count = 10, kinds: Kinds = None) -> Any:
    image = bytearray()
    async for part in request.stream():
        image += part
        if len(image) > MAX_IMAGE_BYTES:
            return refusal(413, f"A picture may have {MAX_IMAGE_BYTES} bytes.")
    return await answer(request, bytes(image), k, kinds)


@app.get("/ready")
async def ready(request: Request) -> dict[str, Any]:
    catalog: FollowingCatalog = request.app.state.catalog
    return {"version": catalog.version, "assets": len(catalog), "refresh_error": catalog.last_refresh_error}


@app.exception_handler(ArgumentError)  # also QueryError: a query that cannot be embedded
async def wrong_query(_: Request, error: ArgumentError) -> JSONResponse:
    return refusal(400, str(error))


@app.exception_handler(RequestValidationError)  # errors of FastAPI in the same shape
async def wrong_request(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return refusal(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


@app.exception_handler(ApiError)
async def no_api(_: Request, error: ApiError) -> JSONResponse:
    return refusal(503, str(error))


async def answer(request: Request, query: str | bytes, k: int, kinds: Kinds) -> dict[str, Any]:
    catalog, searcher = request.app.state.catalog, request.app.state.searcher
    with catalog.pinned() as version:  # the answer names the version that was searched
        hits = await searcher.search(query, k, kinds=kinds, within=version)
        return {"version": version.version, "hits": [plain(hit) for hit in hits]}


def plain(hit: Hit) -> dict[str, Any]:
    return {"id": hit.asset_id, "kind": hit.kind, "score": hit.score, "uri": hit.uri, "text": hit.text}


def refusal(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
