"""Errors as exceptions of their own, each carrying the daemon's Status."""

import grpc

from kvcask.v1 import errors_pb2


class KvcaskError(Exception):
    """A call that failed.

    code: grpc.StatusCode. reason: the daemon's ErrorInfo reason ("OVER_BUDGET", ...; the
    list is in proto/kvcask/v1/errors.proto) or "". retry_after: seconds after which trying
    again may help, or None.
    """

    def __init__(self, code, message, reason="", retry_after=None):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after = retry_after


class InvalidArgumentError(KvcaskError, ValueError):
    """Malformed or contradictory; the text says found, expected and where."""


class NotFoundError(KvcaskError, KeyError):
    """No such session, profile or prefix."""

    __str__ = Exception.__str__


class AlreadyExistsError(KvcaskError):
    """The tokens or the session are there already."""


class AbortedError(KvcaskError):
    """Somebody else wrote the same shard first."""


class FailedPreconditionError(KvcaskError):
    """Wrong geometry or profile, a sealed session, a profile in use."""


class OutOfRangeError(KvcaskError, IndexError):
    """Tokens, layers or heads that the session does not hold."""


class ResourceExhaustedError(KvcaskError):
    """Over the memory budget or a limit; see retry_after."""


class DataLossError(KvcaskError):
    """A checksum or a stored chunk is wrong."""


class UnimplementedError(KvcaskError):
    """A codec, dtype or option that this daemon does not have."""


class UnavailableError(KvcaskError, ConnectionError):
    """The daemon is draining or cannot be reached."""


class DeadlineExceededError(KvcaskError, TimeoutError):
    """The call took longer than its timeout."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


def from_rpc_error(error):
    """The KvcaskError for a grpc.RpcError."""
    reason, retry_after = "", None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        status = errors_pb2.RpcStatus.FromString(value)
        for detail in status.details:
            name = detail.type_url.rsplit("/", 1)[-1]
            if name == "google.rpc.ErrorInfo":
                reason = errors_pb2.ErrorInfo.FromString(detail.value).reason
            elif name == "google.rpc.RetryInfo":
                delay = errors_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
    cls = _CLASSES.get(error.code(), KvcaskError)
    return cls(error.code(), error.details() or "", reason, retry_after)
