// One tile on its way through the batcher to the codec.
#pragma once

#include <memory>

namespace kvcask {

class PutRun;

struct EncodeTask {
  std::shared_ptr<PutRun> run;
  int page = 0;   // of the run
  int group = 0;
};

}  // namespace kvcask
