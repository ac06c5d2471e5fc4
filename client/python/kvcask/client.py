"""The client: one daemon, over a unix socket or TCP.

Thread-safe: share one Client between threads. Every call takes `timeout` in seconds (None:
no limit) and raises kvcask.KvcaskError's subclasses.
"""

import dataclasses
import os
import queue
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import grpc
import numpy as np

from kvcask import errors
from kvcask.arrays import DTYPES, NAMES
from kvcask.cache import Cache
from kvcask.geometry import K, Geometry
from kvcask.v1 import cache_pb2, info_pb2, profiles_pb2, sessions_pb2

DEFAULT_SERVER = "127.0.0.1:7420"
_MESSAGE_BYTES = 2 << 20  # of payload; 1 to 4 MiB carry best
_LIMIT = 64 << 20         # of a message

_CODE_OF_PAYLOAD = (15 << 3) | 2


@dataclasses.dataclass(frozen=True)
class PutResult:
    """What a put became. Bytes as in kvcask.v1.PutCommitted; predicted_kld in nats a
    token, 0 without certificates."""

    version: int
    shard_tokens: int
    visible_tokens: int
    raw_bytes: int
    stored_bytes: int
    predicted_kld: float
    replayed: bool

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 0.0


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """A session as the daemon's store holds it (kvcask.v1.Session)."""

    session_id: str
    namespace: str
    model_id: str
    codec: str
    quality: str
    dtype: str
    tokens: int
    sealed: bool
    raw_bytes: int
    stored_bytes: int
    unique_bytes: int
    predicted_kld: float
    chunks: int
    labels: Dict[str, str]
    version: int = 0          # the sum of its shards': what rewind's expected_version means
    ttl: int = 0              # seconds; 0: for ever
    pinned: bool = False      # neither evicted nor expired
    durable: bool = False     # all of it is on disk
    evicted_tokens: int = 0   # that were taken from its end for room
    lost: Tuple[Tuple[int, int], ...] = ()  # [begin, end) tokens whose chunks are corrupt

    @property
    def ratio(self) -> float:
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 0.0


@dataclasses.dataclass(frozen=True)
class Held:
    """One form in which a prefix is held, and what loading it costs: stored_bytes of which
    disk_bytes must be read from disk, raw_bytes to be sent, decode_ms on one thread as lately
    measured by the daemon (0: not known yet)."""

    codec: str
    quality: str
    tokens: int
    stored_bytes: int
    disk_bytes: int
    raw_bytes: int
    decode_ms: float


@dataclasses.dataclass(frozen=True)
class Lookup:
    """tokens: the longest stored prefix, whole pages. held: its forms, longest first.
    lease_id: of the lease on the first of them, "" when none was asked for."""

    tokens: int
    held: List[Held]
    lease_id: str = ""


@dataclasses.dataclass(frozen=True)
class Lease:
    """While it lasts, the `tokens` that it is on are neither evicted nor gone with their
    session. expires: Unix time, seconds, by the daemon's clock."""

    lease_id: str
    expires: float
    tokens: int


def connect(address: Optional[str] = None, timeout: float = 10.0, **tls: Any) -> "Client":
    """A Client of the daemon at `address` ("unix:/path" or "host:port"; default: the
    environment's KVCASK_SERVER, else 127.0.0.1:7420). UnavailableError when nothing answers
    within `timeout` seconds. tls: root_certificates (PEM bytes), to speak TLS."""
    client = Client(address, **tls)
    client.info(timeout=timeout)
    return client


class Client:
    """See connect(), which also checks that the daemon answers. Closes as a context
    manager."""

    def __init__(self, address: Optional[str] = None, root_certificates: Optional[bytes] = None):
        self.address = address or os.environ.get("KVCASK_SERVER") or DEFAULT_SERVER
        options = [("grpc.max_receive_message_length", _LIMIT),
                   ("grpc.max_send_message_length", _LIMIT)]
        if root_certificates is None:
            self._channel = grpc.insecure_channel(self.address, options)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.secure_channel(self.address, credentials, options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # ---- moving KV

    def put(self, session_id: str, cache: Cache, *, model_id: str, extra_key: str = "",
            codec: str = "", quality: str = "", profile: Optional[str] = None,
            namespace: str = "", seal: bool = True, layer_by_layer: bool = False,
            put_id: str = "", expected_version: int = 0, ttl: int = 0,
            labels: Optional[Dict[str, str]] = None, durable: bool = False,
            timeout: Optional[float] = None) -> PutResult:
        """Appends `cache` to a session, which is created when it does not exist.

        codec: "raw", "int8", "fklt", ... ("" takes the daemon's default); profile: hex
        fingerprint of a registered one. seal: no more tokens will come, so the last,
        incomplete page is encoded too. put_id makes a repeat harmless. ttl: seconds.
        durable: return when the disk has it (UnimplementedError without a disk tier), and
        survive a kill of the daemon. Nothing is stored unless this returns.
        """
        n = cache.tokens
        open_ = cache_pb2.PutOpen(
            geometry=cache.geometry.proto, dtype=DTYPES[cache.dtype][0],
            token_begin=cache.token_begin, token_count=n, put_id=put_id,
            expected_version=expected_version, ttl_seconds=ttl, labels=labels or {})
        _name(open_.session, session_id, namespace)
        open_.identity.model_id = model_id
        open_.identity.extra_key = extra_key
        open_.codec.name = codec
        open_.codec.quality = quality
        if profile:
            open_.codec.profile_fingerprint = bytes.fromhex(profile)
        open_.positions.first_position = cache.first_position
        if cache.token_ids is not None:
            open_.token_ids.extend(cache.token_ids.tolist())

        ready: "queue.Queue[bool]" = queue.Queue()

        def requests() -> Iterator[bytes]:
            yield cache_pb2.PutRequest(open=open_).SerializeToString()
            if not ready.get():  # admitted (or not) before the first bulk byte
                return
            yield from _rectangles(cache, layer_by_layer)
            commit = cache_pb2.PutCommit(
                seal=seal, durability=cache_pb2.DURABILITY_DISK if durable else 0)
            yield cache_pb2.PutRequest(commit=commit).SerializeToString()

        call = self._channel.stream_stream("/kvcask.v1.CacheService/Put")(requests(),
                                                                          timeout=timeout)
        committed = None
        try:
            for raw in call:
                response = cache_pb2.PutResponse.FromString(raw)
                kind = response.WhichOneof("message")
                if kind == "opened":
                    ready.put(True)
                elif kind == "committed":
                    committed = response.committed
        except grpc.RpcError as e:
            raise errors.from_rpc_error(e) from None
        finally:
            ready.put(False)
        if committed is None:
            raise errors.KvcaskError(grpc.StatusCode.INTERNAL, "the put ended without an answer")
        return PutResult(committed.version, committed.shard_tokens, committed.visible_tokens,
                         committed.raw_bytes, committed.stored_bytes, committed.predicted_kld,
                         committed.replayed)

    def get(self, session_id: str, *, namespace: str = "",
            tokens: Optional[Tuple[int, int]] = None, layers: Optional[Tuple[int, int]] = None,
            dtype: Optional[str] = None, position_offset: int = 0,
            timeout: Optional[float] = None) -> Cache:
        """Tokens [begin, end) and layers [begin, end) of a session (default: all), decoded.

        dtype: "bf16", "f16", "f32" (default: as it was put). position_offset is added to
        every token's position before keys are rotated. Layers that were not asked for are
        None; tokens that sliding layers no longer hold are zeros.
        """
        request = cache_pb2.GetRequest(position_offset=position_offset)
        _name(request.session, session_id, namespace)
        return self._get(request, tokens, layers, dtype, timeout)

    def get_prefix(self, token_ids: Sequence[int], *, model_id: str, extra_key: str = "",
                   namespace: str = "", dtype: Optional[str] = None,
                   timeout: Optional[float] = None) -> Cache:
        """The longest stored prefix of `token_ids`. NotFoundError when there is none."""
        request = cache_pb2.GetRequest()
        _fill_prefix(request.prefix, token_ids, model_id, extra_key, namespace)
        return self._get(request, None, None, dtype, timeout)

    def _get(self, request, tokens, layers, dtype, timeout) -> Cache:
        if tokens is not None:
            request.tokens.begin, request.tokens.end = tokens
        if layers is not None:
            request.layers.begin, request.layers.end = layers
        if dtype is not None:
            request.dtype = DTYPES[dtype][0]
        call = self._channel.unary_stream("/kvcask.v1.CacheService/Get")(
            request.SerializeToString(), timeout=timeout)
        cache, summary, received = None, None, 0
        try:
            for raw in call:
                head, payload = _split(raw)
                kind = head.WhichOneof("message")
                if kind == "header":
                    cache = _empty(head.header)
                elif kind == "data":
                    _store(cache, head.data.rectangle, payload)
                    received += len(payload)
                elif kind == "summary":
                    summary = head.summary
        except grpc.RpcError as e:
            raise errors.from_rpc_error(e) from None
        if cache is None or summary is None or summary.payload_bytes != received:
            raise errors.DataLossError(grpc.StatusCode.DATA_LOSS,
                                       f"the answer ended after {received} bytes")
        return cache

    def lookup(self, token_ids: Sequence[int], *, model_id: str, extra_key: str = "",
               namespace: str = "", lease: int = 0, timeout: Optional[float] = None) -> Lookup:
        """The longest stored prefix of `token_ids`, and what loading it costs. lease: seconds
        for which what was found stays (0: no lease); renew_lease prolongs it."""
        request = cache_pb2.LookupRequest(lease_seconds=lease)
        _fill_prefix(request.prefix, token_ids, model_id, extra_key, namespace)
        r = self._call("CacheService/Lookup", request, cache_pb2.LookupResponse, timeout)
        held = [Held(h.codec, h.quality, h.tokens, h.stored_bytes, h.disk_bytes, h.raw_bytes,
                     h.decode_ms) for h in r.held]
        return Lookup(r.tokens, held, r.lease_id)

    # ---- sessions

    def stat(self, session_id: str, *, namespace: str = "",
             timeout: Optional[float] = None) -> SessionInfo:
        request = sessions_pb2.StatSessionRequest()
        _name(request.session, session_id, namespace)
        return _session(self._call("SessionService/StatSession", request, sessions_pb2.Session,
                                   timeout))

    def sessions(self, *, namespace: str = "",
                 timeout: Optional[float] = None) -> Iterator[SessionInfo]:
        """All sessions of a namespace in order of their ids, fetched by pages."""
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(page_size=500, page_token=token)
            request.namespace = namespace
            r = self._call("SessionService/ListSessions", request,
                           sessions_pb2.ListSessionsResponse, timeout)
            yield from map(_session, r.sessions)
            token = r.next_page_token
            if not token:
                return

    def delete(self, session_id: str, *, namespace: str = "", missing_ok: bool = False,
               timeout: Optional[float] = None) -> bool:
        """True when there was one."""
        request = sessions_pb2.DeleteSessionRequest(allow_missing=missing_ok)
        _name(request.session, session_id, namespace)
        return self._call("SessionService/DeleteSession", request,
                          sessions_pb2.DeleteSessionResponse, timeout).deleted

    def fork(self, session_id: str, new_id: str, *, tokens: Optional[int] = None,
             namespace: str = "", ttl: int = 0, labels: Optional[Dict[str, str]] = None,
             timeout: Optional[float] = None) -> SessionInfo:
        """A new session with the first `tokens` tokens (None: all) of another, which it shares:
        nothing is copied. AlreadyExistsError when the name is taken; OutOfRangeError when fewer
        tokens are visible."""
        request = sessions_pb2.ForkSessionRequest(
            session_id=new_id, tokens=tokens or 0, all=tokens is None, ttl_seconds=ttl,
            labels=labels or {})
        _name(getattr(request, "from"), session_id, namespace)
        return _session(self._call("SessionService/ForkSession", request, sessions_pb2.Session,
                                   timeout))

    def rewind(self, session_id: str, tokens: int, *, namespace: str = "",
               expected_version: int = 0, timeout: Optional[float] = None) -> SessionInfo:
        """Forgets the tokens from `tokens` on, and unseals. Puts under way get AbortedError, and
        so does this when expected_version (SessionInfo.version) is given and differs."""
        request = sessions_pb2.RewindSessionRequest(tokens=tokens,
                                                    expected_version=expected_version)
        _name(request.session, session_id, namespace)
        return _session(self._call("SessionService/RewindSession", request, sessions_pb2.Session,
                                   timeout))

    def update(self, session_id: str, *, namespace: str = "", pinned: Optional[bool] = None,
               ttl: Optional[int] = None, labels: Optional[Dict[str, str]] = None,
               timeout: Optional[float] = None) -> SessionInfo:
        """Changes what is not None, and starts the time to live again. labels replace all that
        there were."""
        request = sessions_pb2.UpdateSessionRequest(replace_labels=labels is not None,
                                                    labels=labels or {})
        _name(request.session, session_id, namespace)
        if pinned is not None:
            request.pinned = pinned
        if ttl is not None:
            request.ttl_seconds = ttl
        return _session(self._call("SessionService/UpdateSession", request, sessions_pb2.Session,
                                   timeout))

    def lease(self, session_id: str, seconds: int, *, namespace: str = "",
              timeout: Optional[float] = None) -> Lease:
        """On a session as it is now. InvalidArgumentError beyond the daemon's longest."""
        request = sessions_pb2.AcquireLeaseRequest(seconds=seconds)
        _name(request.session, session_id, namespace)
        return _lease(self._call("SessionService/AcquireLease", request, sessions_pb2.Lease,
                                 timeout))

    def renew_lease(self, lease_id: str, seconds: int,
                    timeout: Optional[float] = None) -> Lease:
        """The heartbeat. NotFoundError when it has ended: what it was on may be gone."""
        request = sessions_pb2.RenewLeaseRequest(lease_id=lease_id, seconds=seconds)
        return _lease(self._call("SessionService/RenewLease", request, sessions_pb2.Lease,
                                 timeout))

    def release_lease(self, lease_id: str, timeout: Optional[float] = None) -> bool:
        """False when it had ended. Harmless to repeat."""
        request = sessions_pb2.ReleaseLeaseRequest(lease_id=lease_id)
        return self._call("SessionService/ReleaseLease", request,
                          sessions_pb2.ReleaseLeaseResponse, timeout).released

    # ---- profiles and the daemon

    def add_profile(self, file: str, timeout: Optional[float] = None) -> str:
        """Registers a profile file; its fingerprint in hex. Harmless when it is there."""
        def pieces() -> Iterator[bytes]:
            open_ = profiles_pb2.AddProfileRequest.Open(size_bytes=os.path.getsize(file))
            yield profiles_pb2.AddProfileRequest(open=open_).SerializeToString()
            with open(file, "rb") as f:
                while True:
                    piece = f.read(2 << 20)
                    if not piece:
                        return
                    yield profiles_pb2.AddProfileRequest(data=piece).SerializeToString()

        try:
            raw = self._channel.stream_unary("/kvcask.v1.ProfileService/AddProfile")(
                pieces(), timeout=timeout)
        except grpc.RpcError as e:
            raise errors.from_rpc_error(e) from None
        return profiles_pb2.Profile.FromString(raw).fingerprint.hex()

    def profiles(self, timeout: Optional[float] = None) -> List[profiles_pb2.Profile]:
        return list(self._call("ProfileService/ListProfiles", profiles_pb2.ListProfilesRequest(),
                               profiles_pb2.ListProfilesResponse, timeout).profiles)

    def remove_profile(self, fingerprint: str, timeout: Optional[float] = None) -> None:
        """FailedPreconditionError while chunks need it."""
        self._call("ProfileService/RemoveProfile",
                   profiles_pb2.RemoveProfileRequest(fingerprint=fingerprint),
                   profiles_pb2.RemoveProfileResponse, timeout)

    def info(self, timeout: Optional[float] = None) -> info_pb2.ServerInfo:
        """Version, backends, codecs, limits, usage."""
        return self._call("InfoService/GetServerInfo", info_pb2.GetServerInfoRequest(),
                          info_pb2.ServerInfo, timeout)

    def _call(self, method, request, response_type, timeout):
        try:
            raw = self._channel.unary_unary("/kvcask.v1." + method)(request.SerializeToString(),
                                                                   timeout=timeout)
        except grpc.RpcError as e:
            raise errors.from_rpc_error(e) from None
        return response_type.FromString(raw)


def _fill_prefix(prefix, token_ids, model_id, extra_key, namespace) -> None:
    prefix.namespace = namespace
    prefix.identity.model_id = model_id
    prefix.identity.extra_key = extra_key
    prefix.token_ids.extend(np.asarray(token_ids).astype(np.uint32).tolist())


def _name(ref, session_id, namespace) -> None:
    ref.session_id = session_id
    ref.namespace = namespace


def _session(s: sessions_pb2.Session) -> SessionInfo:
    return SessionInfo(
        s.ref.session_id, s.ref.namespace, s.identity.model_id, s.codec, s.quality,
        NAMES.get(s.dtype, ""), s.tokens, s.sealed, s.raw_bytes, s.stored_bytes, s.unique_bytes,
        s.predicted_kld, s.chunks, dict(s.labels), version=sum(x.version for x in s.shards),
        ttl=s.ttl_seconds, pinned=s.pinned, durable=s.durable, evicted_tokens=s.evicted_tokens,
        lost=tuple((r.begin, r.end) for r in s.lost))


def _lease(lease: sessions_pb2.Lease) -> Lease:
    return Lease(lease.lease_id, lease.expires.seconds + lease.expires.nanos * 1e-9, lease.tokens)


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append((n & 0x7F) | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _rectangles(cache: Cache, layer_by_layer: bool) -> Iterator[bytes]:
    """PutRequests of about 2 MiB: whole layers of a run of tokens, or one layer each."""
    n = cache.tokens
    element = np.dtype(DTYPES[cache.dtype][1]).itemsize
    widths = [sum(h * d for _, h, d in cache.geometry.streams(i)) * element
              for i in range(cache.geometry.layers)]
    spans = ([(i, i + 1) for i, w in enumerate(widths) if w] if layer_by_layer
             else [(0, len(widths))])
    for begin, end in spans:
        step = max(1, _MESSAGE_BYTES // max(1, sum(widths[begin:end])))
        step = step // 128 * 128 if step >= 128 else step
        for t in range(0, n, step):
            count = min(step, n - t)
            parts = []
            for layer in range(begin, end):
                for kind, heads, dim in cache.geometry.streams(layer):
                    x = (cache.keys if kind == K else cache.values)[layer]
                    if x is None or x.shape != (heads, n, dim):
                        raise ValueError(f"layer {layer} has shape "
                                         f"{None if x is None else x.shape}, the geometry "
                                         f"expects {(heads, n, dim)}")
                    parts.append(np.ascontiguousarray(x[:, t:t + count]).data.cast("B"))
            head = cache_pb2.KvData()
            head.rectangle.layer_begin = begin
            head.rectangle.layer_count = end - begin
            head.rectangle.token_begin = cache.token_begin + t
            head.rectangle.token_count = count
            fields = head.SerializeToString()
            size = sum(len(p) for p in parts)
            inner = fields + bytes([_CODE_OF_PAYLOAD]) + _varint(size)
            yield b"".join([bytes([_CODE_OF_PAYLOAD]), _varint(len(inner) + size), inner, *parts])


def _split(raw: bytes) -> Tuple[cache_pb2.GetResponse, memoryview]:
    """A GetResponse, and its payload without a copy where it comes last (as the daemon
    sends it)."""
    view = memoryview(raw)

    def varint(at: int) -> Tuple[int, int]:
        value = shift = 0
        while True:
            b = view[at]
            value |= (b & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if b < 0x80:
                return value, at

    if raw and raw[0] == _CODE_OF_PAYLOAD:
        length, at = varint(1)
        begin = at
        # The fields before the payload: a rectangle (2-byte tag and short) and a CRC.
        while at < len(raw) and raw[at] != _CODE_OF_PAYLOAD:
            wire = raw[at] & 7
            if wire == 2:
                size, at = varint(at + 1)
                at += size
            elif wire == 5:
                at += 5
            else:
                break
        if at < len(raw) and raw[at] == _CODE_OF_PAYLOAD:
            size, payload = varint(at + 1)
            if payload + size == len(raw) and begin + length == len(raw):
                out = cache_pb2.GetResponse()
                out.data.ParseFromString(bytes(view[begin:at]))
                return out, view[payload:]
    out = cache_pb2.GetResponse.FromString(raw)
    payload = memoryview(out.data.payload) if out.HasField("data") else memoryview(b"")
    return out, payload


def _empty(header: cache_pb2.GetHeader) -> Cache:
    geometry = Geometry(header.geometry)
    dtype = NAMES[header.dtype]
    n = header.tokens.end - header.tokens.begin
    keys: List[Optional[np.ndarray]] = [None] * geometry.layers
    values: List[Optional[np.ndarray]] = [None] * geometry.layers
    for layer in range(header.layers.begin, header.layers.end):
        for kind, heads, dim in geometry.streams(layer):
            array = np.zeros((heads, n, dim), DTYPES[dtype][1])
            (keys if kind == K else values)[layer] = array
    ids = np.array(header.token_ids, np.uint32) if len(header.token_ids) else None
    return Cache(keys, values, geometry, dtype, ids, header.tokens.begin, header.first_position)


def _store(cache: Cache, r: cache_pb2.Rectangle, payload: memoryview) -> None:
    t0 = r.token_begin - cache.token_begin
    flat = np.frombuffer(payload, DTYPES[cache.dtype][1])
    at = 0
    for layer in range(r.layer_begin, r.layer_begin + r.layer_count):
        for kind, heads, dim in cache.geometry.streams(layer):
            h0 = r.head_begin
            h1 = min(heads, h0 + r.head_count) if r.head_count else heads
            if h1 <= h0:
                continue
            size = (h1 - h0) * r.token_count * dim
            to = (cache.keys if kind == K else cache.values)[layer]
            to[h0:h1, t0:t0 + r.token_count] = flat[at:at + size].reshape(h1 - h0, r.token_count,
                                                                          dim)
            at += size
    if at != flat.size:
        raise errors.DataLossError(grpc.StatusCode.DATA_LOSS,
                                   f"a rectangle of {flat.size} elements, expected {at}")
