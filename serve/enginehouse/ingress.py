"""stub until the codec lands"""
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from ray import serve
async def ready(request):
    return JSONResponse(serve.get_replica_context().servable_object.core.models.status())
http = Starlette(routes=[Route("/v2/health/ready", ready)])
