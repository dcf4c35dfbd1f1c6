"""Saves an ONNX file (first argument) as a model of MLflow (second), for `mlflow models serve`."""

import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    one = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    mlflow.onnx.save_model(onnx.load(sys.argv[1]), sys.argv[2], onnx_session_options=one, pip_requirements=[])
