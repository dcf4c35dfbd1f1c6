"""The service as an ASGI app: `uvicorn model_service.serving.app:app`, which is how the container runs it."""

import os

from model_service import serving

serving.seal()  # before anything else is imported

from model_service import contract as contracts  # noqa: E402
from model_service import settings, telemetry  # noqa: E402
from model_service.serving import routes  # noqa: E402
from model_service.serving.edge import Edge  # noqa: E402
from model_service.serving.keys import Keys  # noqa: E402
from model_service.serving.runtime import Runtime  # noqa: E402

contract = contracts.load(settings.root() / settings.CONTRACT)
telemetry.configure(contract.service.name)
state = Runtime(contract, settings.model_folder())
api = routes.build(state)
hot = {"/v1/predict", "/v1/forecast"}
app = Edge(api, state.metrics, contract.serving.max_body_bytes, Keys(os.environ.get("API_KEYS")), state.door, hot)
