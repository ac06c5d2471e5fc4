#include "tests/e2e/daemon.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/cc/convert.h"

namespace kvcask {
namespace {

constexpr char kDaemon[] = "server/kvcaskd";
constexpr char kExample[] = "examples/smollm2-135m-book-256.safetensors";

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

}  // namespace

ScratchFolder::ScratchFolder() {
  char name[] = "/tmp/kvcask-e2e.XXXXXX";
  if (mkdtemp(name) == nullptr) Die("mkdtemp failed");
  path_ = name;
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Daemon::Daemon(const std::vector<std::string>& flags,
               const std::vector<std::string>& environment) {
  unix_ = "unix:" + folder_.File("s");
  std::vector<std::string> argv = {kDaemon,       "--listen",  unix_,        "--listen",
                                   "127.0.0.1:0", "--metrics", "127.0.0.1:0"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  process_ = std::make_unique<Process>(argv, folder_.File("log"), environment);
  int listening = 0;
  while (listening < 2) {
    const auto line = process_->ReadLine(kPatience);
    if (!line) Die("kvcaskd did not start:\n" + Log());
    absl::string_view metrics = *line;
    if (absl::ConsumePrefix(&metrics, "metrics http://")) {
      metrics_ = std::string(metrics.substr(0, metrics.find('/')));
    }
    if (!absl::StartsWith(*line, "listening ")) continue;
    ++listening;
    const std::string address = line->substr(std::strlen("listening "));
    if (!absl::StartsWith(address, "unix:")) tcp_ = address;
  }
}

Daemon::~Daemon() {
  if (testing::Test::HasFailure()) std::fprintf(stderr, "kvcaskd's log:\n%s\n", Log().c_str());
}

Client Daemon::Connect() const {
  auto client = Client::Connect(unix_);
  if (!client.ok()) Die(client.status().ToString() + "\n" + Log());
  return *std::move(client);
}

std::string Daemon::Log() const {
  std::ifstream in(folder_.File("log"));
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
  }
  return true;
}

const CacheFile& Example() {
  static const CacheFile* const file = [] {
    auto opened = CacheFile::Open(kExample);
    if (!opened.ok()) Die(opened.status().ToString());
    return new CacheFile(*std::move(opened));
  }();
  return *file;
}

v1::SessionRef Ref(const std::string& session) {
  v1::SessionRef ref;
  ref.set_session_id(session);
  return ref;
}

v1::PutOpen OpenOf(const std::string& session, const std::string& codec, uint64_t begin,
                   uint64_t end) {
  const CacheInfo& info = Example().info();
  v1::PutOpen open;
  *open.mutable_session() = Ref(session);
  open.mutable_identity()->set_model_id(info.metadata.model);
  *open.mutable_geometry() = GeometryToProto(info.metadata.geometry);
  open.mutable_codec()->set_name(codec);
  open.set_dtype(v1::DTYPE_BF16);
  open.set_token_begin(begin);
  open.set_token_count(static_cast<uint32_t>(end - begin));
  open.mutable_token_ids()->Add(info.token_ids.begin() + begin, info.token_ids.begin() + end);
  return open;
}

v1::PutCommit Seal(bool seal) {
  v1::PutCommit commit;
  commit.set_seal(seal);
  return commit;
}

ExampleRun::ExampleRun(uint64_t begin) {
  for (ConstPlaneView p : Example().view().planes) {
    p.data += static_cast<int64_t>(begin) * p.token_stride;
    planes_.push_back(p);
  }
}

RunSource ExampleRun::source() const { return {{Dtype::kBf16, planes_, {}}, Example().owner()}; }

absl::StatusOr<v1::PutCommitted> PutExample(Client& client, const v1::PutOpen& open, bool seal,
                                            PutOrder order) {
  const ExampleRun run(open.token_begin());
  PutRunOptions options;
  options.order = order;
  return client.PutRun(open, run.source(), Seal(seal), options);
}

v1::Rectangle MakeRectangle(uint32_t layer_begin, uint32_t layer_count, uint64_t token_begin,
                            uint32_t token_count) {
  v1::Rectangle r;
  r.set_layer_begin(layer_begin);
  r.set_layer_count(layer_count);
  r.set_token_begin(token_begin);
  r.set_token_count(token_count);
  return r;
}

std::vector<uint8_t> ExampleBytes(const v1::Rectangle& r) {
  const auto planes = PlanesOf(Example().geometry(), r);
  if (!planes.ok()) Die(planes.status().ToString());
  const ConstKvView view = Example().view();
  std::vector<uint8_t> out;
  for (const RectanglePlane& p : *planes) {
    for (int h = p.head_begin; h < p.head_end; ++h) {
      const uint8_t* from = view.At(p.plane, h, static_cast<int64_t>(r.token_begin()), 0);
      out.insert(out.end(), from, from + size_t{2} * r.token_count() * p.head_dim);
    }
  }
  return out;
}

v1::GetRequest RequestOf(const std::string& session, uint64_t token_begin, uint64_t token_end,
                         uint64_t layer_begin, uint64_t layer_end) {
  v1::GetRequest request;
  *request.mutable_session() = Ref(session);
  request.mutable_tokens()->set_begin(token_begin);
  request.mutable_tokens()->set_end(token_end);
  request.mutable_layers()->set_begin(layer_begin);
  request.mutable_layers()->set_end(layer_end);
  request.set_crc32c(true);
  return request;
}

absl::StatusOr<Fetched> Fetch(Client& client, const v1::GetRequest& request) {
  auto stream = client.OpenGet(request);
  if (!stream.ok()) return stream.status();
  Fetched out;
  out.header = stream->header();
  out.geometry = stream->geometry();
  out.dtype = stream->dtype();
  const int64_t element = static_cast<int64_t>(DtypeSize(out.dtype));
  std::vector<PlaneView> views;
  for (uint64_t l = out.header.layers().begin(); l < out.header.layers().end(); ++l) {
    for (const StreamGeometry& s : out.geometry.layers[l].streams) {
      const int64_t row = element * s.head_dim, head = row * static_cast<int64_t>(out.tokens());
      out.planes.emplace_back(static_cast<size_t>(head * s.heads));
      views.push_back({out.planes.back().data(), head, row, element});
    }
  }
  for (;;) {
    auto piece = stream->Next();
    if (!piece.ok()) return piece.status();
    if (!piece->has_value()) return out;
    absl::Status s =
        (*piece)->CopyTo({out.dtype, views, {}}, static_cast<int>(out.header.layers().begin()),
                         out.header.tokens().begin(), out.tokens());
    if (!s.ok()) return s;
  }
}

std::string DifferenceFromExample(const Fetched& fetched, uint64_t shift) {
  const CacheFile& example = Example();
  const ConstKvView view = example.view();
  const int first =
      FirstPlane(example.geometry(), static_cast<int>(fetched.header.layers().begin()));
  if (fetched.dtype != Dtype::kBf16) return "another dtype";
  for (size_t p = 0; p < fetched.planes.size(); ++p) {
    const ConstPlaneView& plane = view.planes[first + p];
    const size_t row = static_cast<size_t>(plane.token_stride) * fetched.tokens();
    const size_t heads = fetched.planes[p].size() / row;
    for (size_t h = 0; h < heads; ++h) {
      const uint8_t* expected =
          view.At(static_cast<int>(first + p), static_cast<int64_t>(h),
                  static_cast<int64_t>(fetched.header.tokens().begin() - shift), 0);
      if (std::memcmp(fetched.planes[p].data() + h * row, expected, row) != 0) {
        return absl::StrCat("plane ", first + p, " head ", h, " differs");
      }
    }
  }
  return "";
}

bool HoldsNothing(Client& client) {
  const auto info = client.GetServerInfo();
  if (!info.ok()) Die(info.status().ToString());
  const auto& u = info->usage();
  return u.used_bytes() == 0 && u.stored_bytes() == 0 && u.sessions() == 0 && u.chunks() == 0;
}

}  // namespace kvcask
