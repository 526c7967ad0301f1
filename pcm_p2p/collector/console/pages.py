"""The pages: each reads one snapshot and fills one template."""

from __future__ import annotations

import csv
import io
from functools import partial

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pcm_p2p.collector import device as device_view
from pcm_p2p.collector import fleet, overview, releases, savings
from pcm_p2p.collector.console import presentation
from pcm_p2p.collector.console.login import (
    Gate,
    address_of,
    drop_cookie,
    is_form_ours,
    new_token,
    next_untrusted,
    put_cookie,
    read_form,
)
from pcm_p2p.collector.console.state import Console, number_untrusted, parameters_untrusted
from pcm_p2p.collector.snapshot import Snapshot
from pcm_p2p.errors import UntrustedBytes

PAGE_ROWS = 100
CSV_ROWS_MAX = 200_000


class ReleaseChoice(msgspec.Struct, frozen=True):
    """What narrows the rows of one release."""

    site: str = ""
    progress: str = ""
    reason: str = ""


def routes(console: Console) -> list[Route]:
    """The addresses of the pages."""

    async def show_overview(request: Request) -> Response:
        return console.page(request, "overview.html", view=await console.read(overview.overview))

    async def show_devices(request: Request) -> Response:
        chosen = parameters_untrusted(request, fleet.DeviceFilter)
        sort = request.query_params.get("sort", "")
        sort = sort if sort in fleet.SORTS else "state"
        page = max(1, number_untrusted(request.query_params.get("page", "1"), 1))

        def view(snapshot: Snapshot) -> dict[str, object]:
            return {
                "view": fleet.devices(snapshot, chosen, sort=sort, limit=PAGE_ROWS, offset=(page - 1) * PAGE_ROWS),
                "states": fleet.counts_by(snapshot, "state", msgspec.structs.replace(chosen, state="", coverage="")),
                "sites": fleet.counts_by(snapshot, "site", msgspec.structs.replace(chosen, site="")),
            }

        return console.page(
            request, "devices.html", chosen=chosen, sort=sort, page=page, found=await console.read(view)
        )

    async def download_devices(request: Request) -> Response:
        chosen = parameters_untrusted(request, fleet.DeviceFilter)
        found = await console.read(partial(fleet.devices, chosen=chosen, sort="site", limit=CSV_ROWS_MAX))
        headers = {"Content-Disposition": 'attachment; filename="devices.csv"'}
        return Response(_csv(found), media_type="text/csv; charset=utf-8", headers=headers)

    async def show_device(request: Request) -> Response:
        name = request.path_params["device"][:64]
        found = await console.read(partial(device_view.device, device_id=name))
        if found is None:
            return console.page(request, "absent.html", status=404, what="device", name=name)
        return console.page(request, "device.html", view=found)

    async def show_releases(request: Request) -> Response:
        return console.page(request, "releases.html", view=await console.read(releases.releases))

    async def show_release(request: Request) -> Response:
        name, version = request.path_params["name"][:256], request.path_params["version"][:256]
        chosen = parameters_untrusted(request, ReleaseChoice)
        found = await console.read(
            partial(releases.release, name=name, version=version, **msgspec.structs.asdict(chosen))
        )
        if found is None:
            return console.page(request, "absent.html", status=404, what="release", name=f"{name} {version}")
        return console.page(request, "release.html", view=found, chosen=chosen)

    async def show_savings(request: Request) -> Response:
        chosen = parameters_untrusted(request, fleet.DeviceFilter)
        found = await console.read(partial(savings.savings, site=chosen.site, release=chosen.release))
        return console.page(request, "savings.html", view=found, chosen=chosen)

    async def log_in(request: Request) -> Response:
        gate = console.gate
        wanted = next_untrusted(request.query_params.get("next", "/"))
        problem, status, headers = "", 200, {}
        if request.method == "POST":
            try:
                form = await read_form(request)
            except (UntrustedBytes, trio.TooSlowError):
                return Response("a form that cannot be read", 400)
            wanted = next_untrusted(form.get("next", "/"))
            if not is_form_ours(request, form.get("token", ""), request.cookies.get(gate.form_cookie, "")):
                problem, status = "This form had expired. Please try again.", 403
            else:
                wait_s = await gate.try_password(address_of(request), form.get("password", ""))
                if wait_s is None:
                    return _begin_session(gate, wanted)
                problem, status = "That is not the password.", 401
                if wait_s > 0:
                    problem = (
                        f"Too many wrong passwords. Try again in {presentation.span(int(wait_s * 1_000) + 1_000)}."
                    )
                    status, headers = 429, {"Retry-After": str(int(wait_s) + 1)}
        elif gate.session(request) is not None:
            return RedirectResponse(wanted, 303)
        token = new_token()
        response = console.page(request, "login.html", status=status, problem=problem, token=token, wanted=wanted)
        response.headers.update(headers)
        put_cookie(response, gate, gate.form_cookie, token, lifetime_s=3_600)
        return response

    async def log_out(request: Request) -> Response:
        gate, session = console.gate, console.gate.session(request)
        try:
            form = await read_form(request)
        except (UntrustedBytes, trio.TooSlowError):
            return Response("a form that cannot be read", 400)
        if session is None or not is_form_ours(request, form.get("token", ""), session.form_token):
            return Response("this form had expired", 403)
        gate.sessions.end(request.cookies.get(gate.session_cookie, ""))
        response = RedirectResponse("/login", 303)
        drop_cookie(response, gate, gate.session_cookie)
        return response

    return [
        Route("/", show_overview),
        Route("/devices", show_devices),
        Route("/devices.csv", download_devices),
        Route("/devices/{device}", show_device),
        Route("/releases", show_releases),
        Route("/releases/{name}/{version}", show_release),
        Route("/savings", show_savings),
        Route("/login", log_in, methods=["GET", "POST"]),
        Route("/logout", log_out, methods=["POST"]),
    ]


def _begin_session(gate: Gate, wanted: str) -> Response:
    cookie = new_token()
    gate.sessions.begin(cookie=cookie, form_token=new_token(), now_s=trio.current_time())
    response = RedirectResponse(wanted, 303)
    put_cookie(response, gate, gate.session_cookie, cookie)
    drop_cookie(response, gate, gate.form_cookie)
    return response


def _csv(found: fleet.DeviceList) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*fleet.DeviceRow.__struct_fields__, "reported", "as_of"])
    for row in found.devices:
        told = msgspec.structs.astuple(row)
        times = (presentation.moment(row.reported_ms), presentation.moment(found.as_of_ms))
        writer.writerow([presentation.cell(value) for value in (*told, *times)])
    return file.getvalue()
