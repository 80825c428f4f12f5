"""A service with FastAPI: it follows the catalog and embeds queries through the API on a free event loop.

    pip install -c constraints.txt '.[serve]'
    make demo
    CATALOG=demo/catalog .venv/bin/uvicorn --app-dir examples service_fastapi:app
    curl 'http://127.0.0.1:8000/search?text=sepeda+merah&k=3'
    curl -G http://127.0.0.1:8000/search -d text=kucing -d kind=text --data-urlencode 'where={"lang": "id"}'
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/search?kind=image'

For a catalog of the emulator it starts an emulator; otherwise it reads the key from the variable that the job names.
With `--workers 4` each process opens the catalog; the mapped files are in memory once. `HOLD_S=60` protects the open
version from `versions prune` and needs write permission in the catalog.
`epithre-beam serve` adds limits, metrics and a page.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from epithre_beam.errors import ApiError, ApiRefusedError, ArgumentError, QueryError
from epithre_beam.index import Hit, open_catalog
from epithre_beam.index.search.where import parse_where
from epithre_beam.transforms.query.searcher import Searcher

MAX_IMAGE_BYTES = 10_000_000
TIMEOUT_S = 60.0
CONNECT_EVERY_S = float(os.environ.get("CONNECT_EVERY_S", "10"))
log = logging.getLogger("uvicorn.error")  # uvicorn shows this logger; use your service's own
Kinds = Annotated[list[Literal["image", "text"]] | None, Query(alias="kind")]
Count = Annotated[int, Query(ge=1, le=100)]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    every_s = float(os.environ.get("FOLLOW_EVERY_S", "30"))
    hold_s = float(os.environ["HOLD_S"]) if "HOLD_S" in os.environ else None
    with open_catalog(os.environ["CATALOG"], follow=True, follow_every_s=every_s, hold_s=hold_s) as catalog:
        app.state.catalog, app.state.searcher = catalog, None
        async with contextlib.AsyncExitStack() as stack:
            await connect(app, catalog, stack)
            connecting = asyncio.create_task(keep_connecting(app, catalog, stack))
            try:
                yield
            finally:
                connecting.cancel()


async def connect(app: FastAPI, catalog: Any, stack: contextlib.AsyncExitStack) -> None:
    """Open the searcher, which asks the API once. The service starts without it if the API does not answer.

    Any other error, such as a refused key, ends the service at the start.
    """
    try:
        app.state.searcher = await stack.enter_async_context(Searcher.from_catalog(catalog))
    except ApiRefusedError:
        raise
    except ApiError as error:
        log.warning("%s Trying again in %g s.", error, CONNECT_EVERY_S)


async def keep_connecting(app: FastAPI, catalog: Any, stack: contextlib.AsyncExitStack) -> None:
    while app.state.searcher is None:
        await asyncio.sleep(CONNECT_EVERY_S)
        await connect(app, catalog, stack)


app = FastAPI(lifespan=lifespan)


@app.get("/search")
async def search_by_text(
    request: Request, text: str, k: Count = 10, kinds: Kinds = None, where: str | None = None
) -> dict[str, Any]:
    return await answer(request, text, k, kinds, where)


@app.post("/search")
async def search_by_image(request: Request, k: Count = 10, kinds: Kinds = None, where: str | None = None) -> Any:
    image = bytearray()
    async for part in request.stream():
        image += part
        if len(image) > MAX_IMAGE_BYTES:
            return refusal(413, f"The image has more than {MAX_IMAGE_BYTES} bytes.")
    return await answer(request, bytes(image), k, kinds, where)


@app.get("/ready")
async def ready(request: Request) -> dict[str, Any]:
    catalog, searcher = request.app.state.catalog, request.app.state.searcher
    return {
        "version": catalog.version,
        "assets": len(catalog),
        "refresh_error": catalog.last_refresh_error,
        "api_answers": searcher is not None and searcher.is_answered,
        "api_retry_after_s": 0.0 if searcher is None else searcher.rest_s,
    }


@app.exception_handler(ArgumentError)  # also QueryError: a query that cannot be embedded
async def wrong_query(_: Request, error: ArgumentError) -> JSONResponse:
    is_outage = isinstance(error, QueryError) and error.reason == "retries_exhausted"
    return refusal(503 if is_outage else 400, str(error))


@app.exception_handler(RequestValidationError)  # errors of FastAPI in the same shape
async def wrong_request(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return refusal(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")


@app.exception_handler(ApiError)
async def no_api(_: Request, error: ApiError) -> JSONResponse:
    return refusal(503, str(error))


@app.exception_handler(TimeoutError)
async def too_slow(_: Request, __: TimeoutError) -> JSONResponse:
    return refusal(503, f"The search took longer than {TIMEOUT_S:g} s. Try again later.")


async def answer(request: Request, query: str | bytes, k: int, kinds: Kinds, where: str | None) -> dict[str, Any]:
    catalog, searcher = request.app.state.catalog, request.app.state.searcher
    if searcher is None:
        raise ApiError("The API does not answer yet, so queries cannot be embedded. Try again later.")
    with catalog.pinned() as version:  # the answer names the version that was searched
        condition = None if where is None else parse_where(where, version.assets(version.kinds[0]).schema)
        async with asyncio.timeout(TIMEOUT_S):
            hits = await searcher.search(query, k, kinds=kinds, where=condition, within=version)
        log.info("version=%s hits=%d", version.version, len(hits))
        return {"version": version.version, "hits": [plain(hit) for hit in hits]}


def plain(hit: Hit) -> dict[str, Any]:
    return {"id": hit.asset_id, "kind": hit.kind, "score": hit.score, "uri": hit.uri, "text": hit.text}


def refusal(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
