// The kvcask command as a user runs it: what it prints, how it exits, and that a bad file is
// refused before anything is sent.
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/e2e/daemon.h"

namespace kvcask {
namespace {

using nlohmann::json;

constexpr char kCommand[] = "client/cli/kvcask";
constexpr char kFile[] = "examples/smollm2-135m-book-256.safetensors";

struct Output {
  int exit_code = -1;
  std::string out, err;
};

class CliTest : public testing::Test {
 protected:
  Output Run(std::vector<std::string> args, const std::string& server = "") {
    args.insert(args.begin(), kCommand);
    const std::string err_path = daemon_.folder().File(absl::StrCat("err-", runs_++));
    Process p(args, err_path,
              {"KVCASK_SERVER=" + (server.empty() ? daemon_.unix_address() : server)});
    Output o;
    o.out = p.ReadAll(kPatience);
    o.exit_code = p.Wait(kPatience).value_or(-1);
    std::ifstream in(err_path);
    o.err.assign(std::istreambuf_iterator<char>(in), {});
    return o;
  }
  json RunJson(std::vector<std::string> args) {
    args.push_back("--json");
    const Output o = Run(args);
    EXPECT_EQ(o.exit_code, 0) << o.err;
    json parsed = json::parse(o.out, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(parsed.is_discarded()) << o.out;
    return parsed;
  }
  std::string File(const std::string& name) { return daemon_.folder().File(name); }

  Daemon daemon_;
  int runs_ = 0;
};

TEST_F(CliTest, PutGetDiffIsByteExactForRaw) {
  const json put = RunJson({"put", kFile, "--session", "s", "--codec", "raw"});
  EXPECT_EQ(put["tokens"], 256);
  EXPECT_EQ(put["raw_bytes"], 5898240);
  EXPECT_EQ(put["codec"], "raw");
  EXPECT_EQ(put["sealed"], true);
  const Output get = Run({"get", "--session", "s", "--out", File("out")});
  EXPECT_EQ(get.exit_code, 0) << get.err;
  EXPECT_EQ(get.err, "");  // no progress bar in a pipe
  const Output diff = Run({"diff", kFile, File("out")});
  EXPECT_EQ(diff.exit_code, 0) << diff.err;
  EXPECT_TRUE(absl::StrContains(diff.out, "the same, byte for byte")) << diff.out;
  EXPECT_EQ(std::filesystem::exists(File("out.partial")), false);
}

TEST_F(CliTest, WhatGetWroteCanBePutAgain) {
  RunJson({"put", kFile, "--session", "s", "--codec", "raw", "--extra-key", "lora-1"});
  RunJson(
      {"get", "--session", "s", "--out", File("part"), "--tokens", "100:228", "--layers", "3:9"});
  const json put = RunJson({"put", File("part"), "--session", "t", "--codec", "raw"});
  EXPECT_EQ(put["tokens"], 128);
  const json stat = RunJson({"stat", "--session", "t"});
  EXPECT_EQ(stat["first_position"], 100);
  EXPECT_EQ(stat["extra_key"], "lora-1");
  RunJson({"get", "--session", "t", "--out", File("again")});
  EXPECT_EQ(Run({"diff", File("part"), File("again")}).exit_code, 0);
  const json diff = RunJson({"diff", kFile, File("part")});
  EXPECT_EQ(diff["exact"], true);
  EXPECT_EQ(diff["token_begin"], 100);
  EXPECT_EQ(diff["layer_begin"], 3);
  EXPECT_EQ(diff["layers"], 6);
  // Other layers, of the same shape, are not compared as if they were the same.
  RunJson(
      {"get", "--session", "s", "--out", File("other"), "--tokens", "100:228", "--layers", "4:10"});
  const Output other = Run({"diff", File("part"), File("other")});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(other.err, "layers 4 to 10")) << other.err;
}

TEST_F(CliTest, DiffTellsWhatALossyCodecDid) {
  RunJson({"put", kFile, "--session", "s", "--codec", "int8"});
  RunJson({"get", "--session", "s", "--out", File("out")});
  const Output diff = Run({"diff", kFile, File("out"), "--json"});
  EXPECT_EQ(diff.exit_code, 4);
  const json d = json::parse(diff.out);
  EXPECT_EQ(d["exact"], false);
  for (const char* stream : {"K", "V"}) {
    EXPECT_GT(d["streams"][stream]["relative_rms"], 0);
    EXPECT_LT(d["streams"][stream]["relative_rms"], .05);
    EXPECT_GT(d["streams"][stream]["max_abs_error"], 0);
    EXPECT_EQ(d["streams"][stream]["elements"], 30 * 3 * 64 * 256);
  }
  EXPECT_EQ(Run({"diff", kFile, File("out"), "--max-relative-rms", "0.05"}).exit_code, 0);
  EXPECT_EQ(Run({"diff", kFile, File("out"), "--max-relative-rms", "0.0001"}).exit_code, 4);
}

TEST_F(CliTest, ProjectionsFromASampleAreWhatTheStoreHoldsOfIt) {
  const std::string profile = "examples/smollm2-135m-layer.fklt.profile.safetensors";
  const json put = RunJson(
      {"put", kFile, "--session", "s", "--codec", "fklt", "--quality", "compact", "--profile",
       profile});
  const json rows = RunJson({"project", "--like", kFile, "--like", kFile, "--profile", profile,
                             "--codec", "fklt:compact", "--tokens", "256"});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["stored_bytes"], put["stored_bytes"]);
  EXPECT_EQ(rows[0]["raw_bytes"], put["raw_bytes"]);
  EXPECT_EQ(rows[0]["interval_one_session_bytes"], 0);  // twice the same
  EXPECT_EQ(rows[0]["projection"], true);
  const Output none = Run({"project", "--like", kFile});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(none.err, "fklt")) << none.err;
  EXPECT_EQ(Run({"project"}).exit_code, 1);
}

TEST_F(CliTest, AnMlaModelIsProjectedByItsLatentOrByWhatThatExpandsTo) {
  const std::string config = "codec/recipe/testdata/configs/deepseek-v3.1.json";
  const auto raw_bytes = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {"project", config, "--codec", "raw", "--tokens", "1024"};
    args.insert(args.end(), more.begin(), more.end());
    const json rows = RunJson(args);
    return rows.size() == 1 ? rows[0]["raw_bytes"].get<int64_t>() : 0;
  };
  EXPECT_EQ(raw_bytes({}), int64_t{1024} * 61 * (512 + 64) * 2);
  EXPECT_EQ(raw_bytes({"--decompressed"}), int64_t{1024} * 61 * 128 * (128 + 64 + 128) * 2);
}

TEST_F(CliTest, MeansOfACacheAreAProfileThatCodecsTake) {
  const json made = RunJson({"profile", "means", kFile, "--out", File("means"), "--name", "m"});
  EXPECT_EQ(made["tokens"], 252);
  const json plain = RunJson({"put", kFile, "--session", "a", "--codec", "turbo3"});
  RunJson({"put", kFile, "--session", "b", "--codec", "turbo3", "--profile", File("means")});
  const auto rms = [&](const std::string& session) {
    RunJson({"get", "--session", session, "--out", File(session)});
    return json::parse(Run({"diff", kFile, File(session), "--json"}).out)["streams"]["K"]
                      ["relative_rms"].get<double>();
  };
  EXPECT_LT(rms("b"), .9 * rms("a"));
  EXPECT_EQ(RunJson({"profile", "ls"})[0]["fingerprint"], made["fingerprint"]);
}

TEST_F(CliTest, ARecipeInAFileIsPutAndProjectedOrRefusedWithItsLine) {
  std::ofstream(File("good")) << "# boundary layers as they are\nall: turbo4\nlayers 0 -1: raw\n";
  std::ofstream(File("bad")) << "all: turbo4\nlayers 0 30: raw\n";
  const json put =
      RunJson({"put", kFile, "--session", "s", "--codec", "recipe", "--quality", "@" + File("good")});
  EXPECT_GT(put["ratio"], 2.5);
  const Output refused =
      Run({"put", kFile, "--session", "t", "--codec", "recipe", "--quality", "@" + File("bad")});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(refused.err, "line 2: layer 30 of a model with 30 layers"))
      << refused.err;
}

TEST_F(CliTest, StatLsLookupRm) {
  RunJson({"put", kFile, "--session", "s", "--codec", "int8", "--label", "a=b"});
  const json stat = RunJson({"stat", "--session", "s"});
  for (const char* key :
       {"raw_bytes", "stored_bytes", "unique_bytes", "ratio", "tokens", "codec"}) {
    EXPECT_TRUE(stat.contains(key)) << key;
  }
  EXPECT_EQ(stat["raw_bytes"], 5898240);
  EXPECT_GT(stat["ratio"], 1.8);
  EXPECT_EQ(stat["labels"]["a"], "b");
  const json totals = RunJson({"stat"});
  EXPECT_EQ(totals["sessions"], 1);
  EXPECT_EQ(totals["stored_bytes"], stat["stored_bytes"]);
  const json ls = RunJson({"ls"});
  ASSERT_EQ(ls.size(), 1u);
  EXPECT_EQ(ls[0]["session"], "s");
  const json lookup = RunJson({"lookup", kFile});
  EXPECT_EQ(lookup["tokens"], 256);
  EXPECT_EQ(lookup["held"][0]["codec"], "int8");
  EXPECT_EQ(RunJson({"lookup", "--tokens", "1,2,3", "--model-id", "m"})["tokens"], 0);
  EXPECT_EQ(RunJson({"rm", "s"})[0]["deleted"], true);
  EXPECT_EQ(Run({"rm", "s"}).exit_code, 3);
  EXPECT_EQ(RunJson({"rm", "s", "--missing-ok"})[0]["deleted"], false);
  EXPECT_EQ(RunJson({"ls"}).size(), 0u);
}

TEST_F(CliTest, ShardsAndLayerByLayer) {
  const json put = RunJson({"put", kFile, "--session", "s", "--codec", "raw", "--shard", "0/2",
                            "--shard", "1/2", "--layer-by-layer"});
  EXPECT_EQ(put["visible_tokens"], 256);
  EXPECT_EQ(put["raw_bytes"], 5898240);
  RunJson({"get", "--session", "s", "--out", File("out")});
  EXPECT_EQ(Run({"diff", kFile, File("out")}).exit_code, 0);
  EXPECT_EQ(RunJson({"stat", "--session", "s"})["shards"].size(), 2u);
}

TEST_F(CliTest, InfoAndCodecs) {
  const json info = RunJson({"info"});
  EXPECT_EQ(info["backend"], "cpu");
  EXPECT_EQ(info["limits"]["page_tokens"], 128);
  const json codecs = RunJson({"codecs"});
  std::vector<std::string> names;
  for (const json& c : codecs) names.push_back(c["name"]);
  EXPECT_TRUE(std::count(names.begin(), names.end(), "raw"));
  EXPECT_TRUE(std::count(names.begin(), names.end(), "int8"));
  EXPECT_EQ(Run({"info"}, daemon_.tcp_address()).exit_code, 0);
}

TEST_F(CliTest, ExitCodes) {
  EXPECT_EQ(Run({}).exit_code, 2);
  EXPECT_EQ(Run({"frobnicate"}).exit_code, 2);
  EXPECT_EQ(Run({"put", kFile}).exit_code, 2);  // no --session
  EXPECT_EQ(Run({"--help"}).exit_code, 0);
  EXPECT_EQ(Run({"put", "--help"}).exit_code, 0);
  EXPECT_EQ(Run({"stat", "--session", "nobody"}).exit_code, 3);
  EXPECT_EQ(Run({"get", "--session", "nobody", "--out", File("x")}).exit_code, 3);
  EXPECT_FALSE(std::filesystem::exists(File("x")));
  const Output nowhere = Run({"info"}, "unix:" + File("nowhere"));
  EXPECT_EQ(nowhere.exit_code, 5);
  EXPECT_TRUE(absl::StrContains(nowhere.err, "nowhere")) << nowhere.err;
  const Output codec = Run({"put", kFile, "--session", "s", "--codec", "zip"});
  EXPECT_EQ(codec.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(codec.err, "unknown codec 'zip'")) << codec.err;
  const Output range = Run({"get", "--session", "s", "--out", File("x"), "--tokens", "9:3"});
  EXPECT_EQ(range.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(range.err, "9:3")) << range.err;
}

// ---- bad files

// A cache file made of parts that a test can spoil.
struct FileParts {
  json header;
  std::string data;
};

FileParts ReadPartsOnce() {
  std::ifstream in(kFile, std::ios::binary);
  uint64_t size = 0;
  in.read(reinterpret_cast<char*>(&size), 8);
  std::string header(size, 0);
  in.read(header.data(), static_cast<std::streamsize>(size));
  FileParts parts;
  parts.header = json::parse(header);
  parts.data.resize(std::filesystem::file_size(kFile) - 8 - size);
  in.read(parts.data.data(), static_cast<std::streamsize>(parts.data.size()));
  return parts;
}
FileParts ReadParts() {
  static const FileParts* const parts = new FileParts(ReadPartsOnce());
  return *parts;
}

std::string Join(const FileParts& parts) {
  const std::string header = parts.header.dump();
  std::string out(8, 0);
  const uint64_t size = header.size();
  std::memcpy(out.data(), &size, 8);
  return out + header + parts.data;
}

struct BadFile {
  const char* name;
  std::function<std::string()> make;
  std::vector<std::string> texts;
};

std::string Spoilt(const std::function<void(FileParts&)>& spoil) {
  FileParts parts = ReadParts();
  spoil(parts);
  return Join(parts);
}
std::string Metadata(const char* key, const char* value) {
  return Spoilt([&](FileParts& p) { p.header["__metadata__"][key] = value; });
}

TEST_F(CliTest, BadFilesAreRefusedBeforeAnythingIsSent) {
  const std::string good = Spoilt([](FileParts&) {});
  std::string gib(8, 0);
  const uint64_t one_gib = uint64_t{1} << 30;
  std::memcpy(gib.data(), &one_gib, 8);
  const std::vector<BadFile> files = {
      {"empty", [] { return std::string(); }, {"0 bytes"}},
      {"magic", [] { return std::string("GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16); }, {"header"}},
      {"gib-header", [&] { return gib + std::string(100, ' '); }, {"header", "1073741824"}},
      {"cut-header", [&] { return good.substr(0, 1000); }, {"header"}},
      {"cut-data",
       [&] { return good.substr(0, good.size() - 5000); },
       {"token_ids", "leave the file"}},
      {"not-json", [] { return std::string("\x04\0\0\0\0\0\0\0nope", 12); }, {"JSON"}},
      {"oversized",
       [] {
         return Spoilt([](FileParts& p) {
           p.header["k.05"]["data_offsets"] = {uint64_t{1} << 40, (uint64_t{1} << 40) + 98304};
         });
       },
       {"k.05"}},
      {"huge-shape",
       [] {
         return Spoilt([](FileParts& p) {
           p.header["k.05"]["shape"] = {int64_t{1} << 40, int64_t{1} << 40, 64};
         });
       },
       {"k.05"}},
      {"wrong-dtype",
       [] { return Spoilt([](FileParts& p) { p.header["v.03"]["dtype"] = "F16"; }); },
       {"v.03", "F16", "BF16"}},
      {"head-dim",
       [] { return Spoilt([](FileParts& p) {
              p.header["k.02"]["shape"] = {3, 128, 128};
            }); },
       {"k.02", "[3, 128, 128]", "[3, 256, 64]"}},
      {"heads", [] { return Metadata("kv_heads", "4"); }, {"k.00", "[3, 256, 64]", "[4, 256, 64]"}},
      {"layers", [] { return Metadata("layers", "31"); }, {"k.30", "missing", "31 layers"}},
      {"fewer-layers", [] { return Metadata("layers", "29"); }, {"k.29"}},
      {"tokens", [] { return Metadata("tokens", "300"); }, {"k.00", "[3, 300, 64]"}},
      {"rope", [] { return Metadata("rope", "spiral"); }, {"rope", "spiral"}},
      {"rope-dim", [] { return Metadata("rope_dim", "65"); }, {"65"}},
      {"negative-position", [] { return Metadata("first_position", "-4"); }, {"first_position"}},
      {"no-metadata",
       [] { return Spoilt([](FileParts& p) { p.header.erase("__metadata__"); }); },
       {"metadata"}},
      {"no-tensor",
       [] { return Spoilt([](FileParts& p) { p.header.erase("v.11"); }); },
       {"v.11", "missing"}},
      {"extra-tensor",
       [] {
         return Spoilt([](FileParts& p) {
           p.header["w.00"] = p.header["v.29"];
           p.header.erase("v.29");
           p.header["v.29"] = p.header["w.00"];
           const uint64_t end = p.data.size();
           p.data.append(4, '\0');
           p.header["w.00"] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {end, end + 4}}};
         });
       },
       {"w.00"}},
      {"negative-token",
       [] {
         return Spoilt([](FileParts& p) {
           const uint64_t at = p.header["token_ids"]["data_offsets"][0];
           std::memset(p.data.data() + at + 4 * 7, 0xff, 4);
         });
       },
       {"token_ids", "token 7", "-1"}},
      {"token-ids-dtype",
       [] { return Spoilt([](FileParts& p) { p.header["token_ids"]["dtype"] = "F32"; }); },
       {"token_ids", "F32", "I32"}},
  };
  for (const BadFile& f : files) {
    SCOPED_TRACE(f.name);
    std::ofstream(File(f.name), std::ios::binary) << f.make();
    const Output o = Run({"put", File(f.name), "--session", "s", "--codec", "raw"});
    EXPECT_EQ(o.exit_code, 1) << o.err;
    EXPECT_TRUE(absl::StrContains(o.err, "INVALID_ARGUMENT")) << o.err;
    for (const std::string& text : f.texts) {
      EXPECT_TRUE(absl::StrContains(o.err, text)) << "\"" << text << "\" is not in: " << o.err;
    }
    // Nothing listens here: had it tried to send, it would have said so.
    EXPECT_EQ(Run({"put", File(f.name), "--session", "s"}, "unix:" + File("nowhere")).exit_code, 1);
  }
  EXPECT_EQ(Run({"put", daemon_.folder().path(), "--session", "s"}).exit_code, 1);
  EXPECT_EQ(Run({"put", File("nobody"), "--session", "s"}).exit_code, 3);
  Client client = daemon_.Connect();
  EXPECT_TRUE(HoldsNothing(client));
  // The parts put together unspoilt are a good file: it is the spoiling that was refused.
  std::ofstream(File("good"), std::ios::binary) << good;
  EXPECT_EQ(Run({"put", File("good"), "--session", "s", "--codec", "raw"}).exit_code, 0);
}

TEST_F(CliTest, TopWritesLinesIntoAPipe) {
  RunJson({"put", kFile, "--session", "s", "--codec", "int8"});
  const Output top = Run({"top", "--interval", "0.05", "--count", "2"});
  EXPECT_EQ(top.exit_code, 0) << top.err;
  EXPECT_EQ(std::count(top.out.begin(), top.out.end(), '\n'), 2) << top.out;
  for (const char* field : {"ready=1", "sessions=1 ", "ratio=1.9", "budget_bytes=", "failed=0"}) {
    EXPECT_TRUE(absl::StrContains(top.out, field)) << field << " is not in: " << top.out;
  }
  EXPECT_EQ(top.out.find('\033'), std::string::npos);
  EXPECT_EQ(Run({"top", "--interval", "0"}).exit_code, 2);
  const Output nobody = Run({"top", "--metrics", "127.0.0.1:1", "--count", "1"});
  EXPECT_EQ(nobody.exit_code, 5) << nobody.err;
  EXPECT_TRUE(absl::StrContains(nobody.err, "127.0.0.1:1")) << nobody.err;
}

TEST_F(CliTest, TopDrawsAScreenOnATerminal) {
  RunJson({"put", kFile, "--session", "s", "--codec", "int8"});
  // script (package bsdutils, always there) gives it a terminal.
  Process p({"/usr/bin/script", "-qec", absl::StrCat(kCommand, " top --interval 0.05 --count 2"),
             "/dev/null"},
            File("script-err"), {"KVCASK_SERVER=" + daemon_.unix_address()});
  const std::string out = p.ReadAll(kPatience);
  EXPECT_EQ(p.Wait(kPatience), 0) << out;
  for (const char* text :
       {"\033[H\033[J", "kvcaskd ", "memory  [", "codec       ratio", "int8         1.9"}) {
    EXPECT_TRUE(absl::StrContains(out, text)) << text << " is not in: " << out;
  }
}

}  // namespace
}  // namespace kvcask
