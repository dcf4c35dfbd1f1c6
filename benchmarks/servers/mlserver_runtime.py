"""MLServer has no runtime for ONNX: this is one, as its documentation shows them."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class Onnx(MLModel):  # type: ignore[misc, unused-ignore]
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        where = await get_model_uri(self._settings)
        self.session = onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (made,) = self.session.run(["forecast"], {"features": rows})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("forecast", made)])
