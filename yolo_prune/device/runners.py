"""Files of networks, each opened in its runtime: a runner computes one image of noise.

A file is what Ultralytics' export leaves: ``.onnx``, an OpenVINO or ncnn folder, ``.tflite``, ``.mlpackage``. TensorRT
builds an engine of an ``.onnx``, or loads an ``.engine``. Threads are for a processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.device.stopwatch import Runner
from yolo_prune.errors import UnsupportedError

MODULES = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "litert": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite"),
    "coreml": ("coremltools",),
    "tensorrt": ("tensorrt",),
}
"""Runtime -> modules that it can be used through, of which one has to be there."""
DISTRIBUTIONS = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "litert": ("ai-edge-litert", "tflite-runtime", "tensorflow"),
    "pytorch": ("torch",),
}
"""Runtime -> packages that it can come in, the usual one first, where they are not named like it."""


def module_of(runtime: str) -> Any:
    """Return the module of a runtime.

    Raises:
        UnsupportedError: Says what to install.
    """
    errors = []
    for name in MODULES[runtime]:
        try:
            return import_module(name)
        except ImportError as e:
            errors.append(str(e))
    package = DISTRIBUTIONS.get(runtime, (runtime,))[0]
    raise UnsupportedError(f"runtime={runtime} needs {package} ({errors[0]}): pip install {package}.")


def version_of(runtime: str) -> str:
    """Return a runtime's version, or ``unknown``."""
    for name in DISTRIBUTIONS.get(runtime, (runtime,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def noise(shape: Sequence[int]) -> np.ndarray:
    """Return an image of noise in 0..1; of a black one, activations can get so small that a runtime takes ages."""
    return np.random.default_rng(0).random(tuple(shape), dtype=np.float32)


def open_file(runtime: str, file: Path, shape: Sequence[int], threads: int, half: bool = False) -> Runner:
    """Return a runner of a file.

    Args:
        runtime: One of `MODULES`.
        file: A file or folder of a format that it reads.
        shape: Of the input, (1, C, H, W).
        threads: For a processor.
        half: Whether to compute in half precision where the runtime decides that, not the file: ncnn and TensorRT.

    Raises:
        UnsupportedError: If the runtime is not there, or cannot read the file.
    """
    return _OPEN[runtime](module_of(runtime), file, noise(shape), threads, half)


def _onnx(onnxruntime: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or the next runner has no core
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    feed = {given.name: image.astype(np.float16) if "float16" in given.type else image}
    return lambda: session.run(None, feed)


def _openvino(openvino: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = core.read_model(str(_within(file, "*.xml") if file.is_dir() else file))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: image})


def _ncnn(ncnn: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    if net.load_param(str(_within(file, "*.param"))) or net.load_model(str(_within(file, "*.bin"))):
        raise UnsupportedError(f"ncnn cannot read {file.name}; export it anew.")
    (given, *_), outputs = net.input_names(), net.output_names()
    pixels = ncnn.Mat(image[0]).clone()  # a Mat does not hold the array that it is of

    def run() -> object:
        with net.create_extractor() as extractor:
            extractor.input(given, pixels)
            return [extractor.extract(name)[1] for name in outputs]

    return run


def _litert(litert: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    interpreter = litert.Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    if tuple(given["shape"]) != image.shape:  # channels come last
        image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    is_whole = np.issubdtype(given["dtype"], np.integer)
    interpreter.set_tensor(given["index"], (image * 127 if is_whole else image).astype(given["dtype"]))
    return lambda: interpreter.invoke()


def _coreml(coremltools: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    """Core ML runs on macOS only, which no machine of this project is."""
    model = coremltools.models.MLModel(str(file))
    given = model.get_spec().description.input[0]
    pixels: Any = image
    if given.type.WhichOneof("Type") == "imageType":
        from PIL import Image

        pixels = Image.fromarray((image[0].transpose(1, 2, 0) * 255).astype(np.uint8))
    return lambda: model.predict({given.name: pixels})


def _tensorrt(tensorrt: Any, file: Path, image: np.ndarray, threads: int, half: bool) -> Runner:
    """Build an engine of an ONNX file, or load one that Ultralytics exported; needs an NVIDIA GPU."""
    content = file.read_bytes()
    if file.suffix == ".engine":  # JSON metadata, with its length before it, come first
        length = int.from_bytes(content[:4], "little")
        return _engine(tensorrt, content[4 + length :] if content[4:5] == b"{" else content)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(content):
        raise UnsupportedError(f"TensorRT cannot read {file.name}: {parser.get_error(0)}.")
    config = builder.create_builder_config()
    if half:
        config.set_flag(tensorrt.BuilderFlag.FP16)
    return _engine(tensorrt, builder.build_serialized_network(network, config))


def _engine(tensorrt: Any, plan: Any) -> Runner:
    """Load a serialized engine, bind memory to each input and output, and run."""
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(plan)
    context, gpu = engine.create_execution_context(), _Gpu()
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        values = int(np.prod(tuple(engine.get_tensor_shape(name))))
        context.set_tensor_address(name, gpu.memory(values * engine.get_tensor_dtype(name).itemsize))

    def run() -> None:
        context.execute_async_v3(gpu.stream)
        gpu.synchronize()

    return run


class _Gpu:
    """Memory and a stream of an NVIDIA GPU, by the CUDA runtime's C interface: a device need not have PyTorch.

    Raises:
        UnsupportedError: If there is none.
    """

    def __init__(self) -> None:
        self._cuda = _cuda_runtime()
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = stream.value

    def memory(self, size: int) -> int:
        """Return the address of so many bytes that are 0; they are held as long as the process lives."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        self._call("cudaMemset", address, 0, ctypes.c_size_t(size))
        return address.value or 0

    def synchronize(self) -> None:
        """Wait for what runs in the stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._cuda, name)(*arguments):
            raise UnsupportedError(f"{name} of CUDA failed with status {status}; TensorRT needs an NVIDIA GPU.")


def _cuda_runtime() -> Any:
    """Return the CUDA runtime library, of the newest version that is there."""
    for name in ("libcudart.so", *(f"libcudart.so.{major}" for major in (13, 12)), "libcudart.so.11.0"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UnsupportedError("runtime=tensorrt needs CUDA's libcudart, which comes with TensorRT on an NVIDIA GPU.")


def _within(folder: Path, pattern: str) -> Path:
    """Return the first file of a pattern in a folder.

    Raises:
        UnsupportedError: If there is none.
    """
    for path in sorted(folder.glob(pattern)):
        return path
    raise UnsupportedError(f"{folder.name} has no {pattern}: it is no export of Ultralytics, or not all of one.")


_OPEN: dict[str, Callable[[Any, Path, np.ndarray, int, bool], Runner]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "ncnn": _ncnn,
    "litert": _litert,
    "coreml": _coreml,
    "tensorrt": _tensorrt,
}
