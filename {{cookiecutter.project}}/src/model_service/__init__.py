"""One model, one repository, one container: load, train, gate, wrap, serve."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports to its maker unless it is told not to, first
