"""The HTTP API and the search page: routes over `Service`, described by OpenAPI."""

import binascii
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import orjson
from pydantic import ValidationError

try:
    from fastapi import FastAPI, File, Form, Query, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, Response
    from fastapi.routing import APIRoute
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException

    from .metrics import Metrics
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed, and the server needs it. Install the extra `serve` of epithre-beam: "
        "`pip install 'epithre-beam[serve]'`, in the checkout `pip install '.[serve]'`.",
        name=error.name,
    ) from None

from ... import __version__
from ...configs import AssetKind
from ...index.search.merge import Merge
from .faults import Fault, answer_fault, answer_invalid, checked, faults
from .gate import IMAGE_SEARCH, Gate
from .models import (
    AssetAnswer,
    AssetId,
    CatalogAnswer,
    HealthAnswer,
    ReadyAnswer,
    SearchAnswer,
    SearchOptions,
    SearchRequest,
    unit_vector,
)
from .service import Found, Service, open_service
from .settings import MAX_BODY_BYTES, MAX_K, MAX_OPTIONS_BYTES, ServeSettings
from .thumbnails import SIZES, tag

_PAGE = Path(str(importlib.resources.files(__package__) / "page"))
_DESCRIPTION = "Search a catalog of images and texts by text, image, vector or asset."
_SIZE = "Thumbnail size: the side, in pixels, of a square with the same area."
_Responses = dict[int | str, dict[str, Any]]
_ALWAYS = (400, 401, 403, 408, 413, 415, 422, 503)


def create_app(settings: ServeSettings) -> FastAPI:
    """Create the application. Its lifespan opens the catalog.

    Raises:
        CatalogError: From the lifespan, when the catalog cannot be opened.
        ApiRefusedError: From the lifespan, when the embedding API refuses the key or does not know the model.
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service(settings, metrics) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="epithre-beam serve",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its scripts load from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    app.add_exception_handler(HTTPException, answer_fault)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    _add_routes(app)
    app.mount("/page", StaticFiles(directory=_PAGE, check_dir=False), name="page")
    if settings.token is not None:
        schema = app.openapi()  # the app caches it
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
    return app


def _add_routes(app: FastAPI) -> None:
    app.router.add_api_route(
        "/api/search",
        search,
        methods=["POST"],
        response_model=SearchAnswer,
        responses=faults(*_ALWAYS, 404, 429),
        route_class_override=_SearchRoute,
    )
    add = app.add_api_route
    errors = faults(*_ALWAYS)
    add(
        IMAGE_SEARCH,
        search_image,
        methods=["POST"],
        response_model=SearchAnswer,
        responses=faults(*_ALWAYS, 429),
    )
    add("/api/catalog", show_catalog, response_model=CatalogAnswer, responses=errors)
    add("/api/assets/{kind}", show_asset, response_model=AssetAnswer, responses=faults(*_ALWAYS, 404))
    jpeg: _Responses = {
        200: {"content": {"image/jpeg": {}}},
        304: {"description": "The thumbnail has not changed."},
    }
    add(
        "/api/thumbnails/image",
        show_thumbnail,
        response_class=Response,
        responses={**jpeg, **faults(*_ALWAYS, 404)},
    )
    add("/health/live", live, response_model=HealthAnswer, responses=faults(400))
    add("/health/ready", ready, response_model=ReadyAnswer, responses=faults(400))
    text: _Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    add("/metrics", show_metrics, response_class=Response, responses={**text, **faults(400, 401)})
    add("/", show_page, include_in_schema=False)


class _SearchRoute(APIRoute):
    """A route that parses its own body: FastAPI's parsing takes longer than the search."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            return await search(request, await _read(request))

        return handle


async def _read(request: Request) -> SearchRequest:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Fault(415, "content_type", "Content-Type must be application/json for a search.")
    body = await request.body()
    with contextlib.suppress(orjson.JSONDecodeError, ValidationError):
        return SearchRequest.model_validate(
            orjson.loads(body)
        )  # for vectors, orjson takes two thirds of pydantic's time
    try:
        return SearchRequest.model_validate_json(body)  # reports errors with JSON types
    except ValidationError as error:
        raise checked(error, SearchRequest) from None


async def search(request: Request, asked: SearchRequest) -> Response:
    """Search by a text, a vector or an asset of the catalog."""
    service = _service(request)
    query: Any = asked.asset or asked.text
    try:
        if asked.vector is not None:
            query = unit_vector(asked.vector, service.catalog.dimension, "vector")
        elif asked.vector_base64 is not None:
            query = unit_vector(_decoded(asked.vector_base64), service.catalog.dimension, "vector_base64")
    except ValueError as error:
        raise Fault(422, "vector", str(error)) from None
    # Lists of numbers take eight times the memory of arrays, and waiting requests would evict the CPU caches.
    asked = asked.model_copy(update={"vector": None, "vector_base64": None})
    found = await service.search(query, asked, query_kind=asked.query_kind, exclude_self=asked.exclude_self)
    return _found(request, found)


async def search_image(
    request: Request,
    image: Annotated[UploadFile, File(description="An image file.")],
    options: Annotated[str, Form(description="A JSON object with any of k, kinds, where, merge and recall.")] = "{}",
) -> Response:
    """Search by an image."""
    service = _service(request)
    for name in await request.form():  # FastAPI parsed it already
        if name not in {"image", "options"}:
            remedy = " Put it into `options`." if name in SearchOptions.model_fields else " Fields: image, options."
            raise Fault(422, "invalid", f"{name:.80} is not a field of this form.{remedy}")
    if len(options.encode("utf-8", "replace")) > MAX_OPTIONS_BYTES:
        raise Fault(413, "too_large", f"options must have at most {MAX_OPTIONS_BYTES:,} bytes.")
    try:
        asked = SearchOptions.model_validate_json(options)
    except ValidationError as error:
        raise checked(error, SearchOptions, "options") from None
    data = await image.read(service.settings.max_upload_bytes + 1)
    if len(data) > service.settings.max_upload_bytes:
        raise Fault(
            413,
            "too_large",
            f"image must have at most {service.settings.max_upload_bytes:,} bytes. Send a smaller image.",
        )
    return _found(request, await service.search(data, asked))


async def show_catalog(request: Request) -> Response:
    """Describe the catalog version that is served, and the limits of requests."""
    service = _service(request)
    with service.catalog.pinned() as version:
        manifest = version.manifest
        per_kind = {kind: manifest.counts.per_kind[kind] for kind in version.kinds}
    return _json(
        {
            "catalog": service.shown_url,
            "version": manifest.version,
            "created": manifest.created_at,
            "model": manifest.made_by.name,
            "dimension": manifest.dimension,
            "kinds": per_kind,
            "metadata": manifest.metadata_types,
            "can_embed": service.can_embed,
            "merges": get_args(Merge),
            "limits": {
                "max_k": MAX_K,
                "max_upload_bytes": service.settings.max_upload_bytes,
                "max_text_chars": manifest.config.get("prepare", {}).get("max_text_chars", 32_000),
                "max_body_bytes": MAX_BODY_BYTES,
            },
        }
    )


async def show_asset(
    request: Request, kind: AssetKind, asset_id: Annotated[AssetId, Query(alias="id", description="The asset's id.")]
) -> Response:
    """Return one asset."""
    service = _service(request)
    version, asset = await service.asset(kind, asset_id)
    return _json(
        {
            "version": version.version,
            "asset_id": asset.asset_id,
            "kind": asset.kind,
            "uri": asset.uri,
            "text": asset.text,
            "media_type": asset.media_type,
            "size_bytes": asset.size_bytes,
            "width": asset.width,
            "height": asset.height,
            "metadata": asset.metadata,
            "thumbnail": service.thumbnail_of(version, asset, _prefix(request)),
        }
    )


async def show_thumbnail(
    request: Request,
    asset_id: Annotated[AssetId, Query(alias="id", description="The image's id.")],
    size: Annotated[int, Query(description=_SIZE, json_schema_extra={"enum": list(SIZES)})] = 320,
) -> Response:
    """Return a thumbnail of an image asset as JPEG, made from the original file."""
    if size not in SIZES:
        raise Fault(422, "invalid", f"size must be one of {', '.join(map(str, SIZES))}, got {size}.")
    service = _service(request)
    version, asset = await service.asset("image", asset_id)
    headers = {"ETag": tag(asset, size), "Cache-Control": "private, max-age=300"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content = await service.thumbnails.make(version, asset, size)
    return Response(content, media_type="image/jpeg", headers=headers)


async def live() -> HealthAnswer:
    """Return 200 while the process runs."""
    return HealthAnswer(status="alive", software=f"epithre-beam {__version__}")


async def ready(request: Request) -> ReadyAnswer:
    """Report the version and the embedding API's state; searches by vector or asset need no embedding API."""
    service = _service(request)
    return ReadyAnswer(
        status="degraded" if service.embedding_api in {"fails", "refuses"} else "ready",
        version=service.catalog.version,
        embedding_api=service.embedding_api,
        retry_after_s=service.retry_after_s or None,
    )


async def show_metrics(request: Request) -> Response:
    """Return the metrics in Prometheus format."""
    return Response(_service(request).exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def show_page() -> Response:
    """Return the search page."""
    if not (_PAGE / "index.html").is_file():
        raise HTTPException(404)
    return FileResponse(_PAGE / "index.html")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _prefix(request: Request) -> str:
    """Return the path prefix under which the client sees this server."""
    prefix: str = request.scope.get("root_path", "")
    return prefix


def _found(request: Request, found: Found) -> Response:
    service, prefix = _service(request), _prefix(request)
    hits = [
        {
            "rank": rank,
            "asset_id": hit.asset_id,
            "kind": hit.kind,
            "score": hit.score,
            "uri": hit.uri,
            "text": hit.text,
            "metadata": hit.metadata,
            "thumbnail": service.thumbnail_of(found.catalog, hit, prefix),
        }
        for rank, hit in enumerate(found.hits, 1)
    ]
    took = {"embed": round(found.embed_s * 1000, 3), "search": round(found.search_s * 1000, 3)}
    return _json({"version": found.catalog.version, "query_kind": found.query_kind, "took_ms": took, "hits": hits})


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _decoded(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Decode base64 of float32. Raises ValueError when it is invalid."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("vector_base64 must be valid base64 without line breaks.") from None
    if len(data) % 4:
        raise ValueError(f"vector_base64 must contain float32 values of 4 bytes, got {len(data)} bytes.")
    return np.frombuffer(data, "<f4")
