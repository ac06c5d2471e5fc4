// The least that a gRPC service can do with bulk messages, as the daemon moves them: raw
// ByteBuffers through the callback API, on the same runtime settings. What it carries is the
// ceiling of this transport on a machine.
//
//   bare_server ADDRESS...      prints "listening ADDRESS" for each
//
// Methods, all streams of ByteBuffers in both directions:
//   /bare/Sink    reads to the end and drops; answers the bytes read (decimal)
//   /bare/Load    reads to the end and keeps the messages under the first one's text
//   /bare/Source  the first message names what Load kept: sends it back, message by message
#include <absl/strings/str_cat.h>
#include <absl/synchronization/mutex.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cc/runtime.h"

namespace kvcask {
namespace {

using Messages = std::vector<grpc::ByteBuffer>;

struct Kept {
  absl::Mutex mu;
  std::map<std::string, std::shared_ptr<const Messages>> runs ABSL_GUARDED_BY(mu);
};

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (buffer.Dump(&slices).ok()) {
    for (const grpc::Slice& s : slices) text.append(s.begin(), s.end());
  }
  return text;
}

class Sink : public grpc::ServerGenericBidiReactor {
 public:
  Sink(Kept* kept, bool keep) : kept_(kept), keep_(keep) { StartRead(&in_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      bytes_ += in_.Length();
      if (keep_) messages_.push_back(in_);
      in_.Clear();
      StartRead(&in_);
      return;
    }
    if (keep_ && !messages_.empty()) {
      const std::string name = Text(messages_.front());
      messages_.erase(messages_.begin());
      absl::MutexLock lock(&kept_->mu);
      kept_->runs[name] = std::make_shared<const Messages>(std::move(messages_));
    }
    const grpc::Slice slice(absl::StrCat(bytes_));
    out_ = grpc::ByteBuffer(&slice, 1);
    StartWrite(&out_);
  }
  void OnWriteDone(bool) override { Finish(grpc::Status::OK); }
  void OnDone() override { delete this; }

 private:
  Kept* const kept_;
  const bool keep_;
  grpc::ByteBuffer in_, out_;
  uint64_t bytes_ = 0;
  Messages messages_;
};

class Source : public grpc::ServerGenericBidiReactor {
 public:
  explicit Source(Kept* kept) : kept_(kept) { StartRead(&in_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      absl::MutexLock lock(&kept_->mu);
      const auto found = kept_->runs.find(Text(in_));
      if (found != kept_->runs.end()) run_ = found->second;
    }
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) return Next();
    Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    if (run_ == nullptr) return Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "not loaded"));
    if (next_ == run_->size()) return Finish(grpc::Status::OK);
    out_ = (*run_)[next_++];
    StartWrite(&out_);
  }
  Kept* const kept_;
  grpc::ByteBuffer in_, out_;
  std::shared_ptr<const Messages> run_;
  size_t next_ = 0;
};

class Service : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    if (context->method() == "/bare/Source") return new Source(&kept_);
    return new Sink(&kept_, context->method() == "/bare/Load");
  }

 private:
  Kept kept_;
};

int Main(int argc, char** argv) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  InitClientRuntime();
  Service service;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  std::vector<int> ports(argc, 0);
  for (int i = 1; i < argc; ++i) {
    builder.AddListeningPort(argv[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  for (int i = 1; i < argc; ++i) {
    const std::string address = argv[i];
    const bool tcp = address.rfind("unix:", 0) != 0;
    std::printf("listening %s\n",
                tcp ? absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[i]).c_str()
                    : address.c_str());
  }
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

}  // namespace
}  // namespace kvcask

int main(int argc, char** argv) { return kvcask::Main(argc, argv); }
