"""The commands on an index: index, search, serve."""

import json
import re
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from clip_jax.cli.arguments import parse

INDEX_HELP = """Build an index of embeddings of clip-jax embed or clip-retrieval.

An exact index compares every row; an approximate one compares codes of them, a graph walks from row to row
(pip install -e '.[search]'). Their recall against the exact one is measured and printed."""
SEARCH_HELP = """Search in an index, or in embeddings. A query is a text, an image file or row:NUMBER.

Several are added up, each with a weight behind it if wanted, such as:
clip-jax search index "a red bicycle" picture.jpg=0.5 "at night"=-0.3"""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    embeddings: Annotated[
        Path, tyro.conf.Positional
    ]  # a folder of clip-jax embed or clip-retrieval
    out: Path | None = None  # the folder of the index; left out: "index" in that of the embeddings
    kind: Literal["image", "text"] | None = None  # whose vectors; left out: images if there are any
    # auto: exact where devices hold the vectors, else approximate
    method: Literal["auto", "exact", "approximate", "graph"] = "auto"
    recall: float = 0.98  # that an index which is not exact is to reach of the 10 nearest
    connectivity: int = 16  # neighbours of a row in the graph
    expansion_add: int = 128  # candidates while a row is added to the graph


def index(args: list[str]) -> int:
    """Build an index of embeddings, exact or approximate."""
    default = IndexSettings(embeddings=tyro.MISSING)
    names = {"default": default, "prog": "clip-jax index", "description": INDEX_HELP}
    settings = parse(IndexSettings, args, **names)
    # pyarrow, faiss and USearch, of an extra, are loaded for the commands that need them alone.
    from clip_jax.search.index import Graph, build_index

    out = settings.out or settings.embeddings / "index"
    info = build_index(
        settings.embeddings,
        out,
        kind=settings.kind,
        method=settings.method,
        target=settings.recall,
        graph=Graph(connectivity=settings.connectivity, expansion_add=settings.expansion_add),
        report=lambda text: print(text, flush=True),
    )
    print(f"{out}: {info['method']} index of {info['rows']:_} {info['kind']} vectors")
    return 0


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    index: Annotated[str, tyro.conf.Positional]  # a folder of clip-jax index, or of embeddings
    query: Annotated[tuple[str, ...], tyro.conf.Positional]  # texts, image files, row:NUMBER
    k: int = 10  # results
    model: str | None = None  # where the embeddings do not tell it, or it lies elsewhere now
    where: tuple[str, ...] = ()  # COLUMN=VALUE, COLUMN~TEXT, COLUMN>=NUMBER, COLUMN<=NUMBER each
    as_json: bool = False  # a line of JSON for each result


def search(args: list[str]) -> int:
    """Search in an index by texts and pictures."""
    default = SearchSettings(index=tyro.MISSING, query=tyro.MISSING)
    names = {"default": default, "prog": "clip-jax search", "description": SEARCH_HELP}
    settings = parse(SearchSettings, args, **names)
    from clip_jax.search.filters import allowed, parse_filters
    from clip_jax.search.index import open_index
    from clip_jax.search.queries import load_encoder, parse_parts
    from clip_jax.search.requests import printable

    opened = open_index(settings.index)
    parts = parse_parts(settings.query)
    for part in parts:
        if part.kind == "row" and part.value >= len(opened):
            raise ValueError(f"there is no row {part.value}: there are {len(opened):_}")
    filters = parse_filters(settings.where)
    mask_N = allowed(opened.table, filters) if filters else None
    (z_E,) = load_encoder(opened, settings.model)([parts])
    found = opened.search(z_E, min(settings.k, len(opened)), allowed_N=mask_N)
    results = opened.results(found)
    if not results:
        print(f"No row satisfies {' and '.join(settings.where)}", file=sys.stderr)
    for row in results:
        if settings.as_json:
            print(json.dumps(printable(row), ensure_ascii=False))
        else:
            path = row.get("image_path", row["row"])
            print(f"{row['score']:7.4f}  {path}  {row.get('caption', '')}")
    return 0


SERVE_HELP = """A search page and a JSON API for an index, on this machine alone unless --host says otherwise.

With another --host each request needs the token that is printed."""
TOKEN = r"[A-Za-z0-9._~-]+"
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    index: Annotated[str, tyro.conf.Positional]  # a folder of clip-jax index, or of embeddings
    host: str = "127.0.0.1"  # the address that is bound; 0.0.0.0 for all of this machine
    port: int = 8765  # 0: any that is free
    token: str | None = None  # that requests must carry; left out: a random one, none on 127.0.0.1
    model: str | None = None  # where the embeddings do not tell it, or it lies elsewhere now
    # Of the model's matrix products and their parameters; auto: bfloat16 on a CPU that has such products,
    # if this model's vectors are then as good
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def serve(args: list[str]) -> int:
    """A search page and a JSON API for an index."""
    default = ServeSettings(index=tyro.MISSING)
    names = {"default": default, "prog": "clip-jax serve", "description": SERVE_HELP}
    settings = parse(ServeSettings, args, **names)
    # Starlette and uvicorn, of an extra, are loaded for this command alone.
    from clip_jax.search.http import limit_memory, make_server
    from clip_jax.search.http import serve as answer
    from clip_jax.search.index import open_index
    from clip_jax.search.pictures import Pictures
    from clip_jax.search.queries import load_encoder
    from clip_jax.search.server import Service, create_app

    if not 0 <= settings.port < 2**16:
        raise ValueError(f"port={settings.port} must be from 0 to 65535")
    if settings.token and not re.fullmatch(TOKEN, settings.token):
        raise ValueError("a token has letters of ASCII, digits and -._~ alone: it is in an address")
    limit_memory()
    local = settings.host in LOCAL
    token = settings.token or (None if local else secrets.token_urlsafe(24))
    opened = open_index(settings.index)
    encode = load_encoder(opened, settings.model, dtype=settings.dtype)
    bound = socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
    )
    service = Service(opened, encode, Pictures(opened))
    app = create_app(service, token=token, hosts=LOCAL if local else None)
    encode.compile()
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{shown}:{bound.getsockname()[1]}/{f'?token={token}' if token else ''}"

    def started():
        method = f"{opened.info['method']} search, model in {encode.dtype}"
        print(f"{len(opened):_} {opened.kind} vectors, {method}")
        print(address, flush=True)

    answer(make_server(app), bound, started=started)
    return 0
