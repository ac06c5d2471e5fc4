"""kvcask: keep the KV caches of language models compressed in a daemon, and get them back.

    import kvcask

    client = kvcask.connect("unix:/run/kvcask/kvcask.sock")
    cache = kvcask.Cache.from_arrays(keys, values, rope_theta=1e5, token_ids=ids)
    result = client.put("chat-42", cache, model_id="my-model", codec="int8")
    print(result.ratio)
    back = client.get("chat-42", tokens=(0, 512))

Arrays are [kv_heads, tokens, head_dim], one for K and one for V a layer; keys after RoPE.
Needs grpcio, protobuf and numpy; torch tensors are taken where torch is there.
"""

from kvcask.arrays import from_float32, to_float32
from kvcask.cache import Cache
from kvcask.client import Client, Held, Lease, Lookup, PutResult, SessionInfo, connect
from kvcask.errors import (AbortedError, AlreadyExistsError, DataLossError,
                           DeadlineExceededError, FailedPreconditionError, InvalidArgumentError,
                           KvcaskError, NotFoundError, OutOfRangeError, ResourceExhaustedError,
                           UnavailableError, UnimplementedError)
from kvcask.geometry import Geometry

__version__ = "0.1.0"

__all__ = [
    "AbortedError", "AlreadyExistsError", "Cache", "Client", "DataLossError",
    "DeadlineExceededError", "FailedPreconditionError", "Geometry", "Held",
    "InvalidArgumentError", "KvcaskError", "Lease", "Lookup", "NotFoundError", "OutOfRangeError", "PutResult",
    "ResourceExhaustedError", "SessionInfo", "UnavailableError", "UnimplementedError", "connect",
    "from_float32", "to_float32",
]
