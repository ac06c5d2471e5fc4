#include "server/store/disk_tier.h"

#include <absl/strings/str_cat.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <shared_mutex>

#include "codec/base/crc32c.h"
#include "server/store/filtered_files.h"

namespace kvcask {
namespace {

constexpr uint64_t kProbeBytes = 1 << 20;  // besides those of the write itself

std::string ChunkKey(uint64_t id) {
  std::string key;
  for (int i = 7; i >= 0; --i) key.push_back(static_cast<char>(id >> (8 * i)));
  return key;
}

uint32_t ChunkChecksum(const std::string& key, absl::Span<const uint8_t> bytes) {
  const auto* k = reinterpret_cast<const uint8_t*>(key.data());
  return Crc32cExtend(Crc32c(absl::MakeSpan(k, key.size())), bytes);
}

class DiskTier final : public Tier {
 public:
  ~DiskTier() override { CloseEngine(); }

  absl::Status Open(const DiskTierOptions& o) {
    options_ = o;
    std::error_code error;
    std::filesystem::create_directories(o.path, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("disk tier: cannot make ", o.path, ": ", error.message()));
    }
    chmod(o.path.c_str(), 0700);
    env_ = rocksdb::NewCompositeEnv(FilterWrites(
        o.files != nullptr ? o.files : rocksdb::FileSystem::Default(),
        [this](const std::string&, const std::function<rocksdb::IOStatus()>& write) {
          return Watched(write());
        }));
    return OpenEngine(Access::kWrite, o.warning);
  }

  absl::Status WriteChunk(uint64_t id, absl::Span<const uint8_t> bytes) override {
    const std::string key = ChunkKey(id);
    const uint32_t crc = ChunkChecksum(key, bytes);
    const rocksdb::Slice parts[] = {
        {reinterpret_cast<const char*>(&crc), sizeof crc},
        {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
    const rocksdb::Slice name(key);
    return Write(false, "writing a chunk", [&](rocksdb::WriteBatch* batch) {
      return batch->Put(chunks_, rocksdb::SliceParts(&name, 1), rocksdb::SliceParts(parts, 2));
    });
  }

  absl::StatusOr<UnsetBytes> ReadChunk(uint64_t id) const override {
    const std::string key = ChunkKey(id);
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    rocksdb::PinnableSlice value;
    std::shared_lock<std::shared_mutex> lock(engine_);
    if (db_ == nullptr) return Closed();
    const rocksdb::Status s = db_->Get(read, chunks_, key, &value);
    if (!s.ok()) {
      // An I/O error is not yet a loss; a damaged file is.
      return FromRocks(s, absl::StrCat("reading chunk ", id));
    }
    uint32_t crc = 0;
    if (value.size() < sizeof crc) return absl::DataLossError("disk tier: a chunk without a CRC");
    std::memcpy(&crc, value.data(), sizeof crc);
    const auto* begin = reinterpret_cast<const uint8_t*>(value.data()) + sizeof crc;
    const auto bytes = absl::MakeSpan(begin, value.size() - sizeof crc);
    if (ChunkChecksum(key, bytes) != crc) {
      return absl::DataLossError(absl::StrCat("disk tier: chunk ", id, ": its CRC32C differs"));
    }
    UnsetBytes out(bytes.begin(), bytes.end());
    value.Reset();  // while the engine is there
    return out;
  }

  absl::Status Apply(const Records& records, bool sync) override {
    return Write(sync, "writing records", [&](rocksdb::WriteBatch* batch) {
      rocksdb::Status s;
      for (const auto& [key, value] : records.puts) {
        if (s.ok()) s = batch->Put(records_, key, value);
      }
      for (const std::string& key : records.deletes) {
        if (s.ok()) s = batch->Delete(records_, key);
      }
      for (uint64_t id : records.chunk_deletes) {
        if (s.ok()) s = batch->Delete(chunks_, ChunkKey(id));
      }
      return s;
    });
  }

  absl::Status Sync() override {
    std::lock_guard<std::mutex> one(writing_);
    std::shared_lock<std::shared_mutex> lock(engine_);
    if (db_ == nullptr || broken_) {
      return absl::UnavailableError("disk tier: syncing: a write has failed before");
    }
    return FromRocks(db_->SyncWAL(), "syncing");
  }

  absl::Status ForEach(absl::string_view prefix,
                       const std::function<absl::Status(absl::string_view, absl::string_view)>&
                           visit) const override {
    rocksdb::ReadOptions read;
    read.readahead_size = 2 << 20;
    std::shared_lock<std::shared_mutex> lock(engine_);
    if (db_ == nullptr) return Closed();
    std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read, records_));
    const rocksdb::Slice begin(prefix.data(), prefix.size());
    for (it->Seek(begin); it->Valid() && it->key().starts_with(begin); it->Next()) {
      const absl::Status s = visit({it->key().data(), it->key().size()},
                                   {it->value().data(), it->value().size()});
      if (!s.ok()) return s;
    }
    return FromRocks(it->status(), "reading records");
  }

 private:
  enum class Access { kRead, kWrite };

  // What became of a write to a file. That it failed is remembered; and to the engine every
  // failure is one that nothing ends but opening it anew. (It would go on by itself after a full
  // disk, also with the log file that the write failed on, and ends the program when it does.)
  rocksdb::IOStatus Watched(rocksdb::IOStatus s) {
    if (s.ok()) return s;
    full_ = s.IsNoSpace();
    broken_ = true;
    return rocksdb::IOStatus::IOError(s.ToString());
  }

  absl::Status FromRocks(const rocksdb::Status& s, absl::string_view what) const {
    if (s.ok()) return absl::OkStatus();
    const std::string text = absl::StrCat("disk tier: ", what, ": ", s.ToString());
    if (s.IsCorruption() || s.IsNotFound()) return absl::DataLossError(text);
    if (s.IsNoSpace() || (broken_ && full_)) return absl::ResourceExhaustedError(text);
    return absl::UnavailableError(text);
  }

  static absl::Status Closed() {
    return absl::UnavailableError("disk tier: it failed and could not be opened again yet");
  }

  void CloseEngine() {
    if (db_ == nullptr) return;
    for (auto* h : {chunks_, records_, default_}) {
      if (h != nullptr) db_->DestroyColumnFamilyHandle(h);
    }
    db_->Close();
    db_.reset();
  }

  absl::Status OpenEngine(Access access, std::string* warning) {
    const std::string& path = options_.path;
    rocksdb::DBOptions db;
    db.env = env_.get();
    db.env = env_.get();
    db.max_bgerror_resume_count = 0;  // Write tells it, and knows how it went
    db.create_if_missing = true;
    db.create_missing_column_families = true;
    db.max_background_jobs = 2;
    db.info_log_level = rocksdb::WARN_LEVEL;
    db.keep_log_file_num = 4;
    db.max_total_wal_size = 256 << 20;
    db.bytes_per_sync = 4 << 20;      // dirty pages go out in the background, not at once
    db.wal_bytes_per_sync = 4 << 20;
    // A torn end of the log is what a kill leaves; anything else is corruption.
    db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
    db.paranoid_checks = true;

    rocksdb::BlockBasedTableOptions table;
    table.block_cache = rocksdb::NewLRUCache(options_.cache_bytes);
    rocksdb::ColumnFamilyOptions records;
    records.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    records.write_buffer_size = 16 << 20;
    records.compression = rocksdb::kNoCompression;
    rocksdb::ColumnFamilyOptions chunks = records;
    chunks.write_buffer_size = 64 << 20;
    chunks.enable_blob_files = true;
    chunks.min_blob_size = 512;
    chunks.blob_file_size = 256 << 20;
    chunks.enable_blob_garbage_collection = true;
    chunks.blob_garbage_collection_age_cutoff = 0.5;
    chunks.blob_garbage_collection_force_threshold = 0.5;

    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* opened = nullptr;
    const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
        {rocksdb::kDefaultColumnFamilyName, records}, {"records", records}, {"chunks", chunks}};
    const auto open = [&] {
      return access == Access::kWrite
                 ? rocksdb::DB::Open(db, path, families, &handles, &opened)
                 : rocksdb::DB::OpenForReadOnly(db, path, families, &handles, &opened);
    };
    rocksdb::Status s = open();
    if (s.IsCorruption()) {
      // What was logged before the damage is worth having; that there was any is told.
      const std::string first = s.ToString();
      db.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
      s = open();
      if (s.ok() && warning != nullptr) {
        *warning = absl::StrCat(path, ": its log is damaged, later commits are lost: ", first);
      }
    }
    if (!s.ok()) return FromRocks(s, absl::StrCat("opening ", path));
    db_.reset(opened);
    default_ = handles[0];
    records_ = handles[1];
    chunks_ = handles[2];
    return absl::OkStatus();
  }

  // `fill` may be called twice: what it puts in names families of the engine at the time.
  template <typename Fill>
  absl::Status Write(bool sync, absl::string_view what, Fill fill) {
    std::lock_guard<std::mutex> one(writing_);
    absl::Status status = broken_ || db_ == nullptr ? OpenAnew(0) : absl::OkStatus();
    for (int tries = 0; tries < 2 && status.ok(); ++tries) {
      rocksdb::WriteBatch batch;
      rocksdb::Status s = fill(&batch);
      if (!s.ok()) return FromRocks(s, what);
      rocksdb::WriteOptions write;
      write.sync = sync;
      s = db_->Write(write, &batch);
      if (s.ok()) return absl::OkStatus();
      status = FromRocks(s, what);
      if (tries == 0 && OpenAnew(batch.GetDataSize()).ok()) status = absl::OkStatus();
    }
    return status;
  }

  // After a failed write, under writing_. An engine that works, or why there is none; then what
  // is there is still read, as far as that can be had.
  absl::Status OpenAnew(uint64_t bytes) {
    if (absl::Status s = Probe(kProbeBytes + bytes); !s.ok()) return s;
    std::unique_lock<std::shared_mutex> lock(engine_);
    CloseEngine();
    broken_ = false;
    absl::Status s = OpenEngine(Access::kWrite, nullptr);
    if (s.ok()) return s;
    broken_ = true;
    (void)OpenEngine(Access::kRead, nullptr);
    return s;
  }

  // Whether the disk takes so many bytes.
  absl::Status Probe(uint64_t bytes) {
    const std::string path = options_.path + "/probe";
    std::unique_ptr<rocksdb::WritableFile> file;
    const std::string block(kProbeBytes, 'x');
    rocksdb::Status s = env_->NewWritableFile(path, &file, rocksdb::EnvOptions());
    for (uint64_t done = 0; s.ok() && done < bytes; done += block.size()) s = file->Append(block);
    if (s.ok()) s = file->Fsync();
    if (file != nullptr) {
      const rocksdb::Status closed = file->Close();
      if (s.ok()) s = closed;
      file.reset();
    }
    (void)env_->DeleteFile(path);
    return FromRocks(s, absl::StrCat("trying the disk after a failed write, ", path));
  }

  DiskTierOptions options_;
  std::unique_ptr<rocksdb::Env> env_;
  std::atomic<bool> broken_{false};  // a write to a file has failed since the engine was opened
  std::atomic<bool> full_{false};    // ... for lack of room
  std::mutex writing_;               // one write at a time; taken before engine_
  // Of what follows: shared by those who read; alone by who opens it anew. Changed under
  // writing_ too, which is enough for writes.
  mutable std::shared_mutex engine_;
  std::unique_ptr<rocksdb::DB> db_;  // uses env_; null: it could not be opened anew
  rocksdb::ColumnFamilyHandle *default_ = nullptr, *records_ = nullptr, *chunks_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> OpenDiskTier(const DiskTierOptions& options) {
  auto tier = std::make_unique<DiskTier>();
  if (absl::Status s = tier->Open(options); !s.ok()) return s;
  return std::unique_ptr<Tier>(std::move(tier));
}

}  // namespace kvcask
