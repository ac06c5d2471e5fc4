#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>

#include <memory>

#include "client/cc/convert.h"
#include "client/cli/cache_file.h"
#include "client/cli/command.h"

namespace kvcask {
namespace {

struct GetArgs {
  std::string session, ns, out, tokens, layers, dtype;
  int64_t position_offset = 0;
  bool layer_major = false, json = false;
};

absl::StatusOr<v1::Dtype> ParseDtypeName(const std::string& name) {
  if (name.empty()) return v1::DTYPE_UNSPECIFIED;
  for (Dtype d : {Dtype::kBf16, Dtype::kF16, Dtype::kF32}) {
    if (name == DtypeName(d)) return DtypeToProto(d);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype ", Printable(name), ": expected bf16, f16 or f32"));
}

absl::StatusOr<v1::GetRequest> MakeRequest(const GetArgs& args) {
  v1::GetRequest request;
  request.mutable_session()->set_namespace_(args.ns);
  request.mutable_session()->set_session_id(args.session);
  const auto tokens = ParseRange("--tokens", args.tokens);
  if (!tokens.ok()) return tokens.status();
  const auto layers = ParseRange("--layers", args.layers);
  if (!layers.ok()) return layers.status();
  const auto dtype = ParseDtypeName(args.dtype);
  if (!dtype.ok()) return dtype.status();
  *request.mutable_tokens() = *tokens;
  *request.mutable_layers() = *layers;
  request.set_dtype(*dtype);
  if (args.layer_major) request.set_order(v1::GetRequest::ORDER_LAYER_MAJOR);
  request.set_position_offset(args.position_offset);
  request.set_crc32c(true);
  return request;
}

// What the file will say of itself: the layers asked for, numbered from 0.
absl::StatusOr<CacheInfo> InfoOf(const GetStream& stream, const GetArgs& args) {
  const v1::GetHeader& h = stream.header();
  const int layers = static_cast<int>(stream.geometry().layers.size());
  if (h.layers().begin() >= h.layers().end() || h.layers().end() > uint64_t(layers) ||
      h.tokens().begin() >= h.tokens().end()) {
    return absl::InternalError("the daemon's header has an empty range");
  }
  ShardRange part;
  part.layer_begin = static_cast<int>(h.layers().begin());
  part.layer_end = static_cast<int>(h.layers().end());
  for (const LayerGeometry& l : stream.geometry().layers) {
    for (const StreamGeometry& s : l.streams) part.head_end = std::max(part.head_end, s.heads);
  }
  auto geometry = SliceGeometry(stream.geometry(), part);
  if (!geometry.ok()) return Annotate(geometry.status(), "--layers");
  CacheInfo info;
  info.metadata.model = h.identity().model_id();
  info.metadata.geometry = *std::move(geometry);
  info.metadata.dtype = stream.dtype();
  info.metadata.tokens = static_cast<int64_t>(h.tokens().end() - h.tokens().begin());
  info.metadata.first_position =
      static_cast<int64_t>(h.first_position() + h.tokens().begin()) + args.position_offset;
  info.extra_key = h.identity().extra_key();
  info.layer_begin = part.layer_begin;
  info.token_ids.assign(h.token_ids().begin(), h.token_ids().end());
  if (!info.token_ids.empty() && info.token_ids.size() != size_t(info.metadata.tokens)) {
    return absl::InternalError(absl::StrCat("the daemon sent ", info.token_ids.size(),
                                            " token ids for ", info.metadata.tokens, " tokens"));
  }
  return info;
}

void WarnOfAbsent(const v1::GetHeader& header) {
  uint64_t tokens = 0;
  for (const auto& a : header.absent()) tokens += a.tokens().end() - a.tokens().begin();
  if (tokens == 0) return;
  std::fprintf(stderr,
               "kvcask: %d sliding layers no longer hold %llu tokens in all; zeros stand in the "
               "file for them\n",
               header.absent_size(), static_cast<unsigned long long>(tokens));
}

absl::Status Get(const Globals& globals, const GetArgs& args) {
  const auto request = MakeRequest(args);
  if (!request.ok()) return request.status();
  auto client = globals.Connect();
  if (!client.ok()) return client.status();
  const absl::Time start = absl::Now();
  auto stream = client->OpenGet(*request);
  if (!stream.ok()) return stream.status();
  const v1::GetHeader& header = stream->header();
  const auto info = InfoOf(*stream, args);
  if (!info.ok()) return info.status();
  auto file = CacheFileWriter::Create(args.out, *info);
  if (!file.ok()) return file.status();

  ProgressBar bar("get");
  for (;;) {
    auto piece = stream->Next();
    if (!piece.ok()) return piece.status();
    if (!piece->has_value()) break;
    absl::Status s = (*piece)->CopyTo(file->view(), info->layer_begin, header.tokens().begin(),
                                      static_cast<uint64_t>(info->metadata.tokens));
    if (!s.ok()) return s;
    if (!args.json) bar.Show(stream->received_bytes(), header.payload_bytes());
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (absl::Status s = file->Publish(); !s.ok()) return s;
  bar.Clear();
  WarnOfAbsent(header);
  if (args.json) {
    PrintJson({{"session", args.session},
               {"namespace", args.ns},
               {"out", args.out},
               {"model_id", header.identity().model_id()},
               {"codec", header.codec()},
               {"dtype", std::string(DtypeName(stream->dtype()))},
               {"tokens", info->metadata.tokens},
               {"token_begin", header.tokens().begin()},
               {"token_end", header.tokens().end()},
               {"layer_begin", header.layers().begin()},
               {"layer_end", header.layers().end()},
               {"total_tokens", header.total_tokens()},
               {"first_position", info->metadata.first_position},
               {"payload_bytes", header.payload_bytes()},
               {"seconds", seconds}});
  } else {
    std::printf("%s: %lld tokens, layers %llu to %llu, %s, %.0f ms\n", Printable(args.out).c_str(),
                static_cast<long long>(info->metadata.tokens),
                static_cast<unsigned long long>(header.layers().begin()),
                static_cast<unsigned long long>(header.layers().end()),
                HumanBytes(header.payload_bytes()).c_str(), seconds * 1e3);
  }
  return absl::OkStatus();
}

}  // namespace

void AddGetCommand(CLI::App* app, Globals* globals) {
  auto args = std::make_shared<GetArgs>();
  CLI::App* c = app->add_subcommand("get", "Write a session, or part of it, as a cache file");
  c->add_option("-s,--session", args->session, "Session to read")->required();
  c->add_option("-o,--out", args->out, "File to write; seen under this name when it is whole")
      ->required();
  c->add_option("--namespace", args->ns, "Namespace of the session");
  c->add_option("--tokens", args->tokens, "A:B, counted from the session's first (default: all)");
  c->add_option("--layers", args->layers, "A:B (default: all)");
  c->add_option("--position-offset", args->position_offset,
                "Added to every position before keys are rotated; may be negative");
  c->add_option("--dtype", args->dtype, "bf16, f16 or f32 (default: as it was put)");
  c->add_flag("--layer-major", args->layer_major,
              "Fetch layer by layer instead of page by page; the file is the same");
  c->add_flag("--json", args->json, "Print the result as JSON");
  OnRun(c, globals, [=] { return Get(*globals, *args); });
}

}  // namespace kvcask
