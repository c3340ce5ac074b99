"""The search page and its JSON API: what is asked for, what is sent, what is refused."""

import asyncio
import base64
import hashlib
import hmac
import importlib.resources
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import jax
import pyarrow as pa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from clip_jax.data.images.transforms import ImageError
from clip_jax.search.batching import Batcher
from clip_jax.search.index import SearchIndex
from clip_jax.search.pictures import NoPicture, Pictures
from clip_jax.search.queries import QueryEncoder
from clip_jax.search.requests import MOST_BYTES, BadRequest, Query, parse_query, printable

COOKIE = "clip_jax_token"
LARGE = 64 * 2**10  # bytes of a body, above which
LARGE_AT_ONCE = 8  # so many are taken at a time
BODY_S = 20.0  # for a body to come
SEARCH_S = 60.0  # for a search, with those before it

Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """What the requests of an app share."""

    def __init__(self, index: SearchIndex, encode: QueryEncoder, pictures: Pictures):
        self.index, self.encode, self.pictures = index, encode, pictures
        self.batcher = Batcher(index, encode)
        self.large = asyncio.BoundedSemaphore(LARGE_AT_ONCE)
        self.decoding = asyncio.BoundedSemaphore(2)  # pictures of queries, up to 150 MB each
        self.page, self.policy = read_page()
        self.description = describe(index, pictures)


def create_app(service: Service, *, token: str | None, hosts: tuple[str, ...] | None) -> Starlette:
    """The web app.

    Args:
      service: the index and its model.
      token: that each request must carry, in a header, a cookie or the page's address; None: none.
      hosts: names under which the server is asked for, without ports; None: any. It keeps pages of
        other sites from asking a server of this machine under a name of their own.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        async with service.batcher:
            yield

    guarded = [
        Route("/", _guard(page, service, token, hosts)),
        Route("/api/info", _guard(info, service, token, hosts)),
        Route("/api/search", _guard(search, service, token, hosts), methods=["POST"]),
        Route("/api/picture/{row}", _guard(picture, service, token, hosts)),
    ]
    return Starlette(routes=guarded, lifespan=lifespan)


def _guard(handler, service: Service, token: str | None, hosts) -> Handler:
    """A handler that answers only who may ask, and turns what is wrong into an answer."""

    async def guarded(request: Request) -> Response:
        host = request.headers.get("host", "").rpartition("@")[2]
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if hosts is not None and name not in hosts:
            return _error(421, "this server has another name")
        if token is not None and not _has_token(request, token):
            return _error(401, "a token is needed: open the address that the server printed")
        try:
            response = await handler(request, service)
        except BadRequest as error:
            response = _error(400, str(error))
        except ClientDisconnect:
            response = _error(400, "the client has gone")
        except TimeoutError:
            response = _error(503, "too busy")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    return guarded


def _has_token(request: Request, token: str) -> bool:
    header = request.headers.get("authorization", "").removeprefix("Bearer ")
    given = (header, request.cookies.get(COOKIE, ""), request.query_params.get("token", ""))
    expected = token.encode()
    return any(hmac.compare_digest(one.encode("utf-8", "replace"), expected) for one in given)


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


# ------------------------------------------------------------------------------------- handlers


async def page(request: Request, service: Service) -> Response:
    """The page. A token in its address goes into a cookie, so that it stays out of the history."""
    if token := request.query_params.get("token"):
        response = RedirectResponse("/", 303)
        if token.isascii():  # as those of servers are
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
        return response
    headers = {"Content-Security-Policy": service.policy, "Cache-Control": "no-cache"}
    return Response(service.page, media_type="text/html; charset=utf-8", headers=headers)


async def info(request: Request, service: Service) -> Response:
    return JSONResponse(service.description)


async def picture(request: Request, service: Service) -> Response:
    """The picture of a row, and of nothing else."""
    row, size = request.path_params["row"], request.query_params.get("size", "320")
    if not re.fullmatch(r"\d{1,18}", row, re.ASCII) or not re.fullmatch(r"\d{1,5}", size, re.ASCII):
        return _error(404, "a picture has the number of a row")
    try:
        jpeg = await run_in_threadpool(service.pictures.jpeg, int(row), int(size))
    except NoPicture as error:
        return _error(404, str(error)[:200])
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


async def search(request: Request, service: Service) -> Response:
    """The rows nearest to a query, as JSON."""
    start = time.perf_counter()
    query = parse_query(await asyncio.wait_for(_body(request, service), BODY_S))
    query = await _with_pixels(query, service)
    try:
        found = await asyncio.wait_for(service.batcher.search(query), SEARCH_S)
    except (ValueError, IndexError) as error:
        raise BadRequest(str(error)) from error
    results = [
        printable(row) | {"score": round(row["score"], 6)} for row in service.index.results(found)
    ]
    took = round(1000 * (time.perf_counter() - start), 1)
    return JSONResponse({"results": results, "milliseconds": took})


async def _body(request: Request, service: Service) -> bytes:
    """The body of a request, if it is not too large and comes in time."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MOST_BYTES:
        raise BadRequest(f"a request has at most {MOST_BYTES:_} bytes")
    body, large = bytearray(), False
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise BadRequest(f"a request has at most {MOST_BYTES:_} bytes")
            if len(body) > LARGE and not large:
                await service.large.acquire()
                large = True
    finally:
        if large:
            service.large.release()
    return bytes(body)


async def _with_pixels(query: Query, service: Service) -> Query:
    """The query with its pictures decoded, a few of all requests at once."""
    parts = list(query.parts)
    for place, part in enumerate(parts):
        if part.kind == "image":
            async with service.decoding:
                try:
                    pixels = await run_in_threadpool(service.encode.pixels, part.value)
                except ImageError as error:
                    raise BadRequest(f"the picture cannot be read: {str(error)[:100]}") from error
            parts[place] = part._replace(kind="pixels", value=pixels)
    return query._replace(parts=tuple(parts))


# ------------------------------------------------------------------------- what does not change


def read_page() -> tuple[bytes, str]:
    """The page, and the policy that keeps a browser from running or asking for anything else."""
    page = importlib.resources.files("clip_jax.search").joinpath("page.html").read_text("utf-8")
    sums = {}
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        sums[tag] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {sums['script']}; style-src {sums['style']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page.encode(), policy


def describe(index: SearchIndex, pictures: Pictures) -> dict:
    """What a client needs to know of an index."""
    columns = []
    for field in index.table.schema:
        numbers = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        if not numbers and not pa.types.is_string(field.type):
            continue
        columns.append({"name": field.name, "kind": "number" if numbers else "text"})
    return {
        "rows": len(index),
        "kind": index.kind,
        "method": index.info["method"],
        "recall_at_10": index.info.get("recall_at_10"),
        "columns": columns,
        "pictures": pictures.available,
        "device": jax.local_devices()[0].device_kind,
    }
