"""The JSON API: the same objects that the pages show, field for field."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pcm_p2p.collector import device, fleet, overview, releases, savings
from pcm_p2p.collector.console.pages import ReleaseChoice
from pcm_p2p.collector.console.state import Console, number_untrusted, parameters_untrusted

ROWS = 1_000
"""Choice: devices in one answer; ``offset`` asks for the next ones."""


def routes(console: Console) -> list[Route]:
    """The addresses below ``/api``."""

    async def get_overview(_request: Request) -> Response:
        return _json(await console.read(overview.overview))

    async def get_devices(request: Request) -> Response:
        chosen = parameters_untrusted(request, fleet.DeviceFilter)
        offset = number_untrusted(request.query_params.get("offset", "0"), 0)
        return _json(await console.read(partial(fleet.devices, chosen=chosen, sort="name", limit=ROWS, offset=offset)))

    async def get_device(request: Request) -> Response:
        return _json(await console.read(partial(device.device, device_id=request.path_params["device"][:64])))

    async def get_releases(_request: Request) -> Response:
        return _json(await console.read(releases.releases))

    async def get_release(request: Request) -> Response:
        chosen = msgspec.structs.asdict(parameters_untrusted(request, ReleaseChoice))
        name, version = request.path_params["name"][:256], request.path_params["version"][:256]
        return _json(await console.read(partial(releases.release, name=name, version=version, **chosen)))

    async def get_savings(request: Request) -> Response:
        chosen = parameters_untrusted(request, fleet.DeviceFilter)
        return _json(await console.read(partial(savings.savings, site=chosen.site, release=chosen.release)))

    return [
        Route("/api/overview", get_overview),
        Route("/api/devices", get_devices),
        Route("/api/devices/{device}", get_device),
        Route("/api/releases", get_releases),
        Route("/api/releases/{name}/{version}", get_release),
        Route("/api/savings", get_savings),
    ]


def _json(found: object) -> Response:
    if found is None:
        return JSONResponse({"error": "there is none"}, 404)
    return Response(msgspec.json.encode(found), media_type="application/json")
