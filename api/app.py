"""The HTTP API: `uvicorn --factory api.app:create_app`.

A factory, so that importing this module opens no database and reads no environment. The API turns requests into rows
and rings the queue's doorbell; it never loads a model and never imports torch.

    POST /v1/files, /v1/fine_tuning/jobs ...   OpenAI's fine-tuning API, with one extra object, `jenga`
    GET  /v1/fleet, /v1/keys ...               ours, beside it
    GET  /healthz, /readyz, /metrics           for whoever runs it
    GET  /, /jobs/{id}, /login ...             status pages
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api import errors
from api.envelope import Envelope
from api.gate import Gate
from api.metering import Metering
from api.openapi import describer
from api.revalidation import Revalidation
from api.routes import (
    accounts,
    estimates,
    events,
    files,
    fine_tuning,
    fleet,
    health,
    models,
    predictors,
    progress,
    uploads,
    web,
    webhooks,
)
from jenga_core.errors import ConfigError
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.jobs import queue
from jenga_core.service.metrics.prometheus import DatabaseCollector
from jenga_core.service.settings import Settings

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application on these settings; without any, on the environment's."""
    settings = settings or Settings()
    app = FastAPI(
        title="Jenga",
        version="1",
        summary="Long-context fine-tuning as a service, in the shapes of OpenAI's fine-tuning API",
        lifespan=_lifespan,
        docs_url=None,  # those pages load scripts from a CDN; the description itself is at /openapi.json
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = Database(settings.database)
    app.state.files = FileStore(settings)
    app.state.registry = CollectorRegistry()
    app.state.registry.register(DatabaseCollector(app.state.database))
    app.add_middleware(Revalidation)
    app.add_middleware(Gate, settings=settings, database=app.state.database)
    app.add_middleware(Metering, registry=app.state.registry)
    app.add_middleware(Envelope)  # added last, so it is outermost
    errors.install(app, web.missing_page)
    openai_routes = (files, uploads, fine_tuning, events, models)
    for routes in (*openai_routes, estimates, progress, predictors, fleet, webhooks, accounts):
        app.include_router(routes.router)
    app.include_router(health.router)
    app.include_router(web.router)
    app.openapi = describer(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    try:
        queue.connect(app.state.settings)
    except ConfigError as error:
        log.warning("%s. Jobs are accepted, and run once a worker looks at the database.", error.message)
    yield
    app.state.database.dispose()
