"""The service as BentoML's: `bentoml serve`, and what `bentoml build` packs."""

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from model_service.serving import app as served


class Ours:
    """BentoML has a /readyz, a /livez and text answers of its own; every request goes to our app instead."""

    def __init__(self, app: ASGIApp) -> None:
        self.bentoml = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (served.app if scope["type"] == "http" else self.bentoml)(scope, receive, send)


@bentoml.service(
    name=served.contract.service.name,
    workers=1,
    # It never cancels a timer, so a long timeout is a leak; ours are shorter, so that a problem document is the answer.
    traffic={"timeout": 2 * served.contract.serving.timeout_seconds + 1},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    monitoring={"enabled": False},
)
@bentoml.asgi_app(served.api, path="/")
class Service:
    """The FastAPI app of `app.py`; BentoML runs no lifespan of a mounted app, so its start and stop stand here."""

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        await served.state.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        await served.state.stop()


Service.add_asgi_middleware(Ours)  # type: ignore[attr-defined]
