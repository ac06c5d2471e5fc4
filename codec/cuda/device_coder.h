// Jobs in host memory, coded on a device: what a server calls. Names nothing of CUDA.
#pragma once

#include <absl/status/status.h>
#include <absl/types/span.h>

#include "codec/api/codec.h"

namespace kvcask {

// One thread at a time.
class DeviceCoder {
 public:
  virtual ~DeviceCoder() = default;

  // Sets bytes, certificate and status of each job, as a Codec does. bytes 0 with an OK status: the
  // job is left to the CPU. A status of the call's own is the device's: RESOURCE_EXHAUSTED
  // when its memory is short (the next call may go well), anything else when it is lost.
  virtual absl::Status Encode(absl::Span<EncodeJob> jobs) = 0;
  // The same; UNIMPLEMENTED in a job's status: left to the CPU.
  virtual absl::Status Decode(absl::Span<DecodeJob> jobs) = 0;
};

}  // namespace kvcask
