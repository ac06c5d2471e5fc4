// Speaks the protocol to a live daemon: conversations made by a grammar, most of them mutated,
// by several clients at once over its unix socket.
//
//   protocol_fuzz [--seconds=20] [--clients=4] [--seed=N] [--turn=N]
//
// The seed is printed; each turn has its own, and a failure prints the turn's: --seed=S
// --turn=T repeats that turn alone. What must hold:
//   - the daemon lives, and answers GetServerInfo between turns
//   - a conversation that was not mutated succeeds, and a raw put comes back byte for byte
//   - a mutated one ends, with a code that says what is wrong with it: never INTERNAL or
//     UNKNOWN from our own handlers, and with a text
//   - when all that was stored is deleted and all leases have ended (the daemon bounds them)
//     nothing is left: no session, no byte of the budget
// To be run for an hour by hand under the address sanitizer, 20 seconds in a test.
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>
#include <grpcpp/create_channel.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "client/cc/raw_call.h"
#include "client/cc/runtime.h"
#include "codec/base/crc32c.h"
#include "kvcask/v1/cache.pb.h"
#include "kvcask/v1/profiles.pb.h"
#include "kvcask/v1/sessions.pb.h"
#include "tests/e2e/daemon.h"
#include "tests/fuzz/mutate.h"

namespace kvcask::fuzz {
namespace {

// Short, so that leases whose answers nobody read (a cancelled call) end while we wait.
constexpr uint64_t kMaxLeaseSeconds = 2;

constexpr char kProfile[] = "examples/smollm2-135m-layer.fklt.profile.safetensors";

struct Flags {
  double seconds = 20;
  int clients = 4;
  uint64_t seed = 0;
  std::optional<uint64_t> turn;
} flags;

struct Failure {
  uint64_t turn;
  std::string what;
};

// One call, as messages.
struct Conversation {
  std::string method;                 // "/kvcask.v1.CacheService/Put"
  std::vector<std::string> messages;  // encoded
  bool typed = false;                 // gRPC parses the requests, and says INTERNAL to noise
  bool mutated = false;
  bool bytes_mutated = false;  // or the number of messages
  bool cancel = false;         // cut instead of ended
  std::string payload;         // of a raw put: what a get of all brings
};

struct Answer {
  absl::Status status;
  std::vector<std::string> messages;
};

std::string TextOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (buffer.Dump(&slices).ok()) {
    for (const grpc::Slice& s : slices) text.append(s.begin(), s.end());
  }
  return text;
}

class Speaker {
 public:
  Speaker(const std::string& address, std::string ns, const std::string* profile)
      : ns_(std::move(ns)), profile_(profile) {
    grpc::ChannelArguments args;
    args.SetMaxReceiveMessageSize(-1);
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
  }

  // "" or what went wrong.
  std::string Turn(uint64_t seed) {
    Random random(seed);
    if (OneIn(random, 4)) return ValidPut(random, seed);
    Conversation c = Any(random, seed);
    Mutate(&c, random);
    const Answer a = Say(c);
    std::string wrong = Judge(c, a);
    if (wrong.empty() && c.method == kPut && !c.messages.empty() && OneIn(random, 4)) {
      wrong = Judge(c, Say(c));  // a replay
    }
    return wrong;
  }

  // Sessions that messages named, mutated or not; forgets them.
  std::set<std::pair<std::string, std::string>> TakeNamed() { return std::exchange(named_, {}); }

 private:
  static constexpr char kPut[] = "/kvcask.v1.CacheService/Put";
  static constexpr char kGet[] = "/kvcask.v1.CacheService/Get";

  v1::SessionRef Session(Random& random, uint64_t seed, bool fresh) {
    v1::SessionRef ref;
    ref.set_namespace_(ns_);
    ref.set_session_id(fresh ? absl::StrCat("f", absl::Hex(seed))
                             : absl::StrCat("s", Below(random, 5)));
    return ref;
  }

  void Identity(Random& random, v1::ModelIdentity* identity) {
    identity->set_model_id(OneIn(random, 8) ? "another" : "model");
    if (OneIn(random, 4)) identity->set_extra_key("salt");
  }

  void MakeGeometry(Random& random, v1::Geometry* geometry) {
    const uint64_t layers = 1 + Below(random, 3);
    for (uint64_t l = 0; l < layers; ++l) {
      v1::Layer* layer = geometry->add_layers();
      layer->set_kind(v1::Layer::KIND_FULL);
      const uint32_t heads = static_cast<uint32_t>(1 + Below(random, 2));
      const uint32_t dim = static_cast<uint32_t>(4 << Below(random, 3));
      for (const v1::StreamKind kind : {v1::STREAM_KIND_K, v1::STREAM_KIND_V}) {
        v1::Stream* s = layer->add_streams();
        s->set_kind(kind);
        s->set_heads(heads);
        s->set_head_dim(dim);
      }
    }
  }

  // open, rectangles that cover the run once, commit. Token ids, if any, count up from
  // `first_id`; without it they are those of many other puts: pages of equal ids are
  // interchangeable, and a get may give those of another.
  Conversation Put(Random& random, const v1::SessionRef& session, const std::string& codec,
                   std::optional<uint32_t> first_id = std::nullopt) {
    Conversation c;
    c.method = kPut;
    v1::PutRequest request;
    v1::PutOpen& open = *request.mutable_open();
    *open.mutable_session() = session;
    Identity(random, open.mutable_identity());
    MakeGeometry(random, open.mutable_geometry());
    open.mutable_codec()->set_name(codec);
    open.set_dtype(v1::DTYPE_BF16);
    const uint32_t tokens = static_cast<uint32_t>(1 + Below(random, 300));
    open.set_token_count(tokens);
    if (OneIn(random, 2)) {
      for (uint32_t t = 0; t < tokens; ++t) open.add_token_ids(first_id ? *first_id + t : t % 7);
    }
    if (OneIn(random, 2)) open.set_put_id(absl::StrCat("id", Below(random, 20)));
    if (OneIn(random, 4)) open.set_ttl_seconds(3600);
    c.messages.push_back(request.SerializeAsString());
    // Layer by layer, or all layers in runs of tokens; the payload in the order of a get of
    // one rectangle is known for one layer at a time only.
    const v1::Geometry geometry = open.geometry();
    for (int l = 0; l < geometry.layers_size(); ++l) {
      const v1::Stream& s = geometry.layers(l).streams(0);
      const uint32_t cut =
          OneIn(random, 2) ? tokens : 1 + static_cast<uint32_t>(Below(random, tokens));
      for (uint32_t t = 0; t < tokens;) {
        const uint32_t n = std::min(cut, tokens - t);
        std::string payload(size_t{2} * s.heads() * s.head_dim() * n * 2, '\0');
        for (size_t i = 0; i < payload.size(); i += 2) {
          payload[i] = static_cast<char>(random());
          payload[i + 1] = static_cast<char>(0x3c + Below(random, 8));  // finite
        }
        request.Clear();
        v1::KvData& data = *request.mutable_data();
        *data.mutable_rectangle() = MakeRectangle(static_cast<uint32_t>(l), 1, t, n);
        if (OneIn(random, 2)) {
          data.set_crc32c(
              Crc32c({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()}));
        }
        data.set_payload(payload);
        if (n == tokens) c.payload += payload;
        c.messages.push_back(request.SerializeAsString());
        t += n;
      }
      if (cut != tokens) whole_ = false;
    }
    request.Clear();
    request.mutable_commit()->set_seal(!OneIn(random, 4));
    c.messages.push_back(request.SerializeAsString());
    return c;
  }

  template <typename Request>
  static Conversation Unary(const char* method, const Request& request, bool typed = true) {
    Conversation c;
    c.method = method;
    c.messages = {request.SerializeAsString()};
    c.typed = typed;
    return c;
  }

  Conversation Any(Random& random, uint64_t seed) {
    const v1::SessionRef session = Session(random, seed, OneIn(random, 2));
    switch (Below(random, 18)) {
      case 0: {
        v1::GetRequest r;
        if (OneIn(random, 4)) {
          r.mutable_prefix()->set_namespace_(ns_);
          Identity(random, r.mutable_prefix()->mutable_identity());
          for (int i = 0; i < 256; ++i) r.mutable_prefix()->add_token_ids(i % 7);
        } else {
          *r.mutable_session() = session;
        }
        r.mutable_tokens()->set_end(Below(random, 100));
        r.mutable_layers()->set_end(Below(random, 3));
        r.set_crc32c(OneIn(random, 2));
        r.set_dtype(static_cast<v1::Dtype>(Below(random, 4)));
        r.set_position_offset(static_cast<int64_t>(Below(random, 3)));
        return Unary(kGet, r, /*typed=*/false);
      }
      case 1: {
        v1::LookupRequest r;
        r.mutable_prefix()->set_namespace_(ns_);
        Identity(random, r.mutable_prefix()->mutable_identity());
        for (int i = 0; i < 300; ++i) r.mutable_prefix()->add_token_ids(i % 7);
        r.set_lease_seconds(Below(random, kMaxLeaseSeconds + 2));
        return Unary("/kvcask.v1.CacheService/Lookup", r);
      }
      case 2: {
        v1::CreateSessionRequest r;
        *r.mutable_session() = session;
        (*r.mutable_labels())["team"] = "fuzz";
        return Unary("/kvcask.v1.SessionService/CreateSession", r);
      }
      case 3: {
        v1::StatSessionRequest r;
        *r.mutable_session() = session;
        return Unary("/kvcask.v1.SessionService/StatSession", r);
      }
      case 4: {
        v1::ListSessionsRequest r;
        r.set_namespace_(ns_);
        r.set_page_size(static_cast<uint32_t>(Below(random, 20)));
        return Unary("/kvcask.v1.SessionService/ListSessions", r);
      }
      case 5: {
        v1::DeleteSessionRequest r;
        *r.mutable_session() = session;
        r.set_allow_missing(OneIn(random, 2));
        return Unary("/kvcask.v1.SessionService/DeleteSession", r);
      }
      case 6:
        return Profile(random);
      case 7: {
        v1::ForkSessionRequest r;
        *r.mutable_from() = session;
        r.set_session_id(OneIn(random, 2) ? absl::StrCat("fork", absl::Hex(seed))
                                          : Session(random, seed, false).session_id());
        r.set_tokens(Below(random, 300));
        r.set_all(OneIn(random, 2));
        return Unary("/kvcask.v1.SessionService/ForkSession", r);
      }
      case 8: {
        v1::RewindSessionRequest r;
        *r.mutable_session() = session;
        r.set_tokens(Below(random, 300));
        r.set_expected_version(Below(random, 3));
        return Unary("/kvcask.v1.SessionService/RewindSession", r);
      }
      case 9: {
        v1::UpdateSessionRequest r;
        *r.mutable_session() = session;
        if (OneIn(random, 2)) r.set_pinned(OneIn(random, 2));
        if (OneIn(random, 2)) r.set_ttl_seconds(Below(random, 3));
        r.set_replace_labels(OneIn(random, 2));
        (*r.mutable_labels())["team"] = "fuzz";
        return Unary("/kvcask.v1.SessionService/UpdateSession", r);
      }
      case 10: {
        v1::AcquireLeaseRequest r;
        *r.mutable_session() = session;
        r.set_seconds(1 + Below(random, kMaxLeaseSeconds));
        return Unary("/kvcask.v1.SessionService/AcquireLease", r);
      }
      case 11: {
        v1::RenewLeaseRequest r;
        r.set_lease_id(lease_id_);
        r.set_seconds(1 + Below(random, kMaxLeaseSeconds));
        return Unary("/kvcask.v1.SessionService/RenewLease", r);
      }
      case 12: {
        v1::ReleaseLeaseRequest r;
        r.set_lease_id(lease_id_);
        return Unary("/kvcask.v1.SessionService/ReleaseLease", r);
      }
      default:
        return Put(random, session, OneIn(random, 2) ? "raw" : "int8");
    }
  }

  // A profile's header lies about its tensors; or its stream about the file.
  Conversation Profile(Random& random) {
    Conversation c;
    c.method = "/kvcask.v1.ProfileService/AddProfile";
    c.typed = true;
    std::string file = *profile_;
    for (uint64_t i = 1 + Below(random, 3); i > 0; --i) {
      const size_t at = Below(random, std::min<size_t>(file.size(), 4096));
      OneIn(random, 2) ? file[at] = static_cast<char>('0' + Below(random, 10))
                       : file[at] = static_cast<char>(random());
    }
    if (OneIn(random, 3)) file.resize(Below(random, file.size()));
    v1::AddProfileRequest r;
    r.mutable_open()->set_size_bytes(file.size());
    c.messages.push_back(r.SerializeAsString());
    for (size_t at = 0; at < file.size(); at += 1 << 20) {
      r.set_data(file.substr(at, 1 << 20));
      c.messages.push_back(r.SerializeAsString());
    }
    c.mutated = true;
    return c;
  }

  template <typename Request>
  static bool MutateAs(std::string* bytes, Random& random) {
    Request r;
    if (!r.ParseFromString(*bytes)) return false;
    MutateField(&r, random);
    *bytes = r.SerializeAsString();
    return true;
  }
  static bool MutateTyped(const std::string& method, std::string* bytes, Random& random) {
    if (method == kPut) return MutateAs<v1::PutRequest>(bytes, random);
    if (method == kGet) return MutateAs<v1::GetRequest>(bytes, random);
    if (absl::EndsWith(method, "Lookup")) return MutateAs<v1::LookupRequest>(bytes, random);
    if (absl::EndsWith(method, "CreateSession"))
      return MutateAs<v1::CreateSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "StatSession"))
      return MutateAs<v1::StatSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "ListSessions"))
      return MutateAs<v1::ListSessionsRequest>(bytes, random);
    if (absl::EndsWith(method, "DeleteSession"))
      return MutateAs<v1::DeleteSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "ForkSession"))
      return MutateAs<v1::ForkSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "RewindSession"))
      return MutateAs<v1::RewindSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "UpdateSession"))
      return MutateAs<v1::UpdateSessionRequest>(bytes, random);
    if (absl::EndsWith(method, "AcquireLease"))
      return MutateAs<v1::AcquireLeaseRequest>(bytes, random);
    if (absl::EndsWith(method, "RenewLease"))
      return MutateAs<v1::RenewLeaseRequest>(bytes, random);
    if (absl::EndsWith(method, "ReleaseLease"))
      return MutateAs<v1::ReleaseLeaseRequest>(bytes, random);
    return MutateAs<v1::AddProfileRequest>(bytes, random);
  }

  static void Mutate(Conversation* c, Random& random) {
    c->mutated = true;
    for (uint64_t i = 1 + Below(random, 3); i > 0; --i) {
      if (c->messages.empty()) return;
      const size_t at = Below(random, c->messages.size());
      switch (Below(random, 10)) {
        case 0:  // a message more, less, or in another place
          c->messages.insert(c->messages.begin() + at,
                             c->messages[Below(random, c->messages.size())]);
          c->bytes_mutated = true;
          break;
        case 1:
          c->messages.erase(c->messages.begin() + at);
          c->bytes_mutated = true;
          break;
        case 2:
          std::swap(c->messages[at], c->messages[Below(random, c->messages.size())]);
          break;
        case 3:
          c->cancel = true;
          c->messages.resize(at);
          c->bytes_mutated = true;
          break;
        case 4:  // a flood of tiny messages
          if (OneIn(random, 8)) {
            const std::string tiny = OneIn(random, 2) ? "" : c->messages[at].substr(0, 40);
            c->messages.insert(c->messages.begin() + at, 2000, tiny);
            c->bytes_mutated = true;
          }
          break;
        case 5:
        case 6:
          MutateBytes(&c->messages[at], random);
          c->bytes_mutated = true;
          break;
        default:
          MutateTyped(c->method, &c->messages[at], random);
      }
    }
  }

  void Note(const v1::SessionRef& ref) { named_.emplace(ref.namespace_(), ref.session_id()); }

  Answer Say(const Conversation& c) {
    for (const std::string& m : c.messages) {
      v1::PutRequest put;
      if (c.method == kPut && put.ParseFromString(m) && put.has_open()) Note(put.open().session());
      v1::CreateSessionRequest create;
      if (absl::EndsWith(c.method, "CreateSession") && create.ParseFromString(m))
        Note(create.session());
      v1::ForkSessionRequest fork;
      if (absl::EndsWith(c.method, "ForkSession") && fork.ParseFromString(m)) {
        v1::SessionRef to = fork.from();
        to.set_session_id(fork.session_id());
        Note(to);
      }
    }
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    RawCall call(channel_, c.method, std::move(context), 64);
    for (const std::string& m : c.messages) {
      const grpc::Slice slice(m);
      if (!call.Write(grpc::ByteBuffer(&slice, 1))) break;
    }
    if (c.cancel) {
      call.Cancel();
    } else {
      call.WritesDone();
    }
    Answer a;
    grpc::ByteBuffer message;
    while (call.Read(&message)) a.messages.push_back(TextOf(message));
    a.status = call.Finish();
    NoteLease(c.method, a);
    return a;
  }

  // Of the last lease that was granted, for renewals and releases to come.
  void NoteLease(const std::string& method, const Answer& a) {
    v1::Lease lease;
    v1::LookupResponse found;
    for (const std::string& m : a.messages) {
      if (absl::EndsWith(method, "AcquireLease") && lease.ParseFromString(m)) {
        lease_id_ = lease.lease_id();
      } else if (absl::EndsWith(method, "Lookup") && found.ParseFromString(m) &&
                 !found.lease_id().empty()) {
        lease_id_ = found.lease_id();
      }
    }
  }

  static std::string Judge(const Conversation& c, const Answer& a) {
    const std::string where = absl::StrCat(c.method, ": ", Describe(a.status));
    switch (a.status.code()) {
      case absl::StatusCode::kOk:
        return "";
      case absl::StatusCode::kCancelled:
        return c.cancel ? "" : where;
      case absl::StatusCode::kDeadlineExceeded:
      case absl::StatusCode::kUnavailable:
        return where;
      case absl::StatusCode::kInternal:
      case absl::StatusCode::kUnknown:
      case absl::StatusCode::kUnimplemented:
        // gRPC's own answers: to noise where it parses, to a unary call without its request.
        if (c.typed || (c.method == kGet && c.messages.size() != 1)) return "";
        if (a.status.code() == absl::StatusCode::kUnimplemented) break;
        return where;
      case absl::StatusCode::kDataLoss:
        if (DetailsOf(a.status).reason == "PAYLOAD_CHECKSUM" ||
            DetailsOf(a.status).reason == "BAD_PROFILE") {
          break;
        }
        return where;
      default:
        break;
    }
    return a.status.message().empty() ? absl::StrCat(where, ": without a text") : "";
  }

  std::string ValidPut(Random& random, uint64_t seed) {
    const bool raw = OneIn(random, 2);
    whole_ = true;
    // A name that no mutation of another turn's comes near.
    v1::SessionRef session;
    session.set_namespace_(ns_);
    session.set_session_id(absl::StrCat("good", absl::Hex(seed * 0x9e3779b97f4a7c15)));
    const auto first_id = static_cast<uint32_t>(random());  // these bytes are no one else's
    const Conversation put = Put(random, session, raw ? "raw" : "int8", first_id);
    const Answer stored = Say(put);
    if (stored.status.code() == absl::StatusCode::kResourceExhausted) return "";  // others' load
    if (!stored.status.ok()) return absl::StrCat("a good put: ", Describe(stored.status));
    v1::GetRequest request;
    *request.mutable_session() = session;
    request.set_order(v1::GetRequest::ORDER_LAYER_MAJOR);
    const Answer got = Say(Unary(kGet, request, false));
    if (!got.status.ok()) return absl::StrCat("a good get: ", Describe(got.status));
    std::string payload;
    std::vector<int> layers;
    bool one_rectangle_a_layer = true;
    for (const std::string& m : got.messages) {
      v1::GetResponse r;
      if (!r.ParseFromString(m)) return "a good get: a message that cannot be read";
      if (!r.has_data()) continue;
      one_rectangle_a_layer = one_rectangle_a_layer && r.data().rectangle().layer_count() == 1 &&
                              r.data().rectangle().token_begin() == 0;
      payload += r.data().payload();
    }
    if (raw && whole_ && one_rectangle_a_layer && payload != put.payload) {
      return "a good get: other bytes than were put";
    }
    v1::DeleteSessionRequest gone;
    *gone.mutable_session() = session;
    const Answer deleted = Say(Unary("/kvcask.v1.SessionService/DeleteSession", gone));
    if (!deleted.status.ok()) return absl::StrCat("a good delete: ", Describe(deleted.status));
    return "";
  }

  const std::string ns_;
  const std::string* const profile_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string lease_id_;
  std::set<std::pair<std::string, std::string>> named_;
  bool whole_ = true;  // every layer of the last Put came in one rectangle
};

int Main(int argc, char** argv) {
  flags.seed = std::random_device()();
  for (int i = 1; i < argc; ++i) {
    absl::string_view a = argv[i];
    uint64_t turn = 0;
    const bool known =
        (absl::ConsumePrefix(&a, "--seconds=") && absl::SimpleAtod(a, &flags.seconds)) ||
        (absl::ConsumePrefix(&a, "--clients=") && absl::SimpleAtoi(a, &flags.clients)) ||
        (absl::ConsumePrefix(&a, "--seed=") && absl::SimpleAtoi(a, &flags.seed)) ||
        (absl::ConsumePrefix(&a, "--turn=") && absl::SimpleAtoi(a, &turn) &&
         (flags.turn = turn, true));
    if (!known) return 2;
  }
  InitClientRuntime();
  std::printf("protocol_fuzz --seed=%llu\n", static_cast<unsigned long long>(flags.seed));
  std::fflush(stdout);
  std::ifstream in(kProfile, std::ios::binary);
  const std::string profile{std::istreambuf_iterator<char>(in), {}};
  Daemon daemon({"--memory-budget", "256MiB", "--log-level", "error", "--idle-put-timeout", "5s",
                 "--max-lease", absl::StrCat(kMaxLeaseSeconds, "s")});
  Client client = daemon.Connect();
  std::vector<std::unique_ptr<Speaker>> speakers;
  for (int c = 0; c < flags.clients; ++c) {
    speakers.push_back(
        std::make_unique<Speaker>(daemon.unix_address(), absl::StrCat("n", c), &profile));
  }
  absl::Mutex mu;
  std::optional<Failure> failure;
  std::atomic<uint64_t> next{flags.turn.value_or(0)};
  std::atomic<bool> failed{false};
  const absl::Time end = absl::Now() + absl::Seconds(flags.seconds);
  uint64_t epochs = 0;
  const auto fail = [&](uint64_t turn, const std::string& what) {
    absl::MutexLock lock(&mu);
    if (!failure) failure = Failure{turn, what};
    failed = true;
  };
  while (!failed && absl::Now() < end) {
    const absl::Time epoch_end = std::min(end, absl::Now() + absl::Seconds(3));
    std::vector<std::thread> threads;
    for (int c = 0; c < flags.clients; ++c) {
      threads.emplace_back([&, c] {
        while (!failed && absl::Now() < epoch_end) {
          const uint64_t turn = next.fetch_add(1);
          if (flags.turn && turn != *flags.turn) return;
          const std::string wrong = speakers[c]->Turn(flags.seed * 1000003 + turn);
          if (!wrong.empty()) fail(turn, wrong);
        }
      });
    }
    for (std::thread& t : threads) t.join();
    ++epochs;
    // Everything that was named goes; then nothing may be left.
    for (const auto& s : speakers) {
      for (const auto& [ns, id] : s->TakeNamed()) {
        v1::SessionRef ref;
        ref.set_namespace_(ns);
        ref.set_session_id(id);
        (void)client.DeleteSession(ref, true);
      }
    }
    const auto profiles = client.ListProfiles();
    if (profiles.ok()) {
      for (const auto& p : *profiles) {
        std::string hex;
        for (unsigned char b : p.fingerprint())
          absl::StrAppend(&hex, absl::Hex(b, absl::kZeroPad2));
        (void)client.RemoveProfile(hex);
      }
    }
    const auto info = client.GetServerInfo();
    if (!info.ok()) {
      fail(next, absl::StrCat("the daemon: ", Describe(info.status())));
    } else if (!Eventually([&] { return HoldsNothing(client); })) {
      fail(next, absl::StrCat("something is left when all is deleted: ",
                              client.GetServerInfo()->usage().ShortDebugString()));
    }
    if (flags.turn) break;
  }
  if (daemon.process().Wait(absl::ZeroDuration())) {
    fail(next, "the daemon ended");
  }
  if (failure) {
    std::printf(
        "FAILED at or before turn %llu: %s\nrepeat: --seed=%llu --turn=%llu\nkvcaskd's log:\n%s\n",
        static_cast<unsigned long long>(failure->turn), failure->what.c_str(),
        static_cast<unsigned long long>(flags.seed), static_cast<unsigned long long>(failure->turn),
        daemon.Log().c_str());
    return 1;
  }
  std::printf("%llu turns in %llu epochs: nothing found\n",
              static_cast<unsigned long long>(next.load()),
              static_cast<unsigned long long>(epochs));
  return 0;
}

}  // namespace
}  // namespace kvcask::fuzz

int main(int argc, char** argv) { return kvcask::fuzz::Main(argc, argv); }
