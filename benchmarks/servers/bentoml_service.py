"""What BentoML's documentation shows for a model of one's own; MODEL: the ONNX file."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service  # type: ignore[untyped-decorator, unused-ignore]
class Model:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api  # type: ignore[untyped-decorator, unused-ignore]
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run(["forecast"], {"features": rows})[0]

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator, unused-ignore]
    def batched(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run(["forecast"], {"features": rows})[0]
