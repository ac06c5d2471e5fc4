"""Arrays in and out: numpy, and whatever speaks DLPack (torch tensors among them).

numpy has no bfloat16. A bf16 array here is uint16 holding the bit patterns, and the cache
says dtype "bf16"; to_float32 and from_float32 convert. Arrays of ml_dtypes.bfloat16 and
torch.bfloat16 tensors are taken as they are.
"""

from typing import Any, Tuple

import numpy as np

from kvcask.v1 import geometry_pb2 as pb

DTYPES = {"bf16": (pb.DTYPE_BF16, np.uint16), "f16": (pb.DTYPE_F16, np.float16),
          "f32": (pb.DTYPE_F32, np.float32)}
NAMES = {code: name for name, (code, _) in DTYPES.items()}


def to_float32(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of an array of `dtype` ("bf16": uint16 bit patterns)."""
    if dtype == "bf16":
        return (np.asarray(x, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(x).astype(np.float32)


def from_float32(x: np.ndarray, dtype: str) -> np.ndarray:
    """`x` rounded to nearest, ties to even, as an array of `dtype`."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype != "bf16":
        return x.astype(DTYPES[dtype][1])
    u = x.view(np.uint32)
    rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), (u >> 16).astype(np.uint16) | np.uint16(0x40), rounded)


def as_array(x: Any) -> Tuple[np.ndarray, str]:
    """A numpy array and its dtype name. Copies only what lies on a device or has no host
    memory. TypeError names what is not bf16, f16 or f32."""
    if type(x).__module__.split(".")[0] == "torch":
        import torch  # it is there: the caller has one of its tensors

        x = x.detach()
        if x.device.type != "cpu":
            x = x.cpu()
        if x.dtype == torch.bfloat16:
            return x.contiguous().view(torch.int16).numpy().view(np.uint16), "bf16"
        x = x.numpy()
    elif not isinstance(x, np.ndarray):
        x = np.from_dlpack(x) if hasattr(x, "__dlpack__") else np.asarray(x)
    if x.dtype == np.uint16:
        return x, "bf16"
    if x.dtype.name == "bfloat16":  # ml_dtypes
        return x.view(np.uint16), "bf16"
    for name, (_, np_type) in DTYPES.items():
        if x.dtype == np_type:
            return x, name
    raise TypeError(f"dtype is {x.dtype}, expected bfloat16 (or uint16 bit patterns), float16 "
                    "or float32")
