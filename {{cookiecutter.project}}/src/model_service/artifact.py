"""The model as files: an ONNX graph, its card, golden examples, checksums. Nothing in it is ever unpickled."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from model_service.arrays import Floats
from model_service.digests import digest
from model_service.errors import ServiceError

FILES = ("card.json", "golden.json", "held.json", "model.onnx")
OPTIONAL_FILES = ("backtest.json", "explain.json")  # what older models have not
SUMS = "SHA256SUMS"
REGISTRY = "registry.json"
DATATYPES = {"tensor(double)": "FP64", "tensor(float)": "FP32", "tensor(int64)": "INT64"}
REPORT = "report.html"  # of its training, for people; no part of the model
CHALLENGER = "challenger"  # folder of the one in the shadow; no part of the model either
interrupt: ContextVar[onnxruntime.RunOptions | None] = ContextVar("interrupt", default=None)


class ArtifactError(ServiceError):
    """The model's files are missing, do not fit their checksums, or do not answer their golden examples."""


def sha256sums(files: Mapping[str, bytes]) -> bytes:
    """The checksum file, in the format of `sha256sum`."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def write(folder: Path, files: Mapping[str, bytes], version: str) -> str:
    """Writes the model's files; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, *OPTIONAL_FILES, REPORT):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checksums = sha256sums(files)
    (folder / SUMS).write_bytes(checksums)
    (folder / REGISTRY).write_text(json.dumps({"version": version, "digest": digest(checksums)}) + "\n")
    return digest(checksums)


def read(folder: Path) -> tuple[dict[str, bytes], str]:
    """The model's files and its digest; raises ArtifactError when one is missing or is not what was checksummed."""
    try:
        names = [*FILES, *(name for name in OPTIONAL_FILES if (folder / name).is_file())]
        files = {name: (folder / name).read_bytes() for name in names}
        checksums = (folder / SUMS).read_bytes()
    except OSError as error:
        raise ArtifactError(f"no model in {folder}: {error.strerror} ({Path(str(error.filename)).name})") from None
    if checksums != (due := sha256sums(files)):
        wrong = sorted(line.split()[-1].decode() for line in {*due.splitlines()} - {*checksums.splitlines()})
        raise ArtifactError(f"model in {folder}: {', '.join(wrong) or SUMS} does not fit {SUMS}; build the image again")
    return files, digest(checksums)


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread: ONNX Runtime would size its pool from the host's cores, not the container's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it would write plain text beside our JSON lines; failures reach us as exceptions
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Tensor:
    """What goes into the graph, or comes out: type by the Open Inference Protocol, -1 for as many rows as there are."""

    name: str
    datatype: str
    shape: list[int]


class Model:
    """A model, ready to answer, from its files (in `folder`, where they are on disk); F inputs, H horizons."""

    def __init__(self, files: Mapping[str, bytes], version: str, folder: Path | None = None) -> None:
        self.digest = digest(sha256sums(files))
        self.version = version
        self.folder = folder
        self.card: dict[str, Any] = json.loads(files["card.json"])
        self.held: dict[str, Any] = json.loads(files["held.json"])
        self.golden: dict[str, Any] = json.loads(files["golden.json"])
        self.explain = files.get("explain.json")  # read by who explains
        self.inputs: list[str] = self.card["inputs"]
        self.horizons: list[int] = self.card["horizons"]
        self.name = {"version": version, "digest": self.digest}
        try:
            self._session = session(files["model.onnx"])
        except Exception as error:
            raise ArtifactError(f"model {self.digest}: ONNX Runtime cannot read model.onnx: {error}") from None

        self.takes, self.gives = map(_tensors, (self._session.get_inputs(), self._session.get_outputs()))

    def predict(self, rows: Floats) -> Floats:
        """Inputs float64 [N, F] to forecasts float64 [N, H], in the target's unit.

        Another thread ends the run by setting `terminate` of the context's `interrupt`; it raises then.
        """
        given = {"features": np.ascontiguousarray(rows, dtype=np.float64)}
        made: Floats = self._session.run(["forecast"], given, interrupt.get())[0]
        return made

    def check(self) -> None:
        """Verifies the files on disk and replays the golden examples; raises ArtifactError."""
        if self.folder and read(self.folder)[1] != self.digest:
            raise ArtifactError(f"model in {self.folder} is not the one that was loaded")
        made = self.predict(np.array(self.golden["instances"]))
        worst = float(np.abs(made - np.array(self.golden["forecasts"])).max())
        if not worst <= self.golden["tolerance"]:
            raise ArtifactError(f"golden examples are off by {worst:g} (at most {self.golden['tolerance']:g})")


def _tensors(signature: Sequence[Any]) -> list[Tensor]:
    return [
        Tensor(one.name, DATATYPES[one.type], [size if isinstance(size, int) else -1 for size in one.shape])
        for one in signature
    ]


def trained_at(card: Mapping[str, Any]) -> datetime:
    """The as-of time of a card's training: of what became known later it holds nothing."""
    return datetime.fromisoformat(card["trained_as_of"]["known_at"])


def load(folder: Path) -> Model:
    """Reads and verifies the model; raises ArtifactError."""
    files, _ = read(folder)
    registry = folder / REGISTRY
    try:
        version = str(json.loads(registry.read_text())["version"]) if registry.is_file() else "unregistered"
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"model in {folder}: {REGISTRY} cannot be read; build the image again") from None
    return Model(files, version, folder)
